"""What the replay is asked to do: the command line, checked before any work. Imports nothing heavy."""

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from training.errors import ConfigError

_EPILOG = """\
examples:
  python -m bench.freshness --data data/shop --bundle bundles/before --json freshness.json --plot freshness.png
  python -m bench.freshness --data data/shop --bundle bundles/before --json freshness.json --through-service event 1h --items

Events are cut at four fifths in time. Where there is no bundle at --bundle yet, one is trained on what was before the cut
and kept there; without --bundle it is not kept. docs/freshness.md says what is measured, and what the JSON holds.
"""
_STALE = ("event", "10s", "2min", "10min", "1h", "1d", "never")
_PICTURES = (".png", ".svg", ".pdf")
_LONGEST_LAG_S = 365 * 86_400


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; --help lists the options")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options of a command line. Raises ConfigError for what is wrong, an output that cannot be written included."""
    parsed = _parser().parse_args(arguments)
    _check_output("--json", parsed.json)
    if parsed.plot is not None:
        _check_output("--plot", parsed.plot)
        if parsed.plot.suffix.lower() not in _PICTURES:
            raise ConfigError(f"--plot {parsed.plot}: must end with {', '.join(_PICTURES[:-1])} or {_PICTURES[-1]}")
        if parsed.plot.resolve() == parsed.json.resolve():
            raise ConfigError(f"--json and --plot are the same file, {parsed.json}; give two")
    return parsed


def _check_output(option: str, file: Path) -> None:
    """What can be known before the minutes of work of whether a file can be written; its folders may have to be made."""
    if file.is_dir():
        raise ConfigError(f"{option} {file}: is a folder; give a file")
    there = next(path for path in (file.absolute(), *file.absolute().parents) if path.exists())
    if there != file.absolute() and not there.is_dir():
        raise ConfigError(f"{option} {file}: {there} is no folder; give another path")
    if not os.access(there, os.W_OK):
        raise ConfigError(f"{option} {file}: {there} may not be written; give another path, or the permission")


def _lag(text: str) -> float:
    """Below 0 a vector would hold what comes after the moment that it is asked for: the very target."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= _LONGEST_LAG_S:  # nan is neither
        raise argparse.ArgumentTypeError(f"must be 0 to {_LONGEST_LAG_S:,} seconds, is {text}")
    return seconds


def _whole(least: int, most: int) -> Callable[[str], int]:
    """An argparse type: a whole number from least to most."""

    def whole(text: str) -> int:
        if not (text.isdecimal() and least <= int(text) <= most):
            raise argparse.ArgumentTypeError(f"must be a whole number from {least:,} to {most:,}, is {text}")
        return int(text)

    return whole


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m bench.freshness",
        description="Replays real events to measure what a fresh user vector, and a new item found soon, are worth.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="DATA", help="what `python -m training import` wrote; with real times")
    add("--bundle", type=Path, metavar="BUNDLE", help="trained on the events before the cut; made if it is not there")
    add("--config", type=Path, help="settings of the training, as `python -m training fit` takes them")
    add("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="the same one by one: training.epochs=10")
    add(
        "--through-service",
        nargs="*",
        choices=_STALE,
        metavar="POLICY",
        help="also replay through a running server, and compare: event (the default), or others",
    )
    add("--items", action="store_true", help="also measure items that came up after the cut")
    add(
        "--lag",
        type=_lag,
        default=0.0,
        metavar="SECONDS",
        help="between an event and the moment from which vectors can hold it, 0 by default",
    )
    add("--seed", type=_whole(0, 2**32 - 1), default=0, help="of the phases, the bootstrap and the training")
    add("--resamples", type=_whole(1, 100_000), default=2000, help="of the bootstrap over users, 2,000 by default")
    add("--threads", type=_whole(1, 1024), default=1, help="CPU threads, 1 by default")
    add("--json", type=Path, required=True, metavar="FILE", help="gets the result")
    add("--plot", type=Path, metavar="FILE", help="gets a picture: .png, .svg or .pdf")
    add("--quiet", action="store_true", help="no progress on stderr")
    return parser
