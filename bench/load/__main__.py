"""python -m bench.load: see `--help`. 0: a run that can be trusted; 1: one that cannot; 2: what was asked for is wrong."""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from bench.load.mix import InputError
from bench.load.options import check_outputs, parse

_INVALID = 1
_REFUSED = 2


def main(arguments: list[str] | None = None) -> int:
    """Runs a load, or merges results, and writes JSON and HTML."""
    given = sys.argv[1:] if arguments is None else arguments
    from bench.load.drive import LoadError

    try:
        return _merge(given[1:]) if given[:1] == ["merge"] else _run(given)
    except (InputError, LoadError) as error:
        print(f"error: {error}", file=sys.stderr)
        return _REFUSED
    except KeyboardInterrupt:
        print("error: interrupted; nothing was written", file=sys.stderr)
        return _REFUSED


def _run(arguments: list[str]) -> int:
    options = parse(arguments)
    from bench.load.runs import run  # matplotlib and grpc take a second, which --help need not wait for

    return _write(run(options), options.json, options.html)


def _merge(arguments: list[str]) -> int:
    parser = _Parser(prog="python -m bench.load merge", description="Adds up the results of hosts that sent at the same time.")
    parser.add_argument("results", type=Path, nargs="+", metavar="FILE", help="results of bench.load")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="gets the merged result")
    parser.add_argument("--html", type=Path, required=True, metavar="FILE", help="gets the report")
    options = parser.parse_args(arguments)
    check_outputs(options.json, options.html)
    from bench.load.merge import merge

    return _write(merge(options.results), options.json, options.html)


def _write(result: Mapping[str, Any], json_file: Path, html_file: Path) -> int:
    from bench.load.page import page

    try:
        json_file.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        html_file.write_text(page(result), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{error.filename} cannot be written: {error.strerror}") from None
    print(result["verdict"])
    return 0 if result["valid"] else _INVALID


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(message)


if __name__ == "__main__":
    sys.exit(main())
