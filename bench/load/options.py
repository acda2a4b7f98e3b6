"""What the load is asked to be. Imports nothing heavy."""

import argparse
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from bench.load.channel import KEY_VARIABLE, Reach, key_of
from bench.load.mix import InputError

CALLS_A_PROCESS = 1_500  # a second: what one process sends with a send lateness of about a millisecond
_CALLS_MOST = 100_000  # a second; no host sends so many with 1,500 a process
_PROCESSES_A_CORE = 4  # at most; more only take the processor from each other
_CONNECTIONS_MOST = 1_000  # each is a descriptor


@dataclass(frozen=True)
class Options:
    """The command line, checked."""

    reach: Reach
    ids: Path
    rate: float
    events: float
    pairs: float
    duration: float
    warm_up: float
    seed: int
    mix: Path | None
    replay: Path | None
    replay_speed: float
    sweep: bool
    overload: float | None
    during: str | None
    check_releases: Path | None
    processes: int | None
    connections: int
    limit: int
    deadline_ms: float
    p99_ms: float
    recall_queries: int
    metrics: str | None
    echo: bool
    interleave: int
    json: Path
    html: Path

    def processes_for(self, rate: float, more: int = 0) -> int:
        """One process for what one can send, and not more than leave the server half of the cores.

        more: processes beyond that, or beyond --processes, of which as many are taken as the cores allow.
        """
        most = max(1, (os.cpu_count() or 2) // 2)
        usual = self.processes or min(math.ceil(rate / CALLS_A_PROCESS) or 1, most)
        return max(usual, min(usual + more, most))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; --help lists the options")


def parse(arguments: list[str]) -> Options:
    """The options of a command line. Raises InputError."""
    given = vars(_parser().parse_args(arguments))
    tls = given.pop("tls") or given["ca"] is not None or given["cert"] is not None
    if (given["cert"] is None) != (given["client_key"] is None):
        raise InputError("--cert and --client-key go together: give both or neither")
    reach = Reach(
        target=given.pop("target"),
        tls=tls,
        ca=given.pop("ca"),
        cert=given.pop("cert"),
        client_key=given.pop("client_key"),
        key=key_of(given.pop("key")),
    )
    reach.credentials()  # whether its files can be read
    options = Options(reach=reach, **given)
    _check(options)
    return options


def _check(options: Options) -> None:
    if not (options.rate or options.events or options.pairs or options.replay):
        raise InputError("there is nothing to send: give --rate, --events, --pairs or --replay")
    calls = options.rate * (options.overload or 1) + options.events + 2 * options.pairs
    if calls > _CALLS_MOST:
        raise InputError(
            f"{calls:g} calls a second are more than a host can send: ask for {_CALLS_MOST:,} at most, and merge several hosts'"
        )
    if sum((options.sweep, options.overload is not None, options.during is not None)) > 1:
        raise InputError("--sweep, --overload and --during are runs of their own: give one of them")
    if (options.sweep or options.overload is not None) and not options.rate:
        raise InputError("--sweep and --overload change --rate: give one to start from")
    if options.echo and (options.during is not None or options.overload is not None or options.check_releases):
        raise InputError("--echo goes with plain runs and --sweep; an echo has no releases and sheds nothing")
    if options.interleave > 1 and not options.echo:
        raise InputError("--interleave repeats pairs of a run and its echo: give --echo too")
    check_outputs(options.json, options.html)


def check_outputs(json: Path, html: Path) -> None:
    """What can be known before a long run of whether its result can be written. Raises InputError."""
    for path in (json, html):
        if not path.absolute().parent.is_dir():
            raise InputError(f"the folder of {path} does not exist; make it")
        if path.is_dir():
            raise InputError(f"{path} is a folder; give a file")
    if json.resolve() == html.resolve():
        raise InputError(f"--json and --html are the same file, {json}; give two")


def check_target(text: str) -> str:
    """HOST:PORT, or what gRPC calls a URI, such as unix:///run/towerbridge.sock. Raises argparse's error."""
    if re.fullmatch(r"[\w.-]+:\d{1,5}|\[[0-9a-fA-F:]+\]:\d{1,5}|(unix|dns|ipv4|ipv6):.+", text) is None:
        raise argparse.ArgumentTypeError("must be HOST:PORT")
    return text


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m bench.load",
        allow_abbrev=False,  # `--ke` would get past what hides keys in the result
        description="Open-loop load: calls at random times (Poisson), whatever became of earlier ones; latency from the time "
        "when each was due. `python -m bench.load merge A.json B.json --json OUT --html OUT` adds up results of several hosts.",
    )
    add = parser.add_argument
    add("--target", type=check_target, required=True, metavar="HOST:PORT", help="the server")
    add("--ids", type=Path, required=True, metavar="PATH", help="a folder made by bench.world, or a JSON file of ids")
    add("--json", type=Path, required=True, metavar="FILE", help="gets the result")
    add("--html", type=Path, required=True, metavar="FILE", help="gets the report: one page, with pictures")
    _add_load(parser.add_argument_group("load"))
    _add_runs(parser.add_argument_group("other runs"))
    _add_measures(parser.add_argument_group("measures"))
    group = parser.add_argument_group("security")
    group.add_argument("--tls", action="store_true", help="TLS with the system's roots")
    group.add_argument("--ca", metavar="FILE", help="PEM: the server's root instead of the system's; implies --tls")
    group.add_argument("--cert", metavar="FILE", help="PEM: this client's certificate (mTLS)")
    group.add_argument("--client-key", metavar="FILE", help="PEM: the certificate's private key")
    group.add_argument("--key", metavar="KEY", help=f"the API key; better in {KEY_VARIABLE}, where others do not see it")
    return parser


def _add_load(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--rate", type=_amount, default=0.0, metavar="R", help="reads a second: Recommend, or what --mix says (0)")
    add("--events", type=_amount, default=0.0, metavar="E", help="RecordEvents calls a second, of one event each (0)")
    add("--pairs", type=_amount, default=0.0, metavar="R", help="a second: an event, its acknowledgement, then Recommend (0)")
    add("--duration", type=_positive, default=60.0, metavar="S", help="seconds that count; of a sweep, of each step (60)")
    add("--warm-up", type=_amount, default=5.0, metavar="S", help="seconds before, which do not count (5)")
    add("--seed", type=_natural, default=0, metavar="N", help="of arrivals and requests (0)")
    add("--mix", type=Path, metavar="FILE", help="YAML or JSON: weights of recommend, similar, score, batch_recommend, search, "
        "events, get_items, which share --rate")  # fmt: skip
    add("--replay", type=Path, metavar="FILE", help=".parquet, .csv or .jsonl of timed events, sent at their times")
    add("--replay-speed", type=_positive, default=1.0, metavar="X", help="times are divided by it (1)")
    add("--limit", type=_limit, default=100, metavar="K", help="items an answer, 1 to 1000 (100)")
    add("--deadline-ms", type=_positive, default=1000.0, metavar="MS", help="of each call (1000)")
    add("--processes", type=_processes, metavar="P", help="that send, at most 4 a core; usually one for 1500 calls a second, "
        "on half of the cores at most")  # fmt: skip
    add("--connections", type=_connections, default=1, metavar="C", help="of each process, 1 to 1000 (1)")


def _add_runs(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--sweep", action="store_true", help="find the knee: the largest --rate with a p99 within --p99-ms, errors under "
        "0.1 %% and 97 %% answered; starts at --rate")  # fmt: skip
    add("--overload", type=_factor, metavar="F", help="--duration at --rate, then at F times that, then at --rate again")
    add("--during", metavar="COMMAND", help="run by the shell after a third of the run; p99 before, during and after it")
    add("--check-releases", type=Path, metavar="FILE", help="JSON: release id to file of ids that it alone can return; "
        "looks for answers that mix releases")  # fmt: skip
    add("--echo", action="store_true", help="the same load on a bare gRPC echo of the same message sizes too")
    add("--interleave", type=_count, default=1, metavar="N", help="pairs of a run and its echo, of which the median counts (1)")


def _add_measures(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--p99-ms", type=_positive, default=20.0, metavar="MS", help="what the verdict and --sweep allow (20)")
    add("--recall-queries", type=_natural, default=200, metavar="N", help="people whose answers are compared with exact "
        "search, right after the load (200)")  # fmt: skip
    add(
        "--metrics",
        metavar="URL",
        help="the server's metrics, for its own freshness lag, such as http://127.0.0.1:9090/metrics",
    )


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError("must be a number") from None
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError("must be a number")
    return value


def _amount(text: str) -> float:
    value = _number(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must be 0 or more")
    return value


def _positive(text: str) -> float:
    value = _number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError("must be more than 0")
    return value


def _factor(text: str) -> float:
    value = _number(text)
    if value <= 1:
        raise argparse.ArgumentTypeError("must be more than 1")
    return value


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError("must be a whole number from 0")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError("must be a whole number from 1")
    return int(text)


def _processes(text: str) -> int:
    value, most = _count(text), _PROCESSES_A_CORE * (os.cpu_count() or 1)
    if value > most:
        raise argparse.ArgumentTypeError(f"must be at most {most}, {_PROCESSES_A_CORE} for each core of this machine")
    return value


def _connections(text: str) -> int:
    value = _count(text)
    if value > _CONNECTIONS_MOST:
        raise argparse.ArgumentTypeError(f"must be 1 to {_CONNECTIONS_MOST}")
    return value


def _limit(text: str) -> int:
    value = _count(text)
    if value > 1000:
        raise argparse.ArgumentTypeError("must be 1 to 1000")
    return value
