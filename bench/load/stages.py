"""Runs in parts: before, during and after an overload or a command."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.load.drive import Measured
from bench.load.figures import answered, calls_of, main_kinds, outcome

_WINDOW_S = 0.5
_BACK_WITHIN = 2.0  # times the p99 from before
_ERRORS_ALLOWED = 0.01
_NAMES = ("before", "during", "after")


def overload_of(measured: Measured) -> dict[str, Any]:
    """The three phases; of the overload, what came of its reads, as a share of the reads offered before it too; and the seconds
    after it until p99 is back within 2 x of before, without refusals.
    """
    edges = [measured.load.warm_up_s, *np.cumsum([phase.seconds for phase in measured.load.phases]).tolist()]
    parts = _parts(measured.records, edges)
    before = parts["before"]["latency_ms"]["p99"]
    reads = measured.records[np.isin(measured.records["kind"], main_kinds(measured.records))]
    during = parts["during"]
    base = sum(rate for name, rate in measured.load.rates.items() if name != "events")
    return parts | {
        "factor": max(phase.factor for phase in measured.load.phases),
        "base_rps": round(base, 2),
        "goodput_rps": during["goodput_rps"],
        "goodput_share": round(during["goodput_rps"] / base, 3),
        "p99_ms": during["latency_ms"]["p99"],
        "codes": during["codes"],
        "shed": during["shed"],
        "recovery_s": _recovery(reads, edges[2], edges[3], before),
    }


def with_command(result: dict[str, Any], measured: Measured) -> dict[str, Any]:
    """The result with what came before, during and after the command. It says nothing of a command that failed."""
    found = _of_command(measured)
    reasons = list(result["invalid_because"])
    if found["status"]:
        reasons.append(f"the command left with status {found['status']}; its output is in during.output")
    if found["outlived_the_load"]:
        reasons.append("the command took longer than the load; give a longer --duration")
    releases = result["releases"] or {"checked": None, "mixed": None}
    found |= {"answers_checked": releases["checked"], "mixed": releases["mixed"]}
    return result | {"during": found, "valid": not reasons, "invalid_because": reasons}


def _of_command(measured: Measured) -> dict[str, Any]:
    command = measured.command
    assert command is not None
    edges = [measured.load.warm_up_s, command.began, min(command.ended, measured.load.seconds), measured.load.seconds]
    parts = _parts(measured.records, edges)
    p99 = {name: parts[name]["latency_ms"]["p99"] for name in _NAMES}
    return parts | {
        "command": command.line,
        "status": command.status,
        "output": command.output,
        "began_s": round(command.began - measured.load.warm_up_s, 3),
        "ended_s": round(command.ended - measured.load.warm_up_s, 3),
        "outlived_the_load": command.ended > measured.load.seconds,
        "p99_ms": p99,
        "ratio": round(p99["during"] / p99["before"], 3) if p99["before"] and p99["during"] else None,
    }


def _parts(records: NDArray[Any], edges: list[float]) -> dict[str, Any]:
    due = records["due"]
    found = {}
    for name, begin, end in zip(_NAMES, edges[:-1], edges[1:], strict=True):
        part = records[(due >= begin) & (due < end)]
        found[name] = outcome(part, max(end - begin, 1e-9)) if len(part) else _empty(end - begin)
        reads = calls_of(part)
        reads = reads[np.isin(reads["kind"], main_kinds(records))]
        # Of reads alone: what a knee is a rate of.
        found[name]["goodput_rps"] = round(float((reads["code"] == 0).sum()) / max(end - begin, 1e-9), 2)
    return found


def _empty(seconds: float) -> dict[str, Any]:
    none = dict.fromkeys(("p50", "p90", "p99", "p99_9", "max"))
    rates = {"offered_rps": 0.0, "achieved_rps": 0.0}
    return {"seconds": round(seconds, 3), "calls": 0, **rates, "latency_ms": none, "codes": {}, "shed": 0, "failed": 0}


def _recovery(reads: NDArray[Any], begin: float, end: float, before_ms: float | None) -> float | None:
    """Seconds until the first of two good windows in a row, each half a second long; None if there are none."""
    if before_ms is None:
        return None
    kinds = sorted(set(reads["kind"].tolist()))
    good = []
    for start in np.arange(begin, end - _WINDOW_S / 2, _WINDOW_S):
        part = reads[(reads["due"] >= start) & (reads["due"] < start + _WINDOW_S)]
        taken = answered(part, kinds)
        refused = len(part) - len(taken)
        quick = len(taken) > 0 and float(np.percentile(taken, 99)) * 1e3 <= _BACK_WITHIN * before_ms
        good.append(quick and refused <= _ERRORS_ALLOWED * len(part))
        if len(good) > 1 and good[-1] and good[-2]:
            return round(float(start - _WINDOW_S - begin), 3)
    return None
