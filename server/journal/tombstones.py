"""Who was erased and when, kept so that nobody can be recognised in it and nothing of them comes back.

A file of its own, which a restore of the journal leaves alone. Subjects and event_ids are kept as HMAC-SHA256 with a key that
lies outside the data directory.
"""

import hmac
import secrets
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import apsw

from server.errors import StartupError
from server.journal.database import sync_directory
from server.journal.erasure_key import key_path, read_key
from server.journal.events import Person

FILE_NAME = "tombstones.sqlite"
_APPLICATION_ID = 0x54574254  # "TWBT"
_SCHEMA_VERSION = 1
_SCHEMA = """
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
_ADD_SUBJECT = """
INSERT INTO subjects VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET erased_us = max(erased_us, excluded.erased_us),
epoch = coalesce(excluded.epoch, epoch), first_exported = coalesce(excluded.first_exported, first_exported)
"""
_ADD_EVENT = "INSERT INTO events VALUES (?, ?) ON CONFLICT DO UPDATE SET expires_us = max(expires_us, excluded.expires_us)"
_REMEDY = "put the file back from a copy: without it erased people could come back"


class Exported(NamedTuple):
    """The first export that held events of a person: an epoch of the journal and a position in it."""

    epoch: str
    position: int


class Tombstones:
    """Who was erased. The subjects are in memory; any thread may ask. What was added is on disk when `add` returns."""

    def __init__(self, connection: apsw.Connection, key: bytes, path: Path) -> None:
        self.path = path
        self._connection = connection
        self._key = key
        self._lock = threading.Lock()
        self._subjects: dict[bytes, int] = dict(connection.execute("SELECT hash, erased_us FROM subjects"))

    def __len__(self) -> int:
        return len(self._subjects)

    @property
    def stamp(self) -> str:
        """What names this state of the file. A journal that notes it holds nothing of anybody who was erased until then."""
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
        with self._lock, self._connection as connection:
            connection.execute("DELETE FROM events WHERE expires_us < ?", (erased_us if now_us is None else now_us,))
            connection.executemany(_ADD_SUBJECT, rows)
            connection.executemany(_ADD_EVENT, ((self._event(event), expires_us) for event in event_hashes))
            connection.execute("UPDATE meta SET value = value + 1 WHERE key = 'generation'")
        self._keep((row[0], erased_us) for row in rows)

    def close(self) -> None:
        self._connection.close()

    def _keep(self, rows: Iterable[tuple[bytes, int]]) -> None:
        for hashed, erased_us in rows:
            self._subjects[hashed] = max(erased_us, self._subjects.get(hashed, erased_us))

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
            somebody = connection.execute("SELECT 1 FROM subjects LIMIT 1").fetchone() is not None
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
    with connection:
        version = int(connection.pragma("user_version") or 0)
        if version == 0 and connection.execute("SELECT count(*) FROM sqlite_schema").get == 0:
            connection.execute(_SCHEMA)
            connection.execute("INSERT INTO meta VALUES ('file', ?), ('generation', 0)", (secrets.token_hex(8),))
            connection.pragma("application_id", _APPLICATION_ID)
            connection.pragma("user_version", _SCHEMA_VERSION)
            sync_directory(path.parent)
        elif version != _SCHEMA_VERSION or int(connection.pragma("application_id") or 0) != _APPLICATION_ID:
            raise StartupError(f"{path} is not a tombstone file of this version; upgrade Towerbridge, or {_REMEDY}")


def _key_check(key: bytes) -> bytes:
    return hmac.digest(key, b"key check", "sha256")


def _check_key(connection: apsw.Connection, key: bytes, path: Path) -> None:
    row = connection.execute("SELECT value FROM meta WHERE key = 'key_check'").fetchone()
    if row is None or not hmac.compare_digest(bytes(row[0]), _key_check(key)):
        raise StartupError(f"the erasure key is not the one of {path}; set erasure.key_file to the right one")
