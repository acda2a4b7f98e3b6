"""People out of the backups that lie in the data directory."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import apsw

from server.journal.backup import DIRECTORY, PARTIAL, exclusive
from server.journal.database import APPLICATION_ID, atomic, sync_directory
from server.journal.events import Person
from server.journal.migrations import SCHEMA_VERSION, migrate
from server.journal.removal import remove_until
from server.journal.slack import sweep
from server.journal.tombstones import Tombstones

_PATTERN = "*.sqlite"


class Scrubbed(NamedTuple):
    """What was done to one backup. `problem` says why nothing could be done; then it still holds what it held."""

    name: str
    rows: int
    problem: str = ""


def list_backups(directory: Path) -> list[Path]:
    """The backups of a tenant's directory, by name."""
    return sorted((directory / DIRECTORY).glob(_PATTERN))


def scrub_backups(directory: Path, people: Sequence[Person], erased_us: int, tombstones: Tombstones) -> list[Scrubbed]:
    """Removes people from every backup of a tenant's directory."""
    if not (directory / DIRECTORY).is_dir():
        return []
    with exclusive(directory) as backups:
        for left in backups.glob(f"*{PARTIAL}*"):  # of a backup or a scrub that was cut off
            left.unlink()
        return [_scrub(path, people, erased_us, tombstones) for path in list_backups(directory)]


def scrub_backup(path: Path, people: Sequence[Person], erased_us: int, tombstones: Tombstones) -> int:
    """Removes people from a backup, as of the time when they were erased; returns how many rows.

    A crash leaves the backup as it was or as it is to be: the work is done on a copy, which then takes its place. Raises
    apsw.Error or OSError if it is not a backup, or if the disk is full or fails.
    """
    if not _holds(path, people):
        return 0
    aside = path.with_name(path.name + PARTIAL)
    try:
        shutil.copy(path, aside)
        rows = _remove(aside, people, erased_us, tombstones)
        sweep(aside)
        aside.replace(path)
    finally:
        for left in path.parent.glob(aside.name + "*"):
            left.unlink()
    sync_directory(path.parent)
    return rows


def _scrub(path: Path, people: Sequence[Person], erased_us: int, tombstones: Tombstones) -> Scrubbed:
    try:
        return Scrubbed(path.name, scrub_backup(path, people, erased_us, tombstones))
    except (apsw.Error, OSError) as error:
        return Scrubbed(path.name, 0, str(error))


def _holds(path: Path, people: Sequence[Person]) -> bool:
    """Whether anything is held about any of the people."""
    # immutable: nobody writes to a backup, so it needs no lock and no log beside it.
    flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    connection = apsw.Connection(f"{path.resolve().as_uri()}?immutable=1", flags=flags)
    try:
        if int(connection.pragma("application_id") or 0) != APPLICATION_ID:
            raise OSError("it is not a backup of a journal")
        if int(connection.pragma("user_version") or 0) > SCHEMA_VERSION:
            raise OSError("it was made by a newer Towerbridge")
        return any(_key(connection, person) is not None for person in people)
    finally:
        connection.close()


def _remove(path: Path, people: Sequence[Person], erased_us: int, tombstones: Tombstones) -> int:
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        connection.pragma("journal_mode", "delete")
        connection.pragma("journal_mode", "off")  # a copy that is cut short is thrown away
        connection.pragma("secure_delete", True)
        with atomic(connection):
            version = int(connection.pragma("user_version") or 0)
            if version < SCHEMA_VERSION:
                migrate(connection, version)
            keys = [key for person in people if (key := _key(connection, person)) is not None]
            rows = sum(remove_until(connection, tombstones, key, erased_us) for key in keys)
    finally:
        connection.close()
    return rows


def _key(connection: apsw.Connection, person: Person) -> int | None:
    row = connection.execute("SELECT person_key FROM people WHERE kind = ? AND subject_id = ?", tuple(person)).fetchone()
    return int(row[0]) if row is not None else None
