"""What the bench is asked to do. Imports nothing heavy, so that threads are set before numpy, torch and faiss are loaded."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

PEERS = ("hnswlib", "usearch", "faiss-hnsw", "faiss-flat")
K_MAX = 2048


class InputError(Exception):
    """What was asked for cannot be measured. The message is one line and says what to do."""


@dataclass(frozen=True)
class Options:
    """The command line."""

    items: int
    dim: int
    k: int
    recall: float
    peers: tuple[str, ...]
    vectors: Path | None
    queries: Path | None
    queries_count: int
    streaming: bool
    seed: int
    threads: int
    repeats: int
    seconds: float
    under_writes: tuple[int, ...]
    hnsw_m: int
    json: Path
    plot: Path


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def parse(arguments: list[str] | None = None) -> Options:
    """The options of a command line; None is the process's own. Raises InputError."""
    parsed = _parser().parse_args(arguments)
    if (parsed.vectors is None) != (parsed.queries is None):
        raise InputError("--vectors and --queries go together: give both or neither")
    # With files, these come from the files; see `bench.index.data`.
    parsed.items = parsed.items or (0 if parsed.vectors else 200_000)
    parsed.dim = parsed.dim or (0 if parsed.vectors else 64)
    if parsed.plot is None:
        parsed.plot = parsed.json.with_suffix(".png")
    for path in (parsed.json, parsed.plot):
        if not path.absolute().parent.is_dir():
            raise InputError(f"the folder of {path} does not exist; make it")
    return Options(**vars(parsed))


def check_k(k: int, items: int, *, streaming: bool) -> None:
    """Raises InputError if there are too few items for k."""
    if k > items:
        raise InputError(f"--k is {k}, more than the {items} items; give a smaller k")
    if streaming and k > items // 2:
        raise InputError(f"--streaming starts from half of the {items} items, fewer than k = {k}; give a smaller k")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m bench.index",
        description="Measures our search engines and other libraries on the same vectors, at the same recall and threads.",
    )
    add = parser.add_argument
    add("--items", type=_positive, metavar="N", help="items; with --vectors the first N rows (200000, or all rows)")
    add("--dim", type=_positive, metavar="D", help="components (64, or what the file has)")
    add("--k", type=_k, default=100, metavar="K", help=f"hits a query, 1 to {K_MAX} (100)")
    add("--recall", type=_share, default=0.93, metavar="R", help="mean recall@k that every engine must reach, 0 to 1 (0.93)")
    add("--peers", type=_peers, default=(), metavar="NAMES", help=f"any of {','.join(PEERS)} (none)")
    add(
        "--vectors",
        type=Path,
        metavar="FILE",
        help=".npy or .safetensors, (N, D) floats, normalised here, instead of generated",
    )
    add("--queries", type=Path, metavar="FILE", help=".npy or .safetensors, (Q, D) floats: vectors of real users")
    add("--queries-count", type=_positive, default=1000, metavar="Q", help="queries that are measured (1000)")
    add("--streaming", action="store_true", help="also a runbook of inserts, deletes and searches 4:4:1")
    add("--seed", type=_natural, default=0, metavar="N", help="of everything random (0)")
    add("--threads", type=_positive, default=1, metavar="N", help="of a search; indexes are built with all cores (1)")
    add("--repeats", type=_positive, default=5, metavar="N", help="of which the median is reported (5)")
    add(
        "--seconds",
        type=_seconds,
        default=0.5,
        metavar="S",
        help="per engine, batch size and repeat; under writes thrice (0.5)",
    )
    add("--under-writes", type=_rates, default=(0, 1000, 10000), metavar="RATES", help="upserts a second (0,1000,10000)")
    add("--hnsw-m", type=_positive, default=32, metavar="M", help="of HNSW peers, whose ef_construction is 200 (32)")
    add("--json", type=Path, required=True, metavar="FILE", help="where the results go")
    add("--plot", type=Path, metavar="FILE.png", help="recall against latency (beside the JSON)")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def _natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is not 0 or more")
    return value


def _k(text: str) -> int:
    value = int(text)
    if not 1 <= value <= K_MAX:
        raise argparse.ArgumentTypeError(f"{text} is not 1 to {K_MAX}")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds")
    return value


def _peers(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown peer {unknown[0]!r}; there are {', '.join(PEERS)}")
    return names


def _rates(text: str) -> tuple[int, ...]:
    rates = {int(part) for part in text.split(",")}
    if min(rates) < 0:
        raise argparse.ArgumentTypeError("a rate is negative")
    return tuple(sorted(rates | {0}))  # what a search takes without writes is the measure of the others
