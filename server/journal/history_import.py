"""The past into the journal: events from before the server ran, such as those that the towers were trained on."""

import sys
from collections import Counter
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from server.errors import InvalidField, StartupError
from server.fields import check_id, check_type
from server.journal.database import JournalFile
from server.journal.events import USER, Event, Person, RecordEvents
from server.journal.writer import Transaction

_COLUMNS = {
    "user_id": pa.string(),
    "item_id": pa.string(),
    "event_type": pa.string(),
    "occurred_at": pa.timestamp("us", "UTC"),
}
_ROWS_AT_ONCE = 10_000


class Imported(NamedTuple):
    """What an import did, in rows."""

    written: int
    known: int  # from an earlier import
    refused: Counter[str]  # by reason


def import_events(file: JournalFile, path: Path, *, now_us: int) -> Imported:
    """Writes the events of a canonical events.parquet, of any age, as those of users.

    Repeatable: an event's id is made from its content and its number among equal ones, so a second import writes nothing.
    Raises StartupError if the file is not a canonical events.parquet.
    """
    parquet = _open(path)
    written = known = 0
    refused: Counter[str] = Counter()
    seen: Counter[tuple[str, str, str, int]] = Counter()
    with tqdm(total=parquet.metadata.num_rows, unit=" events", disable=not sys.stderr.isatty()) as progress:
        for batch in parquet.iter_batches(_ROWS_AT_ONCE, columns=list(_COLUMNS)):
            events = list(_events(batch, seen, refused))
            new = _commit(file, events, now_us)
            written += new
            known += len(events) - new
            progress.update(len(batch))
    return Imported(written, known, refused)


def _open(path: Path) -> pq.ParquetFile:
    try:
        parquet = pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise StartupError(f"cannot read {path}: {' '.join(str(error).split())}") from None
    schema = parquet.schema_arrow
    for name, kind in _COLUMNS.items():
        if name not in schema.names:
            raise StartupError(f"{path} has no column {name}; make it with python -m training import")
        if not schema.field(name).type.equals(kind):
            raise StartupError(
                f"{path}: column {name} is {schema.field(name).type}, not {kind}; make it with python -m training import"
            )
    return parquet


def _events(batch: pa.RecordBatch, seen: Counter[tuple[str, str, str, int]], refused: Counter[str]) -> Iterator[Event]:
    columns = [batch.column(name) for name in ("user_id", "item_id", "event_type")]
    times_us = batch.column("occurred_at").cast(pa.int64())
    for user_id, item_id, type_name, occurred_us in zip(*(c.to_pylist() for c in (*columns, times_us)), strict=True):
        try:
            check_id(user_id or "", "user_id")
            check_id(item_id or "", "item_id")
            check_type(type_name or "", "event_type")
            if occurred_us is None:
                raise InvalidField("occurred_at", "must not be empty")
        except InvalidField as error:
            refused[str(error)] += 1
            continue
        row = (user_id, item_id, type_name, occurred_us)
        seen[row] += 1
        yield Event(_event_id(row, seen[row]), Person(USER, user_id), item_id, type_name, occurred_us)


def _event_id(row: tuple[str, str, str, int], number: int) -> str:
    text = "\0".join(f"{len(str(part))}:{part}" for part in (*row, number))
    return "import-" + blake2b(text.encode(), digest_size=16).hexdigest()


def _commit(file: JournalFile, events: list[Event], now_us: int) -> int:
    write = RecordEvents(events, now_us, lambda new: [])
    transaction = Transaction(file.connection, file.head)
    with file.connection:
        write.commit(transaction)
        transaction.execute("UPDATE meta SET value = ? WHERE key = 'head'", (transaction.head,))
    file.head = transaction.head
    return write.written
