"""python -m bench.soak: checks that are too long for the tests, against a real server; the results are committed.

read-your-events: random pairs of RecordEvents, or of a link made or taken back, and Recommend; the vector that was used must
equal an offline encode, by the bundle's own user tower, of the history that includes the change.
kill-nine: a server is killed (SIGKILL) while events are sent, and started again on the same directory; every acknowledged
event must be there, once (see bench.crash). Power losses are simulated by python -m tests.server.soak.
fuzz: requests of every method, odd and broken ones too, to a server with a small bundle of its own (see bench.fuzz).
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bench.crash import kill_nine
from bench.fuzz.soak import fuzz
from bench.hardware import hardware
from bench.read_your_events import read_your_events
from index.bundle import Bundle, BundleError, read_bundle


def main() -> int:
    arguments = _parser().parse_args()
    soaks: dict[str, tuple[Callable[[Path, int, int], dict[str, Any]], int]] = {"fuzz": (fuzz, arguments.requests)}
    if arguments.only != "fuzz":
        try:
            bundle = read_bundle(arguments.bundle)
        except BundleError as error:
            print(f"error: {error} (make demo makes one)", file=sys.stderr)
            return 2
        soaks["read-your-events"] = partial(_with_id, read_your_events, bundle), arguments.pairs
        soaks["kill-nine"] = partial(_with_id, kill_nine, bundle), arguments.kills
    arguments.out.mkdir(parents=True, exist_ok=True)
    passed = True
    for name, (soak, count) in soaks.items():
        if arguments.only not in (None, name):
            continue
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as data:
            result = soak(Path(data), count, arguments.seed)
        result |= {"seconds": round(time.monotonic() - started, 1), "hardware": hardware()}
        (arguments.out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(f"{name}: {'passed' if result['passed'] else 'FAILED'} {result}")
        passed &= result["passed"]
    return 0 if passed else 1


def _with_id(
    soak: Callable[[Bundle, Path, int, int], dict[str, Any]], bundle: Bundle, data: Path, count: int, seed: int
) -> dict[str, Any]:
    return soak(bundle, data, count, seed) | {"release_id": bundle.release_id}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, default=Path("demo-data/bundle"), help="the bundle to serve (demo-data/bundle)")
    parser.add_argument("--out", type=Path, default=Path("docs/soak"), help="where the JSON goes (docs/soak)")
    parser.add_argument("--only", choices=("read-your-events", "kill-nine", "fuzz"), help="run one of them")
    parser.add_argument("--pairs", type=int, default=100_000, help="read-your-events: pairs (100000)")
    parser.add_argument("--kills", type=int, default=50, help="kill-nine: kills (50)")
    parser.add_argument("--requests", type=int, default=100_000, help="fuzz: requests (100000)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (0)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
