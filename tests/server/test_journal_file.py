"""The journal's file: what makes it durable, and what it refuses to open."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from server.errors import StartupError
from server.journal.database import JournalFile, open_journal
from server.journal.events import USER, Event, Person, RecordEvents, Status, StoredEvent
from server.journal.migrations import SCHEMA_VERSION, event_hash
from server.journal.writer import JournalWriter, Transaction
from tests.server.people_world import Everyone


def event(event_id: str) -> Event:
    return Event(event_id, Person(USER, "p"), "i", "view", 5)


def accept_all(new: Sequence[tuple[StoredEvent, Person]]) -> list[Status]:
    return [Status.ACCEPTED] * len(new)


def stored(file: JournalFile) -> dict[bytes, int]:
    """Positions by hash of event_id."""
    return dict(file.connection.execute("SELECT event_hash, position FROM events"))


def test_the_pragmas_are_what_durability_and_erasure_need(tmp_path: Path):
    file = open_journal(tmp_path / "tenant")

    def pragma(name: str) -> object:
        return file.connection.pragma(name)

    assert pragma("journal_mode") == "wal"
    assert pragma("synchronous") == 2, "FULL: every commit is synced"
    assert pragma("secure_delete") == 1
    assert pragma("application_id") == 0x54574247
    assert pragma("user_version") == SCHEMA_VERSION
    file.close()


def test_the_epoch_stays_and_the_head_grows_over_reopening(tmp_path: Path):
    epochs, heads = set(), []
    for number in range(3):
        file = open_journal(tmp_path / "tenant")
        writer = JournalWriter(file)
        writer.start()
        epochs.add(file.epoch)
        heads.append(file.head)
        heads.append(writer.submit(RecordEvents([event(f"note-{number}")], 0, Everyone(), accept_all)).result(10)[0].position)
        writer.close()
        file.close()
    [epoch] = epochs
    assert len(epoch) == 16
    assert heads == [0, 1, 1, 2, 2, 3]
    other = open_journal(tmp_path / "another")
    assert other.epoch not in epochs
    other.close()


def test_a_transaction_that_was_cut_off_leaves_nothing_and_moves_no_head(tmp_path: Path):
    directory = tmp_path / "tenant"
    file = open_journal(directory)
    RecordEvents([event("kept")], 0, Everyone(), accept_all).commit(Transaction(file))
    file.connection.execute("UPDATE meta SET value = 1 WHERE key = 'head'")
    file.head = 1
    file.connection.execute("BEGIN IMMEDIATE")
    RecordEvents([event("lost")], 0, Everyone(), accept_all).commit(Transaction(file))
    file.connection.execute("UPDATE meta SET value = 2 WHERE key = 'head'")
    file.close()  # as a crash would: without COMMIT
    again = open_journal(directory)
    assert (again.head, stored(again)) == (1, {event_hash(again.event_key, "kept"): 1})
    again.close()


def test_one_directory_is_open_once_and_free_after_closing(tmp_path: Path):
    file = open_journal(tmp_path / "tenant")
    with pytest.raises(StartupError, match="in use by another process"):
        open_journal(tmp_path / "tenant")
    file.close()
    open_journal(tmp_path / "tenant").close()


@pytest.mark.parametrize("make", [lambda path: path.write_text("x"), lambda path: path.symlink_to(path / "nowhere")])
def test_a_data_directory_that_is_none_is_refused_in_one_line(tmp_path: Path, make: Callable[[Path], object]):
    make(tmp_path / "tenant")
    with pytest.raises(StartupError, match="cannot use the data directory") as caught:
        open_journal(tmp_path / "tenant")
    assert "\n" not in str(caught.value)
