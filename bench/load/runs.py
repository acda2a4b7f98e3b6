"""The kinds of runs: plain, beside an echo, a sweep, an overload, with a command in the middle. Each ends in one result."""

import uuid
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any

from bench.load.beside import ECHOES, echo_server, median_ratio, on_echo, ratios
from bench.load.drive import drive
from bench.load.job import Load, Phase
from bench.load.merge import added
from bench.load.mix import METHODS, InputError, read_mix, read_replay
from bench.load.options import Options
from bench.load.releases import read_owners
from bench.load.requests import Requests
from bench.load.result import command_line, result_of, settings_of
from bench.load.server import Seen, lag_between, lag_buckets, look_at, recall, reply_sizes
from bench.load.stages import overload_of, with_command
from bench.load.sweep import Sweep, sweep
from bench.load.verdict import verdict
from bench.world.ids import Ids, IdsError, read_ids

_TRIAL_S = 3.0


def run(options: Options) -> dict[str, Any]:
    """The result of what the options ask for. Raises InputError, LoadError."""
    try:
        ids = read_ids(options.ids)
    except IdsError as error:
        raise InputError(str(error)) from None
    rates = _rates(options)
    if (options.sweep or options.overload is not None) and not rates.keys() - {"events", "pair"}:
        raise InputError("--sweep and --overload change the rate of reads; --mix has none: name one, such as recommend")
    if options.replay is not None:
        read_replay(options.replay, options.replay_speed)
    if options.check_releases is not None:
        read_owners(options.check_releases)
    before = lag_buckets(options.metrics) if options.metrics is not None else None
    seen = look_at(options.reach)
    load = _load(options, rates, seen)
    kinds = _kinds(options, rates)
    some = Requests(ids, kinds, limit=options.limit, dim=seen.dim, seed=options.seed, run=uuid.uuid4().hex)
    sizes = reply_sizes(options.reach, some, kinds)
    result = _Runs(options, load, {METHODS[kind]: sizes[METHODS[kind]] for kind in kinds}).result()
    if before is not None and options.metrics is not None:
        result["freshness"]["server_ms"] = lag_between(before, lag_buckets(options.metrics))
    return _finished(result, options, ids, seen)


class _Runs:
    """A load, on the server and on echoes of the same message sizes."""

    def __init__(self, options: Options, load: Load, sizes: dict[str, int]) -> None:
        self._options = options
        self._load = load
        self._sizes = sizes

    def result(self) -> dict[str, Any]:
        options = self._options
        if options.sweep:
            return self._sweep()
        if options.overload is not None:
            measured = drive(self._load, self._processes(options.overload), "overload")
            return result_of(measured) | {"overload": overload_of(measured)}
        if options.during is not None:
            measured = drive(self._load, self._processes(), "load", options.during)
            return with_command(result_of(measured), measured)
        return self._interleaved() if options.echo else self._once(self._load, "load")

    def _processes(self, factor: float = 1.0) -> int:
        options = self._options
        return options.processes_for(options.rate * factor + options.events + 2 * options.pairs)

    def _once(self, load: Load, what: str) -> dict[str, Any]:
        return result_of(drive(load, self._processes(), what))

    def _interleaved(self) -> dict[str, Any]:
        """Ours and the echo in turn, the first being now one and now the other."""
        pairs: list[dict[str, Any]] = []
        mine: list[dict[str, Any]] = []
        with ExitStack() as stack:
            kind, echo = self._better_echo(stack)
            for number in range(self._options.interleave):
                count = f"{number + 1}/{self._options.interleave}"
                runs = [(self._load, f"load {count}"), (echo, f"echo {count}")]
                found = {load.is_echo: self._once(load, what) for load, what in (runs if number % 2 == 0 else runs[::-1])}
                mine.append(found[False])
                pairs.append(
                    {"ours": _short(found[False]), "echo": _short(found[True]), "ratio": ratios(found[False], found[True])}
                )
        reasons = [f"pair {n + 1}, {name}: {why}" for n, pair in enumerate(pairs) for name in ("ours", "echo")
                   for why in pair[name]["invalid_because"]]  # fmt: skip
        beside = {
            "kind": kind,
            "reply_bytes": self._sizes,
            "pairs": pairs,
            "median_ratio": {name: median_ratio(pairs, name) for name in ("p50", "p99")},
        }
        return _together(mine) | {"echo": beside, "invalid_because": reasons, "valid": not reasons}

    def _better_echo(self, stack: ExitStack) -> tuple[str, Load]:
        """The echo with the smaller p99 under this load, by a short trial of each; it keeps running."""
        loads = {kind: on_echo(self._load, stack.enter_context(echo_server(kind, self._sizes))) for kind in ECHOES}
        seconds = min(_TRIAL_S, self._options.duration) + self._load.warm_up_s
        trials = {
            kind: self._once(replace(load, phases=[Phase(seconds)]), f"trial of {kind}")["latency_ms"]["p99"]
            for kind, load in loads.items()
        }
        better = min(trials, key=lambda kind: trials[kind] if trials[kind] is not None else float("inf"))
        return better, loads[better]

    def _sweep(self) -> dict[str, Any]:
        found = self._sweep_of(self._load, "server")
        why = "at higher rates calls were sent late, and what was sent was answered well; give this client more cores"
        if found.knee is None:
            why = "calls were sent late at every rate; give this client more cores or --processes"
        reasons = [why] if found.client_was_the_limit else []
        result = found.best | {"knee_rps": found.knee, "sweep": found.steps, "valid": not reasons, "invalid_because": reasons}
        if self._options.echo:
            result["echo"] = self._sweep_of_echoes(found)
        return result

    def _sweep_of(self, load: Load, what: str) -> Sweep:
        rate = self._options.rate

        def at(one: float, more: int) -> dict[str, Any]:
            scaled = {name: each if name in ("events", "pair") else each * one / rate for name, each in load.rates.items()}
            scaled["events"] = scaled.get("events", 0.0)
            processes = self._options.processes_for(one + self._options.events + 2 * self._options.pairs, more)
            return result_of(drive(replace(load, rates=scaled), processes, f"{what} at {one:.0f}/s"))

        return sweep(at, rate, self._options.p99_ms, late_is_past=not load.is_echo)

    def _sweep_of_echoes(self, ours: Sweep) -> dict[str, Any]:
        """Both echoes' knees; the better one is what ours is compared with."""
        found = {}
        for kind in ECHOES:
            with echo_server(kind, self._sizes) as reach:
                found[kind] = self._sweep_of(on_echo(self._load, reach), f"{kind} echo")
        better = max(found, key=lambda kind: found[kind].knee or 0.0)
        knee = found[better].knee
        return {
            "kind": better,
            "reply_bytes": self._sizes,
            "knee_rps": knee,
            "knees_rps": {kind: one.knee for kind, one in found.items()},
            "client_was_the_limit": found[better].client_was_the_limit,
            "knee_ratio": round(ours.knee / knee, 3) if ours.knee and knee else None,
            "sweep": found[better].steps,
        }


def _rates(options: Options) -> dict[str, float]:
    rates = {name: share * options.rate for name, share in read_mix(options.mix).items()}
    rates["events"] = rates.get("events", 0.0) + options.events
    return {name: rate for name, rate in (rates | {"pair": options.pairs}).items() if rate}


def _kinds(options: Options, rates: dict[str, float]) -> list[str]:
    """Kinds of calls that will be made."""
    kinds = {name for name in rates if name != "pair"}
    if "pair" in rates:
        kinds |= {"events", "recommend"}
    if options.replay is not None:
        kinds.add("events")
    return [kind for kind in METHODS if kind in kinds]


def _load(options: Options, rates: dict[str, float], seen: Seen) -> Load:
    first = Phase(options.warm_up + options.duration)
    factor = options.overload
    phases = [first] if factor is None else [first, Phase(options.duration, factor), Phase(options.duration)]
    return Load(
        reach=options.reach,
        ids=str(options.ids),
        phases=phases,
        warm_up_s=options.warm_up,
        rates=rates,
        limit=options.limit,
        dim=seen.dim,
        deadline_s=options.deadline_ms / 1e3,
        seed=options.seed,
        connections=options.connections,
        replay=str(options.replay) if options.replay is not None else None,
        replay_speed=options.replay_speed,
        releases=str(options.check_releases) if options.check_releases is not None else None,
        probes_per_s=1.0 if rates.get("events") or rates.get("pair") or options.replay else 0.0,
    )


def _finished(result: dict[str, Any], options: Options, ids: Ids, seen: Seen) -> dict[str, Any]:
    """With recall, which is measured right after the load so that exact searches do not disturb it, and the verdict."""
    asked = 0
    if options.recall_queries:
        result["recall_at_k"], asked = recall(options.reach, ids.user_ids, options.limit, options.recall_queries, options.seed)
    result |= {"recall_samples": asked, "server": asdict(seen), "settings": settings_of(options), "command": command_line()}
    return {"verdict": verdict(result, options.p99_ms), **result}


def _short(found: dict[str, Any]) -> dict[str, Any]:
    names = (
        "offered_rps",
        "achieved_rps",
        "latency_ms",
        "codes",
        "shed",
        "failed",
        "send_lateness_ms",
        "client_cpu",
        "methods",
    )
    return {name: found[name] for name in (*names, "valid", "invalid_because")}


def _together(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Several runs of ours as one: the same seconds again and again. The windows are the first run's."""
    return added(found) | {"windows": found[0]["windows"]}
