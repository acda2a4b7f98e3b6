"""The SQLite file: opening, locking, schema."""

import fcntl
import os
import secrets
from pathlib import Path
from typing import IO

import apsw

from server.errors import StartupError

SCHEMA_VERSION = 1
FILE_NAME = "journal.sqlite"
APPLICATION_ID = 0x54574247  # "TWBG", so that `file` and a reader can tell

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value ANY NOT NULL) STRICT, WITHOUT ROWID;
-- A person is a subject as received: (kind, id). Everything else refers to the random key.
CREATE TABLE people (
  person_key INTEGER PRIMARY KEY,
  kind INTEGER NOT NULL,              -- 0 user, 1 visitor
  subject_id TEXT NOT NULL,
  UNIQUE (kind, subject_id)
) STRICT;
CREATE TABLE events (
  position INTEGER PRIMARY KEY,       -- in the one sequence of every kind of write
  event_id TEXT NOT NULL UNIQUE,
  digest BLOB NOT NULL,               -- of the content as sent, to tell a repeat from a clash
  person_key INTEGER NOT NULL,
  item_id TEXT NOT NULL,              -- as received: the item may not be known (yet)
  type TEXT NOT NULL,
  occurred_us INTEGER NOT NULL,       -- microseconds since 1970, UTC
  received_us INTEGER NOT NULL
) STRICT;
-- One row an item, live or removed. The ordinal is never reused: histories refer to it.
CREATE TABLE items (
  ordinal INTEGER PRIMARY KEY,
  item_id TEXT NOT NULL UNIQUE,
  position INTEGER NOT NULL,          -- of the last write to this row
  removed_at INTEGER,                 -- position of the removal; NULL while in the catalogue
  available INTEGER NOT NULL,
  text TEXT NOT NULL,
  categories TEXT NOT NULL,           -- JSON list of strings
  attributes TEXT NOT NULL,           -- JSON object, see server.catalogue.attributes
  popularity REAL NOT NULL,
  text_embedding BLOB,                -- float32, little endian
  encoder_sha256 TEXT,                -- of the text encoder that made text_embedding
  embedding_given INTEGER NOT NULL,   -- 1 if the caller sent text_embedding
  vector BLOB,                        -- float32, little endian, only if the caller sent it
  vector_release TEXT                 -- the release in whose space vector lies
) STRICT;
"""


class JournalFile:
    """An open, locked journal. `connection` belongs to one thread at a time.

    `epoch` is a random name given once, when the file is made: positions of different epochs cannot be compared.
    `head` is the last position given out.
    """

    def __init__(self, connection: apsw.Connection, lock: IO[bytes], path: Path) -> None:
        self.connection = connection
        self.path = path
        self._lock = lock
        meta = dict(connection.execute("SELECT key, value FROM meta"))
        self.epoch = str(meta["epoch"])
        self.head = int(meta["head"])

    def close(self) -> None:
        """Closes the file and gives the directory free."""
        self.connection.close()
        self._lock.close()


def open_journal(directory: Path) -> JournalFile:
    """Opens the journal of a tenant's directory, and makes both if they are not there.

    Raises StartupError if another process has it open, or if the file is not a journal of a known version.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = _lock(directory)
    except OSError as error:
        raise StartupError(f"cannot use the data directory {directory}: {error.strerror}") from None
    path = directory / FILE_NAME
    try:
        connection = apsw.Connection(str(path))
        _configure(connection)
        _prepare_schema(connection, path)
        _sync_directory(directory)
        return JournalFile(connection, lock, path)
    except (apsw.NotADBError, apsw.CorruptError) as error:
        lock.close()
        raise StartupError(
            f"{path} is damaged or not a journal ({error}); restore a backup, or move the file away to start empty"
        ) from None
    except apsw.Error as error:
        lock.close()
        raise StartupError(f"cannot open {path}: {error}; check the directory and its permissions") from None
    except BaseException:
        lock.close()
        raise


def _lock(directory: Path) -> IO[bytes]:
    lock = (directory / "lock").open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise StartupError(
            f"the data directory {directory} is in use by another process; stop it first, or choose another --data"
        ) from None
    return lock


def _configure(connection: apsw.Connection) -> None:
    connection.set_busy_timeout(5000)
    # An acknowledgement means that fsync returned: WAL with FULL syncs at every commit (NORMAL can lose commits at power loss).
    connection.pragma("journal_mode", "wal")
    connection.pragma("synchronous", "full")
    connection.pragma("secure_delete", True)
    connection.pragma("cache_size", -65536)  # KiB


def _prepare_schema(connection: apsw.Connection, path: Path) -> None:
    version = int(connection.pragma("user_version") or 0)
    tables = connection.execute("SELECT count(*) FROM sqlite_schema").get
    if version == 0 and tables == 0:
        with connection:
            connection.execute(_SCHEMA)
            connection.execute("INSERT INTO meta VALUES ('epoch', ?), ('head', 0)", (secrets.token_hex(8),))
            connection.pragma("application_id", APPLICATION_ID)
            connection.pragma("user_version", SCHEMA_VERSION)
    elif version > SCHEMA_VERSION:
        raise StartupError(
            f"{path} was written by a newer Towerbridge (schema {version}, this one knows {SCHEMA_VERSION}); "
            "upgrade Towerbridge, or restore a backup made by this version"
        )
    elif version < 1 or int(connection.pragma("application_id") or 0) != APPLICATION_ID:
        raise StartupError(f"{path} is a SQLite file but not a journal; choose another --data")


def _sync_directory(directory: Path) -> None:
    # A file that fsync wrote can still vanish at power loss if the directory's entry for it was not written.
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
