"""Erasure in the journal: a person and all ids that are linked to them, until the bytes are gone from its files."""

import json
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, NamedTuple, TypeVar

import apsw

from server.journal.database import JournalFile
from server.journal.events import HeldEvent, Person
from server.journal.removal import (
    apply_tombstones,
    is_clean,
    is_unswept,
    note_clean,
    note_swept,
    note_unswept,
    remove_people,
)
from server.journal.tombstones import Exported, Tombstones
from server.journal.writer import Transaction
from server.users.directory import Directory

_log = logging.getLogger(__name__)
T = TypeVar("T")
_AUTOMATIC_PAGES = 1000  # SQLite's default: a checkpoint begins when the log has so many
_BUSY_MS = 5000
_PATIENCE_MS = 20  # for readers that hold the log, while every writer waits
_LATEST = """
SELECT max(us) FROM (
  SELECT max(received_us) AS us FROM events WHERE person_key = ?1
  UNION ALL SELECT max(max(given_us, received_us)) FROM consents WHERE person_key = ?1
  UNION ALL SELECT updated_us FROM profiles WHERE person_key = ?1
  UNION ALL SELECT max(linked_us) FROM links WHERE source_key = ?1
)
"""


class Erased(NamedTuple):
    """What was erased from the journal. `keys` is parallel to `people`, without the key of a person who was not known."""

    people: list[Person]
    keys: list[int]
    erased_us: int  # microseconds since 1970, UTC
    rows: Counter[str]  # by table
    trained_releases: list[str]  # those whose training data held events of these people
    unknown_releases: list[str]  # those that do not say which data they saw


class ErasePeople(Generic[T]):
    """Removes a person and all ids linked to them, after the tombstones are on disk.

    The bundles that saw them are looked up before anything is deleted. An unknown person gets a tombstone too, so that their
    late events are refused. From the commit on, SQLite no longer empties its log by itself: see `FreeSpace`.
    """

    alone = True
    rows = 1

    def __init__(
        self,
        person: Person,
        file: JournalFile,
        tombstones: Tombstones,
        directory: Directory,
        *,
        clock_us: Callable[[], int],
        retry_us: int,
        publish: Callable[[Erased, Sequence[HeldEvent]], T],
    ) -> None:
        """retry_us: how long producers may repeat an event. publish: gets what was erased, with the events."""
        self._person = person
        self._file = file
        self._tombstones = tombstones
        self._directory = directory
        self._clock_us = clock_us
        self._retry_us = retry_us
        self._publish = publish
        self._erased: Erased | None = None
        self._events: list[HeldEvent] = []

    def commit(self, transaction: Transaction) -> None:
        connection = transaction.connection
        key = self._directory.find(self._person)
        keys = self._directory.members(key) if key is not None else []
        people = [_subject(connection, one) for one in keys] or [self._person]
        exported = [self._exported(connection, person, one) for person, one in zip(people, keys or [0], strict=True)]
        trained, unknown = seen_by(connection, exported)
        self._events = [event for one in keys for event in _events(connection, one)]
        hashes = [hashed for one in keys for hashed in _hashes(connection, one)]
        erased_us = now_us = self._clock_us()
        latest_us = max((_latest_us(connection, one) for one in keys), default=0)
        if latest_us > erased_us:  # the clock went back; but what is to go from backups is told by its time
            erased_us = latest_us + 1
        was_clean = is_clean(connection, self._tombstones)
        expires_us = erased_us + self._retry_us
        self._tombstones.add(zip(people, exported, strict=True), erased_us, hashes, expires_us, now_us)
        rows = remove_people(connection, keys)
        note_unswept(connection)
        if was_clean:  # otherwise an earlier erasure was cut short, and the next start ends it
            note_clean(connection, self._tombstones)
        transaction.next_position()
        self._erased = Erased(people, keys, erased_us, rows, trained, unknown)

    def publish(self) -> T:
        assert self._erased is not None
        self._file.connection.wal_autocheckpoint(0)
        return self._publish(self._erased, self._events)

    def _exported(self, connection: apsw.Connection, person: Person, key: int) -> Exported | None:
        """The first export with events of the person, by this journal's positions; known from an earlier erasure at least."""
        row = connection.execute("SELECT first_exported FROM people WHERE person_key = ?", (key,)).fetchone()
        before = self._tombstones.exported(person)
        if before is not None and before.epoch == self._file.epoch:
            return before
        return Exported(self._file.epoch, int(row[0])) if row is not None and row[0] is not None else before


class FreeSpace:
    """Makes the bytes of deleted rows go from the journal's files, in steps that other writers hardly notice.

    After `ErasePeople` SQLite does not empty its log into the file by itself until `settle` or `give_up`, so that `find` sees a
    file that stays as it is. `clear`, `settle` and `give_up` are writes; each gives whether it could be done. The first two
    cannot while somebody reads in one long transaction; repeat them.
    """

    def __init__(self, file: JournalFile) -> None:
        self._file = file

    def find(self) -> Iterable[list[int]]:
        """The pages whose free space holds something, some at a time. For any thread."""
        return self._file.pages.with_slack()

    def clear(self, pages: Sequence[int]) -> "OnWriter":
        """Empties the log, and clears these pages and those that were in it."""
        return OnWriter(lambda: empty_log(self._file, pages))

    def settle(self, pages: Sequence[int]) -> "OnWriter":
        """The last `clear`, before `Swept`."""
        return OnWriter(lambda: empty_log(self._file, pages) and self._settled())

    def _settled(self) -> bool:
        # Pages in memory still have what was cleared, and would be written with it again.
        self._file.connection.release_memory()
        return self._give_up()

    def give_up(self) -> "OnWriter":
        """Lets SQLite empty its log again."""
        return OnWriter(self._give_up)

    def _give_up(self) -> bool:
        self._file.connection.wal_autocheckpoint(_AUTOMATIC_PAGES)
        return True


class OnWriter:
    """Something that the thread which writes does between two transactions."""

    alone = True
    rows = 0

    def __init__(self, action: Callable[[], bool]) -> None:
        self._action = action

    def commit(self, transaction: Transaction) -> None:
        pass

    def publish(self) -> bool:
        """Whether it could be done."""
        try:
            return self._action()
        except (OSError, apsw.Error):
            _log.exception("the journal's free space could not be cleared")
            return False


class Swept:
    """Notes that the free space has been cleared, so that the next start does not do it again."""

    alone = True
    rows = 1

    def commit(self, transaction: Transaction) -> None:
        note_swept(transaction.connection)

    def publish(self) -> None:
        pass


def empty_log(file: JournalFile, pages: Iterable[int] = (), *, busy_ms: int = _PATIENCE_MS) -> bool:
    """Empties the write-ahead log and clears the free space of pages, those that were in it included; whether it could."""
    connection = file.connection
    logged = file.pages.logged_pages()
    connection.set_busy_timeout(busy_ms)
    try:
        connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    except apsw.BusyError:
        return False
    finally:
        connection.set_busy_timeout(_BUSY_MS)
    # Who reads while the log is empty keeps everybody from emptying it into the file: https://www.sqlite.org/walformat.html
    connection.execute("BEGIN")
    try:
        connection.execute("SELECT 1 FROM sqlite_schema").fetchall()
        file.pages.clear(logged.union(pages))
    finally:
        connection.execute("COMMIT")
    file.pages.sync()
    return True


def bring_up_to_date(file: JournalFile, tombstones: Tombstones) -> int:
    """Brings a journal that has just been opened up to date with the tombstones; returns how many erased ids it held.

    For the thread that opened it, before anything is read from it or written to it.
    """
    found = apply_tombstones(file.connection, tombstones)
    file.head = int(file.connection.execute("SELECT value FROM meta WHERE key = 'head'").get)
    file.withdrawn = tombstones.waiting
    if is_unswept(file.connection):
        file.connection.wal_autocheckpoint(0)
        pages = [number for some in file.pages.with_slack() for number in some]
        if empty_log(file, pages, busy_ms=_BUSY_MS):
            note_swept(file.connection)
        else:
            _log.warning("somebody reads the journal: what was removed is still in its log, until the next start or erasure")
        file.connection.release_memory()
        file.connection.wal_autocheckpoint(_AUTOMATIC_PAGES)
    return found


def seen_by(connection: apsw.Connection, exported: Iterable[Exported | None]) -> tuple[list[str], list[str]]:
    """The releases served here whose training data held the people of these exports; those of which it cannot be told."""
    first = [one for one in exported if one is not None]
    meta = dict(connection.execute("SELECT key, value FROM meta WHERE key IN ('epoch', 'earlier_epochs')"))
    # By epoch: up to which position it is known. A restore ended the earlier ones; what was exported later is not known here.
    known = {str(meta["epoch"]): sys.maxsize, **json.loads(str(meta.get("earlier_epochs", "{}")))}
    trained, unknown = [], []
    bundles = connection.execute(
        "SELECT release_id, watermark_epoch, watermark_position FROM bundles ORDER BY first_served_us, release_id"
    )
    for release_id, epoch, position in bundles:
        upto = known.get(str(epoch), -1)
        if any(one.position <= position if one.epoch == epoch else one.position <= min(position or 0, upto) for one in first):
            trained.append(release_id)
        elif position is None or position > upto:
            unknown.append(release_id)
    return trained, unknown


def _subject(connection: apsw.Connection, key: int) -> Person:
    row = connection.execute("SELECT kind, subject_id FROM people WHERE person_key = ?", (key,)).fetchone()
    if row is None:
        raise LookupError("the directory knows a person whom the journal does not")
    return Person(*row)


def _events(connection: apsw.Connection, key: int) -> list[HeldEvent]:
    rows = connection.execute(
        "SELECT person_key, position, item_id, type FROM events WHERE person_key = ? AND item_id IS NOT NULL", (key,)
    )
    return [HeldEvent(*row) for row in rows]


def _latest_us(connection: apsw.Connection, key: int) -> int:
    """When the last of what is held under a key came in; 0: never."""
    return int(connection.execute(_LATEST, (key,)).get or 0)


def _hashes(connection: apsw.Connection, key: int) -> list[bytes]:
    return [row[0] for row in connection.execute("SELECT event_hash FROM events WHERE person_key = ?", (key,))]
