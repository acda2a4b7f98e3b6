"""The SQLite file: opening, locking, schema."""

import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import apsw

from server.errors import StartupError
from server.journal.migrations import SCHEMA_VERSION, migrate
from server.journal.pages import REMEDY, check_pages
from server.journal.slack import Pages

FILE_NAME = "journal.sqlite"
RESTORING = "journal.sqlite.restoring"  # a restore that is not done
APPLICATION_ID = 0x54574247  # "TWBG", so that `file` and a reader can tell


class JournalFile:
    """An open, locked journal. `connection` belongs to one thread at a time.

    `epoch` is a random name given once, when the file is made: positions of different epochs cannot be compared.
    `head` is the last position given out. `event_key` is what event_ids are hashed with. `withdrawn` says of a subject who is
    not known what consent they withdrew before a restore lost them; see `server.journal.erase.bring_up_to_date`.
    """

    def __init__(self, connection: apsw.Connection, lock: IO[bytes], path: Path) -> None:
        self.connection = connection
        self.path = path
        self._lock = lock
        self._pages: Pages | None = None
        meta = dict(connection.execute("SELECT key, value FROM meta"))
        self.epoch = str(meta["epoch"])
        self.head = int(meta["head"])
        self.event_key = bytes(meta["event_key"])
        self.withdrawn: Callable[[Any], Mapping[Any, int]] = lambda person: {}

    @property
    def pages(self) -> Pages:
        """The file below the connection, whose free space can be cleared. For the thread that writes."""
        if self._pages is None:
            self._pages = Pages(self.path)
        return self._pages

    def close(self) -> None:
        """Closes the file and gives the directory free."""
        try:
            self.connection.close()
        finally:
            if self._pages is not None:
                self._pages.close()
            self._lock.close()


def open_journal(directory: Path, *, vfs: str | None = None) -> JournalFile:
    """Opens the journal of a tenant's directory, and makes both if they are not there. vfs: SQLite's virtual file system.

    Raises StartupError if another process has it open, or if the file is not a journal of a known version.
    """
    try:
        _make(directory)
        lock = lock_directory(directory)
    except OSError as error:
        raise StartupError(f"cannot use the data directory {directory}: {error.strerror}") from None
    path = directory / FILE_NAME
    try:
        if (directory / RESTORING).exists():
            raise StartupError(f"a restore into {directory} was cut off; run it again, or delete {directory / RESTORING}")
        connection = apsw.Connection(str(path), vfs=vfs)
        _configure(connection)
        check_pages(connection, path)
        _prepare_schema(connection, path)
        sync_directory(directory)
        return JournalFile(connection, lock, path)
    except (apsw.NotADBError, apsw.CorruptError) as error:
        lock.close()
        raise StartupError(f"{path} is damaged or not a journal ({error}); {REMEDY}") from None
    except apsw.Error as error:
        lock.close()
        raise StartupError(f"cannot open {path}: {error}; check the directory and its permissions") from None
    except BaseException:
        lock.close()
        raise


def open_reader(path: Path) -> apsw.Connection:
    """A connection that reads a journal, whoever writes it; each statement sees what was committed before it."""
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    connection.set_busy_timeout(5000)
    return connection


def _make(directory: Path) -> None:
    made = [one for one in (directory, *directory.parents) if not one.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    for one in made:
        sync_directory(one.parent)


def lock_directory(directory: Path) -> IO[bytes]:
    """Takes a tenant's directory for this process until what is returned is closed. Raises StartupError if another has it."""
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
    is_new = version == 0 and tables == 0
    if version > SCHEMA_VERSION:
        raise StartupError(
            f"{path} was written by a newer Towerbridge (schema {version}, this one knows {SCHEMA_VERSION}); "
            "upgrade Towerbridge, or restore a backup made by this version"
        )
    if not is_new and (version < 1 or int(connection.pragma("application_id") or 0) != APPLICATION_ID):
        raise StartupError(f"{path} is a SQLite file but not a journal; choose another --data")
    if version < SCHEMA_VERSION:
        with atomic(connection):
            migrate(connection, version)
            connection.pragma("application_id", APPLICATION_ID)


@contextmanager
def atomic(connection: apsw.Connection) -> Iterator[None]:
    """Commits what is done inside, or nothing of it. Inside another transaction it is a part of that.

    `with connection` does not do: apsw commits there while it holds the interpreter's lock. All other threads wait for the disk
    then, and if one of them is reading, which the commit waits for, neither goes on.
    """
    if connection.in_transaction:
        yield
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def sync_directory(directory: Path) -> None:
    """Writes the directory's entries to disk."""
    # A file that fsync wrote can still vanish at power loss if the directory's entry for it was not written.
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
