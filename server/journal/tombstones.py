"""Who was erased and who withdrew consent, kept so that nobody can be recognised in it and nothing of that is undone.

A file of its own, which a restore of the journal leaves alone. Subjects and event_ids are kept as HMAC-SHA256 with a key that
lies outside the data directory.
"""

import hmac
import secrets
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import apsw

from server.errors import StartupError
from server.journal.database import atomic, sync_directory
from server.journal.erasure_key import key_path, read_key
from server.journal.events import Person
from server.users.directory import Purpose

FILE_NAME = "tombstones.sqlite"
_APPLICATION_ID = 0x54574254  # "TWBT"
_SCHEMA_VERSION = 2
_VERSION_1 = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value ANY NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE subjects (
  hash BLOB PRIMARY KEY,              -- HMAC of kind and id
  erased_us INTEGER NOT NULL,         -- microseconds since 1970, UTC
  epoch TEXT,                         -- the journal, and in it the first export that held events of the subject; NULL: none
  first_exported INTEGER
) STRICT, WITHOUT ROWID;
CREATE TABLE events (
  hash BLOB PRIMARY KEY,              -- HMAC of the journal's hash of the event_id
  expires_us INTEGER NOT NULL         -- when no producer repeats the event any more
) STRICT, WITHOUT ROWID;
"""
_VERSION_2 = """
CREATE TABLE withdrawals (
  hash BLOB NOT NULL,                 -- HMAC of kind and id
  purpose INTEGER NOT NULL,           -- 1 personalisation, 2 training; the decision that counts is no
  given_us INTEGER NOT NULL,          -- microseconds since 1970, UTC
  is_waiting INTEGER NOT NULL,        -- 1: a journal lost the subject, so the decision waits until they are known again
  PRIMARY KEY (hash, purpose)
) STRICT, WITHOUT ROWID;
"""
_ADD_SUBJECT = """
INSERT INTO subjects VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET erased_us = max(erased_us, excluded.erased_us),
epoch = coalesce(excluded.epoch, epoch), first_exported = coalesce(excluded.first_exported, first_exported)
"""
_ADD_EVENT = "INSERT INTO events VALUES (?, ?) ON CONFLICT DO UPDATE SET expires_us = max(expires_us, excluded.expires_us)"
_WITHDRAW = """
INSERT INTO withdrawals VALUES (?, ?, ?, 0) ON CONFLICT DO UPDATE SET given_us = excluded.given_us
WHERE given_us < excluded.given_us
"""
_NEXT_GENERATION = "UPDATE meta SET value = value + 1 WHERE key = 'generation'"
_REMEDY = "put the file back from a copy: without it erased people could come back, and consent that was withdrawn"


class Exported(NamedTuple):
    """The first export that held events of a person: an epoch of the journal and a position in it."""

    epoch: str
    position: int


class Tombstones:
    """Who was erased, and who withdrew consent. Any thread may ask. What was written down is on disk when the method returns.

    The erased are in memory. Withdrawals are not, since the journal has them too, but for those of subjects whom it lost.
    """

    def __init__(self, connection: apsw.Connection, key: bytes, path: Path) -> None:
        self.path = path
        self._connection = connection
        self._key = key
        self._lock = threading.Lock()
        self._subjects: dict[bytes, int] = dict(connection.execute("SELECT hash, erased_us FROM subjects"))
        self._waiting = _waiting(connection)

    def __len__(self) -> int:
        return len(self._subjects)

    @property
    def stamp(self) -> str:
        """What names this state of the file. A journal that notes it is up to date with all of it."""
        with self._lock:
            meta = dict(self._connection.execute("SELECT key, value FROM meta WHERE key IN ('file', 'generation')"))
        return f"{meta['file']}:{meta['generation']}"

    def erased_us(self, person: Person) -> int | None:
        """When the person was erased last, microseconds since 1970; None: never. Events up to then are refused."""
        return self._subjects.get(self._subject(person)) if self._subjects else None

    def is_erased_event(self, event_hash: bytes) -> bool:
        """Whether an event of this id (its hash in the journal) was erased, as long as producers may repeat it."""
        with self._lock:
            rows = self._connection.execute("SELECT 1 FROM events WHERE hash = ?", (self._event(event_hash),))
            return rows.fetchone() is not None

    def exported(self, person: Person) -> Exported | None:
        """The first export that held events of a person, as known when the person was erased."""
        with self._lock:
            rows = self._connection.execute(
                "SELECT epoch, first_exported FROM subjects WHERE hash = ? AND epoch IS NOT NULL", (self._subject(person),)
            )
            row = rows.fetchone()
        return Exported(*row) if row is not None else None

    def add(
        self,
        subjects: Iterable[tuple[Person, Exported | None]],
        erased_us: int,
        event_hashes: Iterable[bytes] = (),
        expires_us: int = 0,
        now_us: int | None = None,
    ) -> None:
        """Writes down that people were erased, with the ids of their events. A later time wins over an earlier one.

        event_hashes: as the journal has them. expires_us: until when producers may repeat those events. now_us: the time
        now, if it is not erased_us.
        """
        rows = [(self._subject(person), erased_us, *(exported or (None, None))) for person, exported in subjects]
        hashes = [row[0] for row in rows]
        with self._writing() as connection:
            connection.execute("DELETE FROM events WHERE expires_us < ?", (erased_us if now_us is None else now_us,))
            connection.executemany(_ADD_SUBJECT, rows)
            connection.executemany("DELETE FROM withdrawals WHERE hash = ?", [(hashed,) for hashed in hashes])
            connection.executemany(_ADD_EVENT, ((self._event(event), expires_us) for event in event_hashes))
            connection.execute(_NEXT_GENERATION)
        for hashed in hashes:
            self._subjects[hashed] = max(erased_us, self._subjects.get(hashed, erased_us))
            self._waiting.pop(hashed, None)

    def withdraw(self, person: Person, given_us: Mapping[Purpose, int]) -> None:
        """Writes down when the subject said no to purposes, microseconds since 1970, where that is what counts."""
        hashed = self._subject(person)
        with self._writing() as connection:
            before = connection.total_changes()
            connection.executemany(_WITHDRAW, [(hashed, int(purpose), us) for purpose, us in given_us.items()])
            if connection.total_changes() > before:  # a repeat costs no write
                connection.execute(_NEXT_GENERATION)

    def forget_withdrawals(self, person: Person, purposes: Sequence[Purpose]) -> None:
        """The subject said yes to purposes since; the journal must hold that already, or a crash would lose the no as well."""
        if not self.withdrawn(person).keys() & set(purposes):
            return  # as nearly always, without waiting for whoever writes to the file
        hashed = self._subject(person)
        with self._writing() as connection:
            connection.executemany(
                "DELETE FROM withdrawals WHERE hash = ? AND purpose = ?", [(hashed, int(purpose)) for purpose in purposes]
            )
        for purpose in purposes:
            self._waiting.get(hashed, {}).pop(purpose, None)

    def withdrawn(self, person: Person) -> dict[Purpose, int]:
        """When the subject said no, microseconds since 1970, by purpose, where that was their decision that counted."""
        with self._lock:
            rows = self._connection.execute(
                "SELECT purpose, given_us FROM withdrawals WHERE hash = ?", (self._subject(person),)
            )
            return {Purpose(purpose): us for purpose, us in rows}

    def waiting(self, person: Person) -> Mapping[Purpose, int]:
        """`withdrawn`, of a subject whom the journal does not know: they said no before a restore, but after the backup."""
        return self._waiting.get(self._subject(person), {}) if self._waiting else {}

    def let_wait(self, known: Iterable[Person]) -> None:
        """The journal knows these subjects only: the withdrawals of all others wait until it does."""
        hashes = {self._subject(person) for person in known}
        with self._writing() as connection:
            lost = [
                row
                for row in connection.execute("SELECT DISTINCT hash FROM withdrawals WHERE NOT is_waiting")
                if row[0] not in hashes
            ]
            connection.executemany("UPDATE withdrawals SET is_waiting = 1 WHERE hash = ?", lost)
            self._waiting = _waiting(connection)

    def close(self) -> None:
        self._connection.close()

    @contextmanager
    def _writing(self) -> Iterator[apsw.Connection]:
        with self._lock, atomic(self._connection):
            yield self._connection

    def _subject(self, person: Person) -> bytes:
        return hmac.digest(self._key, f"subject {person.kind}:{person.subject_id}".encode(), "sha256")

    def _event(self, event_hash: bytes) -> bytes:
        return hmac.digest(self._key, b"event " + event_hash, "sha256")


def open_tombstones(directory: Path, key_file: Path | None = None) -> Tombstones:
    """Opens the tombstones of a tenant's directory, and makes file and key if they are not there. Several processes may.

    key_file: erasure.key_file. Raises StartupError if the key is not the right one, or not safe, or the file is damaged.
    """
    path = directory / FILE_NAME
    key_file = key_path(directory.parent, key_file)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        connection = _connect(path)
        try:
            _open(connection, path)
            somebody = connection.execute("SELECT EXISTS (SELECT 1 FROM subjects UNION ALL SELECT 1 FROM withdrawals)").get
            key = read_key(key_file, may_make=not somebody)
            if not somebody:
                connection.execute("INSERT OR REPLACE INTO meta VALUES ('key_check', ?)", (_key_check(key),))
            _check_key(connection, key, path)
            return Tombstones(connection, key, path)
        except BaseException:
            connection.close()
            raise
    except (apsw.NotADBError, apsw.CorruptError) as error:
        raise StartupError(f"{path} is damaged ({error}); {_REMEDY}") from None
    except apsw.Error as error:
        raise StartupError(f"cannot open {path}: {error}; check the directory and its permissions") from None
    except OSError as error:
        raise StartupError(f"cannot use the data directory {directory}: {error.strerror}") from None


def _connect(path: Path) -> apsw.Connection:
    connection = apsw.Connection(str(path))
    connection.set_busy_timeout(5000)
    return connection


def _open(connection: apsw.Connection, path: Path) -> None:
    connection.pragma("journal_mode", "delete")
    # EXTRA: the directory is forced to disk too once the rollback journal is deleted, or a power loss could bring that back.
    connection.pragma("synchronous", "extra")
    connection.pragma("secure_delete", True)
    if _is_current(connection):
        return  # as nearly always: without waiting for whoever writes to it
    with atomic(connection):
        version = int(connection.pragma("user_version") or 0)
        if version == 0 and connection.execute("SELECT count(*) FROM sqlite_schema").get == 0:
            connection.execute(_VERSION_1)
            connection.execute("INSERT INTO meta VALUES ('file', ?), ('generation', 0)", (secrets.token_hex(8),))
            connection.pragma("application_id", _APPLICATION_ID)
            sync_directory(path.parent)
        elif not 1 <= version <= _SCHEMA_VERSION or int(connection.pragma("application_id") or 0) != _APPLICATION_ID:
            raise StartupError(f"{path} is not a tombstone file of this version; upgrade Towerbridge, or {_REMEDY}")
        if version < _SCHEMA_VERSION:
            connection.execute(_VERSION_2)
            connection.pragma("user_version", _SCHEMA_VERSION)


def _is_current(connection: apsw.Connection) -> bool:
    found = tuple(int(connection.pragma(name) or 0) for name in ("user_version", "application_id"))
    return found == (_SCHEMA_VERSION, _APPLICATION_ID)


def _waiting(connection: apsw.Connection) -> dict[bytes, dict[Purpose, int]]:
    found: dict[bytes, dict[Purpose, int]] = {}
    for hashed, purpose, given_us in connection.execute("SELECT hash, purpose, given_us FROM withdrawals WHERE is_waiting"):
        found.setdefault(hashed, {})[Purpose(purpose)] = given_us
    return found


def _key_check(key: bytes) -> bytes:
    return hmac.digest(key, b"key check", "sha256")


def _check_key(connection: apsw.Connection, key: bytes, path: Path) -> None:
    row = connection.execute("SELECT value FROM meta WHERE key = 'key_check'").fetchone()
    if row is None or not hmac.compare_digest(bytes(row[0]), _key_check(key)):
        raise StartupError(f"the erasure key is not the one of {path}; set erasure.key_file to the right one")
