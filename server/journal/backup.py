"""A consistent copy of a journal in one file, made while a server may be writing."""

import fcntl
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import apsw
from tqdm import tqdm

from server.errors import StartupError
from server.journal.database import FILE_NAME, open_reader, sync_directory
from server.journal.pages import check_pages
from server.journal.removal import apply_tombstones
from server.journal.slack import sweep
from server.journal.tombstones import open_tombstones

DIRECTORY = "backups"
PARTIAL = ".partial"  # the end of the name of a copy that is not done
_PAGES_AT_ONCE = 2_500  # 10 MB
_NAMES = "journal-*.sqlite"
_NAME = "journal-%Y%m%dT%H%M%S%fZ.sqlite"  # by the time, UTC; so their order is that of time


@dataclass(frozen=True)
class BackedUp:
    """A backup that was made: its size, rows by table, and the older ones that were deleted."""

    path: Path
    size_bytes: int
    counts: dict[str, int]
    deleted: list[Path]


def back_up(directory: Path, out: Path | None = None, *, keep: int | None = None, key_file: Path | None = None) -> BackedUp:
    """Copies the journal of a tenant's directory as of one moment; the server's writes go on meanwhile.

    The copy is a closed, checked file, without the free space of its pages and without people who are erased by then. It gets
    its name when it is whole and on disk. out: the new file; without it, one named by the time in `backups`. keep: then only so
    many of the latest of those stay. key_file: erasure.key_file. Raises StartupError.
    """
    if not (directory / FILE_NAME).is_file():
        raise StartupError(f"{directory} holds no journal; check --data")
    with _started(directory) as backups:
        path = out or backups / datetime.now(UTC).strftime(_NAME)
        if path.exists():
            raise StartupError(f"{path} exists; choose another --out")
        partial = path.with_name(path.name + PARTIAL)
        try:
            copy(directory / FILE_NAME, partial)
            bring_up_to_date(partial, directory, key_file)
            counts = _check(partial)
            partial.rename(path)
        except (OSError, apsw.Error) as error:
            # SQLite's own text for it can be of another connection, which knows of no error.
            reason = "the disk is full" if isinstance(error, apsw.FullError) else error
            raise StartupError(f"cannot write {path}: {reason}; check the directory, its permissions and its space") from None
        finally:
            partial.unlink(missing_ok=True)
        sync_directory(path.parent)
        deleted = _delete_older(backups, keep) if keep is not None else []
        return BackedUp(path, path.stat().st_size, counts, deleted)


@contextmanager
def exclusive(directory: Path) -> Iterator[Path]:
    """The directory of a tenant's backups, while no other process works on them. Waits for one that does."""
    backups = directory / DIRECTORY
    backups.mkdir(parents=True, exist_ok=True)
    with (backups / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield backups


@contextmanager
def _started(directory: Path) -> Iterator[Path]:
    try:
        with exclusive(directory) as backups:
            for left in backups.glob(f"*{PARTIAL}*"):  # of a backup that was cut off
                left.unlink()
            yield backups
    except OSError as error:
        raise StartupError(f"cannot use {directory / DIRECTORY}: {error.strerror}") from None


def copy(source: Path, target: Path) -> None:
    """Copies a journal that others may be writing, as of one moment, to a new file that needs no other beside it."""
    target.unlink(missing_ok=True)
    with closing(open_reader(source)) as reader, closing(apsw.Connection(str(target))) as writer:
        writer.pragma("synchronous", "off")  # it is synced once, at the end
        # Without a transaction of the reader's own, each write of the server would make the copy start again.
        reader.execute("BEGIN")
        reader.execute("SELECT 1 FROM sqlite_schema").fetchall()
        with (
            writer.backup("main", reader, "main") as step,
            tqdm(unit=" pages", desc="copy", disable=not sys.stderr.isatty()) as progress,
        ):
            while not step.done:
                step.step(_PAGES_AT_ONCE)
                progress.total = step.page_count
                progress.update(step.page_count - step.remaining - progress.n)
        writer.pragma("journal_mode", "delete")


def bring_up_to_date(path: Path, directory: Path, key_file: Path | None) -> int:
    """Brings a closed copy up to date with the directory's tombstones, forced to disk; returns how many erased ids it held."""
    with closing(open_tombstones(directory, key_file)) as tombstones, closing(apsw.Connection(str(path))) as connection:
        connection.pragma("secure_delete", True)
        erased = apply_tombstones(connection, tombstones)
    sweep(path)
    return erased


def _check(path: Path) -> dict[str, int]:
    with closing(open_reader(path)) as connection:
        check_pages(connection, path)
        return {name: connection.execute(f"SELECT count(*) FROM {name}").get for name in ("people", "events")}


def newest_backup(directory: Path) -> datetime | None:
    """When the newest backup in a tenant's directory was begun, UTC. By its name: an erasure writes old ones anew."""
    for path in sorted((directory / DIRECTORY).glob(_NAMES), reverse=True):
        with suppress(ValueError):  # somebody else's file
            return datetime.strptime(path.name, _NAME).replace(tzinfo=UTC)
    return None


def _delete_older(backups: Path, keep: int) -> list[Path]:
    older = sorted(backups.glob(_NAMES))[:-keep]
    for path in older:
        path.unlink()
    sync_directory(backups)
    return older
