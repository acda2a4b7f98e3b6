"""The past into the journal: events from before the server ran, such as those that the towers were trained on."""

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from server.errors import InvalidField, StartupError
from server.fields import check_id, check_type
from server.journal.database import JournalFile, atomic
from server.journal.events import USER, Event, Person, RecordEvents, Status, StoredEvent, person_key
from server.journal.tombstones import Tombstones
from server.journal.writer import Transaction
from server.users.admission import Admission, Erased
from server.users.directory import Directory, Purpose

_COLUMNS = {
    "user_id": pa.string(),
    "item_id": pa.string(),
    "event_type": pa.string(),
    "occurred_at": pa.timestamp("us", "UTC"),
}
_ROWS_AT_ONCE = 10_000
_REFUSED = {
    Status.NO_CONSENT: "no consent to personalisation; give --consent and --consent-source if the person agreed",
    Status.ERASED: "the person was erased",
    Status.CLASH: "the event's id is taken by an event with other content",
}


class Imported(NamedTuple):
    """What an import did, in rows."""

    written: int
    known: int  # from an earlier import
    refused: Counter[str]  # by reason
    decisions: int  # that were recorded


class Agreed(NamedTuple):
    """What the people of a file agreed to before."""

    purposes: Sequence[str]
    source: str


def import_events(
    file: JournalFile,
    parquet: pq.ParquetFile,
    presumed: Mapping[Purpose, bool],
    tombstones: Tombstones,
    *,
    now_us: int,
    agreed: Agreed | None = None,
) -> Imported:
    """Writes the events of a canonical events.parquet, opened by `open_events`, of any age, as those of users.

    Repeatable: an event's id is made from its content and its number among equal ones, so a second import writes nothing.
    As from RecordEvents, nothing is written of people who have not consented to personalisation, nor of those who were erased.
    agreed: recorded, as of now, for people of the file who have decided nothing about that purpose.
    """
    written = known = 0
    refused: Counter[str] = Counter()
    seen: Counter[tuple[str, str, str, int]] = Counter()
    if agreed is not None:
        _check_source(agreed.source)
    directory = Directory(presumed, tombstones.waiting)
    directory.load(file.connection)
    intake = _Intake(file, directory, tombstones, now_us, agreed)
    with tqdm(total=parquet.metadata.num_rows, unit=" events", disable=not sys.stderr.isatty()) as progress:
        for batch in parquet.iter_batches(_ROWS_AT_ONCE, columns=list(_COLUMNS)):
            events = list(_events(batch, seen, refused))
            outcomes = intake.commit(events)
            written += outcomes[Status.ACCEPTED]
            known += outcomes[Status.DUPLICATE]
            refused.update({_REFUSED[status]: count for status, count in outcomes.items() if status in _REFUSED})
            progress.update(len(batch))
    return Imported(written, known, refused, intake.decisions)


def _check_source(source: str) -> None:
    try:
        check_id(source, "--consent-source")
    except InvalidField as error:
        raise StartupError(str(error)) from None


def open_events(path: Path) -> pq.ParquetFile:
    """Opens a canonical events.parquet. Raises StartupError if it is none."""
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


class _Intake:
    """Takes events in, batch by batch, with the decisions of their people before them."""

    def __init__(self, file: JournalFile, directory: Directory, erased: Erased, now_us: int, agreed: Agreed | None) -> None:
        self.decisions = 0
        self._file = file
        self._directory = directory
        self._erased = erased
        self._admission = Admission(directory, erased)
        self._now_us = now_us
        self._agreed = agreed

    def commit(self, events: Sequence[Event]) -> Counter[Status]:
        """Writes events in one transaction; how many there are of each outcome."""
        write = RecordEvents(events, self._now_us, self._admission, self._publish)
        transaction = Transaction(self._file)
        with atomic(self._file.connection):
            if self._agreed is not None:
                for person in dict.fromkeys(event.person for event in events):
                    self._agree(transaction, person, self._agreed)
            write.commit(transaction)
            transaction.execute("UPDATE meta SET value = ? WHERE key = 'head'", (transaction.head,))
        self._file.head = transaction.head
        return Counter(outcome.status for outcome in write.publish())

    def _agree(self, transaction: Transaction, person: Person, agreed: Agreed) -> None:
        if self._erased.erased_us(person) is not None:
            return  # the file is older than the erasure, for all that is known
        key = self._directory.find(person)
        if key is None:
            key = person_key(transaction, person)
            self._directory.add(person, key)
        for purpose in (Purpose[name.upper()] for name in agreed.purposes):
            if self._directory.decided(key, purpose) is None:
                row = (key, transaction.next_position(), int(purpose), agreed.source, self._now_us)
                transaction.execute("INSERT INTO consents VALUES (?1, ?2, ?3, 1, ?4, ?5, ?5)", row)
                self._directory.decide(key, purpose, True)
                self.decisions += 1

    def _publish(self, events: Sequence[tuple[StoredEvent, Person]]) -> list[Status]:
        for event, person in events:
            self._directory.add(person, event.person_key)
        return [Status.ACCEPTED] * len(events)
