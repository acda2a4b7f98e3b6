"""The power fails while events are written: what was acknowledged is there, once, and the file is whole."""

import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest

from server.journal.database import open_journal
from server.journal.events import Event
from server.journal.verify import verify
from tests.server.power_loss import SECTOR, Disk
from tests.server.producer import PATIENCE_S, Producer, journal, problems

GOLDEN = Path(__file__).parent / "golden_journal_v1" / "journal.sqlite"
SMALL_LOG_PAGES = 25  # a checkpoint every few commits, so that the power fails in checkpoints too


class Loss(NamedTuple):
    """What a power loss left, and what had been sent and acknowledged when it came."""

    image: Path
    sent: dict[str, Event]
    acknowledged: dict[str, int]
    when: str


class Lightning:
    """Makes the power fail at every sync, and at some of the other operations, without disturbing the run."""

    def __init__(self, disk: Disk, producer: Producer, images: Path, *, seed: int, writes: float = 0.05) -> None:
        self.losses: list[Loss] = []
        self._disk, self._producer, self._images = disk, producer, images
        self._random = Random(seed)
        self._writes = writes
        self._numbers = count()
        disk.watch = self

    def __call__(self, operation: str, file: str) -> None:
        number = next(self._numbers)
        if operation in ("write", "truncate") and self._random.random() >= self._writes:
            return
        image = self._images / str(number)
        self._disk.image(image, self._random)
        self.losses.append(
            Loss(image, dict(self._producer.sent), dict(self._producer.acknowledged), f"{operation} {number} of {file}")
        )


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path / "tenant")
    with made.seeing_directory_syncs():
        yield made
    made.close()


def found(losses: list[Loss]) -> list[str]:
    """What is wrong after each of the losses."""
    wrong = []
    for loss in losses:
        wrong += [f"{loss.when}: {problem}" for problem in problems(loss.image, loss.sent, loss.acknowledged)]
        shutil.rmtree(loss.image)
    return wrong


def produce(disk: Disk, producer: Producer, *pragmas: str, groups: int = 8) -> None:
    """Sends groups of batches, several of them at once."""
    with journal(disk.directory, disk.name) as (file, writer, people):
        file.connection.wal_autocheckpoint(SMALL_LOG_PAGES)
        for pragma in pragmas:
            file.connection.execute(f"PRAGMA {pragma}").fetchall()
        for _ in range(groups):
            batches = [producer.batch() for _ in range(producer.random.randint(1, 4))]
            for future in [producer.submit(writer, people, batch) for batch in batches]:
                future.result(PATIENCE_S)


@pytest.mark.parametrize("seed", range(8))
def test_what_was_acknowledged_survives_a_power_loss_at_any_sync_and_write_and_is_there_once(
    disk: Disk, tmp_path: Path, seed: int
):
    producer = Producer(Random(seed))
    lightning = Lightning(disk, producer, tmp_path / "images", seed=seed)
    produce(disk, producer)
    assert len(lightning.losses) > 40
    assert len({len(loss.acknowledged) for loss in lightning.losses}) > 5, "it struck at many stages"
    assert any(loss.when.split()[-1] == "journal.sqlite" for loss in lightning.losses), "in checkpoints too"
    assert not found(lightning.losses)


def test_no_power_loss_while_the_journal_is_made_or_opened_again_leaves_what_cannot_be_opened(disk: Disk, tmp_path: Path):
    producer = Producer(Random(0))
    lightning = Lightning(disk, producer, tmp_path / "images", seed=0, writes=1.0)
    for _ in range(6):
        produce(disk, producer, groups=1)
    assert {"delete", "sync", "truncate", "write"} <= {loss.when.split()[0] for loss in lightning.losses}
    assert not found(lightning.losses)


def test_a_power_loss_during_the_recovery_from_a_power_loss_loses_nothing(tmp_path: Path):
    """Twenty lives of one journal, each ended by a power loss at a random operation, opening included."""
    random, producer, directory = Random(7), Producer(Random(7)), tmp_path / "0"
    for life in range(1, 21):
        disk = Disk(directory)
        with disk.seeing_directory_syncs():
            lightning = Lightning(disk, producer, tmp_path / f"images-{life}", seed=life, writes=1.0)
            produce(disk, producer, groups=2)
        disk.close()
        struck = random.choice(lightning.losses)
        producer.acknowledged = dict(struck.acknowledged)
        directory = struck.image
    assert not problems(directory, producer.sent, producer.acknowledged)


def test_a_power_loss_while_an_older_journal_is_brought_up_to_date_loses_nothing(tmp_path: Path):
    directory = tmp_path / "tenant"
    directory.mkdir()
    shutil.copy(GOLDEN, directory)
    disk = Disk(directory)
    with disk.seeing_directory_syncs():
        lightning = Lightning(disk, Producer(Random(0)), tmp_path / "images", seed=0, writes=1.0)
        open_journal(directory, vfs=disk.name).close()
    disk.close()
    expected = verify(directory / "journal.sqlite")
    assert expected.counts["events"] and not expected.problems
    assert len(lightning.losses) > 10
    for loss in lightning.losses:
        open_journal(loss.image).close()
        assert verify(loss.image / "journal.sqlite") == expected, loss.when


def test_frames_of_the_log_that_were_torn_are_dropped_and_earlier_commits_are_kept(disk: Disk, tmp_path: Path):
    """The last commit's frames are cut or spoiled at every sector, in turn: it goes, whole, and nothing else does."""
    producer = Producer(Random(3))
    with journal(disk.directory, disk.name) as (file, writer, people):
        for _ in range(3):
            producer.submit(writer, people, producer.batch(5)).result(PATIENCE_S)
        earlier, log = dict(producer.acknowledged), disk.directory / "journal.sqlite-wal"
        start = log.stat().st_size
        producer.submit(writer, people, producer.batch(5)).result(PATIENCE_S)
        content, main = log.read_bytes(), (disk.directory / "journal.sqlite").read_bytes()
    assert len(content) > start + 4 * SECTOR
    for place in range(start, len(content), SECTOR):
        garbage = Random(place).randbytes(min(SECTOR, len(content) - place))
        for name, torn in (("cut", content[:place]), ("spoiled", content[:place] + garbage + content[place + SECTOR :])):
            image = tmp_path / f"{name}-{place}"
            image.mkdir()
            (image / "journal.sqlite").write_bytes(main)
            (image / "journal.sqlite-wal").write_bytes(torn)
            with journal(image) as (file, _, _):
                [(count_,)] = file.connection.execute("SELECT count(*) FROM events").fetchall()
            assert count_ == len(earlier), "all of the torn commit is gone, and nothing else"
            assert not problems(image, producer.sent, earlier)


def test_the_instrument_finds_the_losses_of_a_journal_that_does_not_sync_its_commits(disk: Disk, tmp_path: Path):
    producer = Producer(Random(1))
    lightning = Lightning(disk, producer, tmp_path / "images", seed=1)
    produce(disk, producer, "synchronous=normal")
    wrong = found(lightning.losses)
    assert any("was acknowledged at" in problem for problem in wrong)
    assert not any("damaged" in problem for problem in wrong), "NORMAL loses commits and keeps the file whole"


def test_the_instrument_finds_the_damage_to_a_journal_that_never_syncs(disk: Disk, tmp_path: Path):
    producer = Producer(Random(1))
    # How batches fall into commits is the threads' affair: enough losses that some of them damage the file in any case.
    lightning = Lightning(disk, producer, tmp_path / "images", seed=1, writes=0.5)
    produce(disk, producer, "synchronous=off")
    assert any("damaged" in problem for problem in found(lightning.losses))
