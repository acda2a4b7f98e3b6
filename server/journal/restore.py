"""A backup as the journal of a data directory."""

import json
import secrets
import shutil
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import apsw

from server.errors import StartupError
from server.journal.backup import bring_up_to_date, copy, exclusive
from server.journal.database import FILE_NAME, RESTORING, lock_directory, sync_directory
from server.journal.migrations import SCHEMA_VERSION, migrate
from server.journal.tombstones import FILE_NAME as TOMBSTONES
from server.journal.verify import verify

_SNAPSHOTS = "index"


@dataclass(frozen=True)
class Restored:
    """A restored journal: its rows by table, and the ids that were removed since they are erased."""

    path: Path
    counts: dict[str, int]
    erased: int


def restore(
    backup: Path,
    directory: Path,
    *,
    replace: bool = False,
    without_tombstones: bool = False,
    key_file: Path | None = None,
) -> Restored:
    """Makes a backup the journal of a tenant's directory, in which no server runs.

    The journal gets a new epoch: positions after the backup's last are given out again, so revisions of the old epoch are
    refused. What event_ids are hashed with stays, so that repeats of events that the backup holds are known. Whoever the
    directory's tombstones name is removed, and what consent was withdrawn is withdrawn, before anything can be served.

    replace: deletes the journal that is there. Nothing is kept of it, since it may hold people who were erased.
    without_tombstones: also if the directory lacks those of where the backup was made.
    Raises StartupError; then the directory's journal is as it was, unless the message says that the restore was cut off.
    """
    _check(backup)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with lock_directory(directory), exclusive(directory):
            if not replace and any((directory / name).exists() for name in (FILE_NAME, f"{FILE_NAME}-wal")):
                raise StartupError(f"{directory} holds a journal; --replace deletes it")
            return _restore(backup, directory, without_tombstones, key_file)
    except (OSError, apsw.Error) as error:
        raise StartupError(f"cannot restore into {directory}: {error}; check its permissions and its space") from None


def _restore(backup: Path, directory: Path, without_tombstones: bool, key_file: Path | None) -> Restored:
    prepared, path = directory / RESTORING, directory / FILE_NAME
    try:
        copy(backup, prepared)
        if not without_tombstones:
            _require_tombstones(prepared, directory)
        _renew(prepared)
        erased = bring_up_to_date(prepared, directory, key_file)
        found = _check(prepared)
    except BaseException:
        prepared.unlink(missing_ok=True)
        raise
    sync_directory(directory)
    # From here to the rename a crash leaves the prepared file, with which no server starts: an old log must never meet the new
    # file, nor the old file be served without its log.
    for suffix in ("-wal", "-shm", "-journal"):
        path.with_name(FILE_NAME + suffix).unlink(missing_ok=True)
    shutil.rmtree(directory / _SNAPSHOTS, ignore_errors=True)
    sync_directory(directory)
    prepared.replace(path)
    sync_directory(directory)
    return Restored(path, found, erased)


def _check(path: Path) -> dict[str, int]:
    found = verify(path)
    if found.problems:
        raise StartupError(f"{path} cannot be restored ({found.problems[0]}); use another backup")
    return found.counts


def _require_tombstones(prepared: Path, directory: Path) -> None:
    """That the directory has the tombstone file that the backup knows, so that no erasure or withdrawal since is undone."""
    known = _stamp(prepared, "SELECT value FROM meta WHERE key = 'tombstones'")
    present = _stamp(directory / TOMBSTONES, "SELECT value FROM meta WHERE key = 'file'")
    if known is not None and known.split(":")[0] != present:
        raise StartupError(
            f"{directory} lacks the {TOMBSTONES} of where the backup was made, without which erased people and withdrawn "
            "consent could come back; copy it and its key there first, or say --without-tombstones if there was neither since"
        )


def _stamp(path: Path, sql: str) -> str | None:
    if not path.is_file():
        return None
    with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
        row = connection.execute(sql).fetchone()
    return None if row is None else str(row[0])


def _renew(path: Path) -> None:
    """Brings the file up to date and gives it a new epoch. It notes up to which position earlier epochs are part of it."""
    with closing(apsw.Connection(str(path))) as connection, connection:
        connection.pragma("secure_delete", True)
        version = int(connection.pragma("user_version") or 0)
        if version < SCHEMA_VERSION:
            migrate(connection, version)
        meta = dict(connection.execute("SELECT key, value FROM meta WHERE key IN ('epoch', 'head', 'earlier_epochs')"))
        earlier = json.loads(str(meta.get("earlier_epochs", "{}"))) | {str(meta["epoch"]): int(str(meta["head"]))}
        connection.execute(
            "INSERT OR REPLACE INTO meta VALUES ('epoch', ?), ('earlier_epochs', ?)",
            (secrets.token_hex(8), json.dumps(earlier)),
        )
