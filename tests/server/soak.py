"""python -m tests.server.soak: simulated power losses, with every kind of write; the result is committed.

Each loss is an image of the disk at a random moment: what was synced and a random part of what was not, torn at sectors. The
image is opened; its rows must be those after the last acknowledged commit, or after the one that was being written. One image
of each life is the disk of the next life, so that recoveries are cut off too. The same without syncs must be found faulty.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from tqdm import tqdm

from bench.hardware import hardware
from tests.server.mixed_writes import Life, Sent, problems
from tests.server.power_loss import Disk

LOSSES_A_LIFE = 4
LIVES_A_JOURNAL = 10  # so that the checks stay quick
CHANCES = {"synced": 0.1, "sync": 0.1, "write": 0.01, "truncate": 0.2, "delete": 0.3}


class Loss(NamedTuple):
    """A power loss: what was left, what had been sent by then, and how many states the journal had gone through."""

    image: Path
    sent: Sent
    states: int
    operation: str


@dataclass
class Tally:
    losses: int = 0
    lives: int = 0
    commits: int = 0
    writes: Counter[str] = field(default_factory=Counter)
    acknowledged_events_checked: int = 0
    operations: Counter[str] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)


class Lightning:
    """Takes images of the disk at random operations while a life goes on."""

    def __init__(self, disk: Disk, sent: Sent, images: Path, random: Random) -> None:
        self.losses: list[Loss] = []
        self.life: Life | None = None
        self._disk, self._sent, self._images, self._random = disk, sent, images, random
        disk.watch = self

    def __call__(self, operation: str, file: str) -> None:
        if self._random.random() >= CHANCES[operation]:
            return
        if len(self.losses) == LOSSES_A_LIFE:
            shutil.rmtree(self.losses.pop(self._random.randrange(LOSSES_A_LIFE)).image)
        image = self._images / str(self._random.getrandbits(64))
        self._disk.image(image, self._random)
        states = len(self.life.states) if self.life is not None else 0
        self.losses.append(Loss(image, self._sent.snapshot(), states, f"{operation} {file}"))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.server.soak", description=__doc__)
    parser.add_argument("--losses", type=int, default=1_000, help="simulated power losses (1000)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (0)")
    parser.add_argument("--out", type=Path, default=Path("docs/soak/power-loss.json"))
    arguments = parser.parse_args()
    started = time.monotonic()
    found = power_losses(arguments.losses, arguments.seed)
    blind = power_losses(max(20, arguments.losses // 20), arguments.seed, pragma="synchronous=off")
    result = {
        "passed": not found.problems and bool(blind.problems),
        "power_losses": found.losses,
        "lives": found.lives,
        "commits": found.commits,
        "writes": dict(sorted(found.writes.items())),
        "acknowledged_events_checked": found.acknowledged_events_checked,
        "during": dict(sorted(found.operations.items())),
        "problems": dict(found.problems),
        "examples": found.examples[:10],
        "without_syncs": {"power_losses": blind.losses, "problems": dict(blind.problems)},
        "seconds": round(time.monotonic() - started, 1),
        "hardware": hardware(),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"power-loss: {'passed' if result['passed'] else 'FAILED'} {result}")
    return 0 if result["passed"] else 1


def power_losses(wanted: int, seed: int, *, pragma: str = "") -> Tally:
    """Lives of journals, one after the other on one disk, until there were so many power losses."""
    tally, random = Tally(), Random(seed)
    with tqdm(total=wanted, unit=" losses", disable=not sys.stderr.isatty()) as progress:
        while tally.losses < wanted:
            with tempfile.TemporaryDirectory() as directory:
                for losses in _journal(Path(directory), random, tally, pragma):
                    progress.update(losses)
                    if tally.losses >= wanted:
                        break
    return tally


def _journal(root: Path, random: Random, tally: Tally, pragma: str) -> Any:
    """The lives of one journal; yields the number of losses after each."""
    directory, sent = root / "0" / "default", Sent(root / "erasure-key")
    for number in range(1, LIVES_A_JOURNAL + 1):
        images = root / str(number)
        losses, states = _live(directory, images, sent, random, tally, pragma)
        for loss in losses:
            _check(loss, states, root / "check" / "default", tally)
        yield len(losses)
        if not losses or tally.problems:
            return
        struck = random.choice(losses)
        # The next life is on the disk as the power loss left it; the key of the tombstones lies beside the data directory.
        shutil.rmtree(directory.parent)
        shutil.copytree(struck.image, directory)
        shutil.rmtree(images)
        sent.acknowledged, sent.erased = dict(struck.sent.acknowledged), set(struck.sent.erased)


def _live(
    directory: Path, images: Path, sent: Sent, random: Random, tally: Tally, pragma: str
) -> tuple[list[Loss], list[bytes]]:
    disk = Disk(directory, default=True)  # the tombstones lie on it too
    try:
        with disk.seeing_directory_syncs():
            lightning = Lightning(disk, sent, images, random)
            life = Life(directory, sent, random)
            lightning.life = life
            if pragma:
                life.connection.execute(f"PRAGMA {pragma}").fetchall()
            for _ in range(random.randint(4, 12)):
                life.group()
            life.close()
    finally:
        disk.close()
    tally.lives += 1
    tally.commits += len(life.states) - 1
    tally.writes += life.kinds
    return lightning.losses, life.states


def _check(loss: Loss, states: list[bytes], directory: Path, tally: Tally) -> None:
    """Opens a copy of the image, which may be the disk of the next life."""
    shutil.rmtree(directory.parent, ignore_errors=True)
    shutil.copytree(loss.image, directory)
    now = max(0, loss.states - 1)
    found = problems(directory, loss.sent, states[now : now + 2])
    tally.losses += 1
    tally.operations[loss.operation] += 1
    tally.acknowledged_events_checked += len(loss.sent.acknowledged)
    tally.problems.update(problem.partition(":")[0] for problem in found)
    tally.examples += [f"{loss.operation}: {problem}" for problem in found]


if __name__ == "__main__":
    raise SystemExit(main())
