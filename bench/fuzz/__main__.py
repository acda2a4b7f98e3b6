"""python -m bench.fuzz: see `--help`."""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from bench.fuzz.requests import Request
from bench.fuzz.soak import fuzz
from bench.hardware import hardware


def main(arguments: list[str] | None = None) -> int:
    """0 if the server bore it, 1 if not, 2 for what cannot be read."""
    given = _parser().parse_args(arguments)
    try:
        replay = None if given.replay is None else read_requests(given.replay)
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"error: {given.replay} has no requests ({error}); give a file that --json wrote", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        result = fuzz(Path(folder), given.requests, given.seed, replay)
    text = json.dumps(result | {"hardware": hardware()}, indent=1) + "\n"
    if given.json is not None:
        given.json.write_text(text, encoding="utf-8")
    for found in [*result["wrong"], *(one["problem"] for one in result.get("problems", ()))]:
        print(found, file=sys.stderr)
    print(f"{'passed' if result['passed'] else 'FAILED'}: {result.get('requests', 0)} requests")
    return 0 if result["passed"] else 1


def read_requests(path: Path) -> list[Request]:
    """The requests with which something was wrong, from a result."""
    return [Request.from_json(one) for one in json.loads(path.read_text(encoding="utf-8"))["problems"]]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.fuzz",
        description="Sends fuzzed requests of every method to a server of its own. No status may say that the server did not "
        "expect something; it must not end, log a traceback, grow, or answer others differently afterwards.",
    )
    parser.add_argument("--requests", type=int, default=100_000, metavar="N", help="how many (100000)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of everything random (0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="gets the result, with the requests that went wrong")
    parser.add_argument(
        "--replay", type=Path, metavar="FILE", help="send the requests of an earlier --json again, and no others"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
