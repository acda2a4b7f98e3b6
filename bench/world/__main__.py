"""python -m bench.world: see `--help`."""

import argparse
import shutil
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import numpy as np

from bench.world.ids import BUNDLE, DATA, Ids, IdsError, read_ids, write_ids

_REFUSED = 2
_TENANT = "default"


def main(arguments: list[str] | None = None) -> int:
    """Makes the world; 2 for what cannot be made, with one line that says why."""
    try:
        options = _parser().parse_args(arguments)
    except _UsageError as error:
        print(f"error: {error}; --help lists the options", file=sys.stderr)
        return _REFUSED
    problem = _problem(options)
    if problem:
        print(f"error: {problem}", file=sys.stderr)
        return _REFUSED
    from index.bundle import BundleError  # torch, and so everything below, takes seconds that --help need not wait
    from server.errors import StartupError

    started = time.perf_counter()
    try:
        release_id = make_world(
            options.out, options.items, options.users, options.dim, options.seed, options.history, options.until
        )
    except (BundleError, StartupError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return _REFUSED
    print(
        f"{options.out}: release {release_id}, {options.items} items x {options.dim}, {options.users} people with "
        f"{options.history} events each, in {time.perf_counter() - started:.0f} s\n"
        f"serve it: python -m server --bundle {options.out / BUNDLE} --data {options.out / DATA}"
    )
    return 0


def make_world(out: Path, items: int, users: int, dim: int, seed: int, history: int = 50, until: datetime | None = None) -> str:
    """Writes bundle, data and ids.json below `out`, and returns the release id.

    A seed and a time give the same items, vectors, people and histories; the journal's epoch and keys are random as any's.
    Of what is in `out`, only the bundle, the default tenant's data and ids.json are replaced. Raises BundleError, StartupError
    (a server uses the data) or OSError.
    """
    from bench.world.items import items_table, make_items
    from bench.world.people import make_people
    from bench.world.towers import EVENT_TYPES, write_world_bundle
    from server.journal.database import lock_directory

    people = out / DATA / _TENANT
    if people.exists():
        lock_directory(people).close()  # before anything is replaced

    for_items, for_table, for_people = (np.random.default_rng(one) for one in np.random.SeedSequence(seed).spawn(3))
    made = make_items(items, dim, for_items)
    out.mkdir(parents=True, exist_ok=True)
    release_id = write_world_bundle(out / BUNDLE, made, items_table(made, for_table), seed)
    until_us = round((until or datetime.now(UTC)).timestamp() * 1e6)
    if people.exists():
        shutil.rmtree(people)  # of an earlier world: the bundle was replaced too
    names = make_people(people, made, users, history, until_us, for_people)
    write_ids(out, Ids(names, made.item_ids, list(EVENT_TYPES), dim, seed))
    return release_id


def _problem(options: argparse.Namespace) -> str | None:
    """Why this cannot be made."""
    out: Path = options.out
    if out.exists() and not out.is_dir():
        return f"{out} is a file; give a folder"
    if out.is_dir() and any(out.iterdir()) and not _is_world(out):
        return f"{out} is not empty and was not made by bench.world; give another folder"
    if not 1 <= options.history <= 1_000:
        return f"--history is {options.history}; it must be 1 to 1000, as many as a server keeps of a person"
    if options.dim < 4:
        return f"--dim is {options.dim}; it must be at least 4"
    return None


def _is_world(folder: Path) -> bool:
    """Whether bench.world made it: an ids.json alone can be anyone's, beside data that must not be lost."""
    try:
        ids = read_ids(folder)
    except IdsError:
        return False
    return ids.dim is not None and ids.seed is not None


class _UsageError(Exception):
    """Arguments that are wrong. One line."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _UsageError(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m bench.world",
        description="Makes a seeded bundle, with the towers that training makes by default, and the journal of people who "
        "agreed to personalisation and have a history each, for python -m server and python -m bench.load.",
    )
    add = parser.add_argument
    add("--items", type=_positive, required=True, metavar="N", help="items in the catalogue")
    add("--users", type=_positive, required=True, metavar="U", help="people")
    add("--dim", type=_positive, default=64, metavar="D", help="components of a vector, at least 4 (64)")
    add(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="gets bundle/, data/ and ids.json; an earlier world is replaced, other files are kept",
    )
    add("--seed", type=_natural, default=0, metavar="S", help="of everything random (0)")
    add("--history", type=_positive, default=50, metavar="N", help="events of each person (50)")
    add("--until", type=_time, metavar="TIME", help="ISO time of the last event; with the same seed: the same histories (now)")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError("must be a whole number from 1")
    return int(text)


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError("must be a whole number from 0")
    return int(text)


def _time(text: str) -> datetime:
    try:
        value = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError("must be an ISO time, such as 2026-01-31T12:00:00Z") from None
    return value if value.tzinfo else value.replace(tzinfo=UTC)


if __name__ == "__main__":
    sys.exit(main())
