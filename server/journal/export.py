"""Events for training: a canonical events.parquet of the people who consented to it, and what has to leave it later."""

import os
from array import array
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple, cast

import apsw
import pyarrow as pa
import pyarrow.parquet as pq

from server.errors import StartupError
from server.journal.database import FILE_NAME, atomic, open_reader, sync_directory
from server.journal.events import VISITOR, Person
from server.journal.migrations import SCHEMA_VERSION
from server.journal.removal import is_clean
from server.journal.tombstones import Tombstones, open_tombstones
from server.users.directory import Directory, Purpose

WATERMARK = b"towerbridge.journal"  # parquet metadata: "epoch:position"
EXPORTED_US = b"towerbridge.exported_us"
ORIGIN = b"towerbridge.origin"  # which journal, restored copies of it included
SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("item_id", pa.string()),
        ("event_type", pa.string()),
        ("occurred_at", pa.timestamp("us", "UTC")),
        ("person_key", pa.int64()),  # the id's number in the journal: says nothing by itself, and lets `screen` find the rows
    ]
)
_ROWS_AT_ONCE = 100_000
_MARKS_AT_ONCE = 5_000
_BUSY_MS = 30_000
_ID_BYTES = 256
_ESCAPED = ("user:", "visitor:", "long:")
_EVENTS = "SELECT occurred_us, position, item_id, type FROM events WHERE person_key = ? AND item_id IS NOT NULL"
Row = tuple[str, str, str, int, int]


class Exported(NamedTuple):
    """An export: its watermark, the people and events in it, and the people whose events are not, without their consent."""

    watermark: str
    people: int
    events: int
    without_consent: int


def export_events(
    directory: Path, out: Path, presumed: Mapping[Purpose, bool], *, now_us: int, key_file: Path | None = None
) -> Exported:
    """Writes the events of everybody who may be trained on, as of one moment, also while a server writes the journal.

    Linked ids are one user, under the root's id: see `training_id`. Sorted by user, then by time. In the journal it is noted
    who was exported, before the file gets its name, so that an erasure can tell which bundles saw a person. Whoever is erased
    or withdraws consent while it runs is taken out at the end. Raises StartupError.
    """
    if out.exists():
        raise StartupError(f"{out} exists; choose another --out")
    aside = out.with_name(f".{out.name}.partial")
    try:
        with closing(open_tombstones(directory, key_file)) as tombstones:
            before = tombstones.stamp
            with closing(open_readable(directory)) as reader:
                reader.execute("BEGIN")
                export = _Export(reader, presumed, tombstones)
                export.write(aside, now_us)
        _mark(directory / FILE_NAME, export, now_us)
        with closing(open_tombstones(directory, key_file)) as tombstones, closing(open_readable(directory)) as reader:
            is_as_before = tombstones.stamp == before and _head(reader) == export.position
            stays = _Stays(reader, presumed, tombstones, now_us) if not is_as_before else None
            everybody_stays = stays is None or all(stays[key] for key in export.keys)
        if not everybody_stays:
            screen(directory, aside, presumed, key_file=key_file)
        put_in_place(aside, out)
    except (OSError, apsw.Error, pa.ArrowException) as error:
        raise StartupError(f"cannot export to {out}: {error}; check the directory, its permissions and its space") from None
    finally:
        aside.unlink(missing_ok=True)
    return Exported(export.watermark, export.people, export.events, export.without_consent)


class Screened(NamedTuple):
    """Rows of an export that stay, and those that were taken out."""

    kept: int
    removed: int


def screen(directory: Path, path: Path, presumed: Mapping[Purpose, bool], *, key_file: Path | None = None) -> Screened:
    """Rewrites an export without those who were erased, or withdrew their consent to training, since it was made.

    Raises StartupError if the file is not an export, or if it was exported from another journal, which knows nobody in it.
    """
    try:
        parquet = pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise StartupError(f"cannot read {path}: {' '.join(str(error).split())}") from None
    metadata = parquet.schema_arrow.metadata or {}
    if EXPORTED_US not in metadata or not parquet.schema_arrow.equals(SCHEMA):
        raise StartupError(f"{path} is not an export; make it with python -m server.journal export")
    aside = path.with_name(f".{path.name}.screened")
    kept = removed = 0
    try:
        with closing(open_tombstones(directory, key_file)) as tombstones, closing(open_readable(directory)) as reader:
            if metadata.get(ORIGIN, _origin(reader)) != _origin(reader):
                raise StartupError(f"{path} was not exported from the journal in {directory}; check --data")
            stays = _Stays(reader, presumed, tombstones, int(metadata[EXPORTED_US]))
            with pq.ParquetWriter(aside, SCHEMA.with_metadata(metadata)) as writer:
                for batch in parquet.iter_batches(_ROWS_AT_ONCE):
                    mask = pa.array([stays[key] for key in batch.column("person_key").to_pylist()], pa.bool_())
                    left = batch.filter(mask)
                    writer.write_batch(left)
                    kept, removed = kept + len(left), removed + len(batch) - len(left)
        put_in_place(aside, path)
    except (OSError, apsw.Error, pa.ArrowException) as error:
        raise StartupError(f"cannot rewrite {path}: {error}; check the directory, its permissions and its space") from None
    finally:
        aside.unlink(missing_ok=True)
    return Screened(kept, removed)


def training_id(person: Person) -> str:
    """What training calls a person: a user's id as it is, a visitor's with "visitor:" before it.

    A user's id that begins so itself, or with "user:" or "long:", gets "user:" before it, so that no two people share one. What
    would have more than 256 bytes then, which training does not take, is "long:" and a hash of it.
    """
    text = person.subject_id
    if person.kind == VISITOR:
        text = f"visitor:{text}"
    elif text.startswith(_ESCAPED):
        text = f"user:{text}"
    if len(text.encode()) <= _ID_BYTES:
        return text
    return "long:" + blake2b(text.encode(), digest_size=32).hexdigest()


class _Export:
    """Writes one export. `keys` are the ids whose events are in it."""

    def __init__(self, reader: apsw.Connection, presumed: Mapping[Purpose, bool], tombstones: Tombstones) -> None:
        meta = dict(reader.execute("SELECT key, value FROM meta WHERE key IN ('epoch', 'head')"))
        self.position = int(str(meta["head"]))
        self.watermark = f"{meta['epoch']}:{self.position}"
        self.people = self.events = self.without_consent = 0
        self.keys = array("q")
        self._reader = reader
        self._directory = Directory(presumed)
        self._directory.load(reader)
        # A journal that is brought up to date holds nobody who is erased.
        self._tombstones = None if is_clean(reader, tombstones) else tombstones

    def write(self, path: Path, now_us: int) -> None:
        metadata = {
            WATERMARK: self.watermark.encode(),
            EXPORTED_US: str(now_us).encode(),
            ORIGIN: _origin(self._reader),
        }
        with pq.ParquetWriter(path, SCHEMA.with_metadata(metadata)) as writer:
            rows: list[Row] = []
            for its in self._histories():
                rows += its
                if len(rows) >= _ROWS_AT_ONCE:
                    writer.write_table(_table(rows))
                    rows = []
            if rows:
                writer.write_table(_table(rows))

    def _histories(self) -> Iterator[list[Row]]:
        """The rows of each person: of all ids that are one and may be used, in time order."""
        for key, *subject in self._reader.execute("SELECT person_key, kind, subject_id FROM people ORDER BY person_key"):
            root = int(str(key))
            if self._directory.parent(root) is not None:
                continue
            user_id = training_id(Person(*subject))
            found = sorted(event for member in self._members(root) for event in self._of(member))
            if found:
                self.people += 1
                self.events += len(found)
                yield [(user_id, item_id, type_name, us, member) for us, _, item_id, type_name, member in found]

    def _members(self, root: int) -> Iterable[int]:
        for member in self._directory.members(root):
            if self._directory.may(member, Purpose.TRAINING):
                yield member
            else:
                self.without_consent += 1

    def _of(self, key: int) -> list[tuple[int, int, str, str, int]]:
        if self._tombstones is not None and self._is_erased(self._tombstones, key):
            return []
        rows: list[Any] = self._reader.execute(_EVENTS, (key,)).fetchall()
        if rows:
            self.keys.append(key)
        return [(*row, key) for row in rows]

    def _is_erased(self, tombstones: Tombstones, key: int) -> bool:
        subject = _subject(self._reader, key)
        return subject is None or tombstones.erased_us(subject) is not None


class _Stays(dict[int, bool]):
    """Whether the rows of an id may stay in an export; asked once for each."""

    def __init__(
        self, reader: apsw.Connection, presumed: Mapping[Purpose, bool], tombstones: Tombstones, exported_us: int
    ) -> None:
        super().__init__()
        self._reader = reader
        self._tombstones = tombstones
        self._exported_us = exported_us
        self._directory = Directory(presumed)
        self._directory.load(reader)

    def __missing__(self, key: int) -> bool:
        subject = _subject(self._reader, key)  # a person who comes back after an erasure has another key
        erased_us = self._tombstones.erased_us(subject) if subject is not None else None
        is_gone = subject is None or (erased_us is not None and erased_us >= self._exported_us)
        self[key] = not is_gone and self._directory.may(key, Purpose.TRAINING)
        return self[key]


def _mark(path: Path, export: _Export, now_us: int) -> None:
    """Notes in the journal who was exported, in transactions so short that a server's writes hardly wait.

    The export takes no position, since those are the server's to give: it is at the last one that it includes.
    """
    with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)) as connection:
        connection.set_busy_timeout(_BUSY_MS)
        connection.pragma("synchronous", "full")
        connection.pragma("secure_delete", True)
        connection.wal_autocheckpoint(0)  # the server's, which counts on nobody else writing to the file
        for start in range(0, len(export.keys), _MARKS_AT_ONCE):
            connection.release_memory()  # a page read before an erasure must not be written after it
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(
                "UPDATE people SET first_exported = ? WHERE person_key = ? AND first_exported IS NULL",
                [(export.position, key) for key in export.keys[start : start + _MARKS_AT_ONCE]],
            )
            connection.execute("COMMIT")
        with atomic(connection):
            row = (export.position, now_us, export.people, export.events)
            connection.execute("INSERT INTO exports VALUES (?, ?, ?, ?)", row)


def open_readable(directory: Path) -> apsw.Connection:
    """The journal in a directory, to read beside a server. Raises StartupError if there is none, or one of another version."""
    path = directory / FILE_NAME
    if not path.is_file():
        raise StartupError(f"{directory} holds no journal; check --data")
    reader = open_reader(path)
    if int(reader.pragma("user_version") or 0) != SCHEMA_VERSION:
        reader.close()
        raise StartupError(f"{path} is of another version; start the server with it once, which brings it up to date")
    return reader


def _head(reader: apsw.Connection) -> int:
    """The journal's last position."""
    return int(reader.execute("SELECT value FROM meta WHERE key = 'head'").get or 0)


def _origin(reader: apsw.Connection) -> bytes:
    """What tells a journal from others: a hash of its secret, which backups and restored journals share."""
    ((key,),) = reader.execute("SELECT value FROM meta WHERE key = 'event_key'").fetchall()
    return blake2b(cast(bytes, key), digest_size=8, person=b"export origin").hexdigest().encode()


def _subject(reader: apsw.Connection, key: int) -> Person | None:
    row = reader.execute("SELECT kind, subject_id FROM people WHERE person_key = ?", (key,)).fetchone()
    return None if row is None else Person(*row)


def _table(rows: list[Row]) -> pa.Table:
    columns = zip(*rows, strict=True)
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)


def put_in_place(aside: Path, path: Path) -> None:
    """Forces a file to disk, then gives it its name."""
    with aside.open("rb") as file:
        os.fsync(file.fileno())
    aside.replace(path)
    sync_directory(path.parent)
