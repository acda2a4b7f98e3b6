"""The canonical data set on disk: what every importer writes and what `fit` and `evaluate` read.

DATA/events.parquet    user_id, item_id, event_type string; occurred_at timestamp(us, UTC);
                       sorted by (user_id, occurred_at, original order); may be larger than memory
DATA/items.parquet     item_id string (unique), text string ("" = none), categories list<string>, attributes …
DATA/dataset.json      kind, source, times ("real" | "ordinal"), counts, first_event, last_event, last_past_event (the last
                       one that is not later than the import), rejected (counts by reason), notes (what was kept and
                       looks odd: {note: {"count", "examples"}}); watermark, {"epoch", "position"}, if the events came
                       from a server's journal: the last position that they include
DATA/rejects.jsonl     one line per bad row, up to a number for each reason: {"row", "reason", "values", "table"}

dataset.json is written last: where it is empty an import was not finished.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from training.data.distinct import Distinct
from training.errors import DatasetError

EVENT_SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("item_id", pa.string()),
        ("event_type", pa.string()),
        ("occurred_at", pa.timestamp("us", tz="UTC")),
    ]
)
WATERMARK = b"towerbridge.journal"  # metadata of a parquet file: "epoch:position"
ITEM_FIELDS = {"item_id": pa.string(), "text": pa.string(), "categories": pa.list_(pa.string())}
EVENTS_AT_ONCE = 1 << 18
READ_BUFFER_BYTES = 1 << 20  # of a column; without it, and with pre_buffer, what was read of a file would pile up


@dataclass(frozen=True)
class EventFile:
    """The events of a data set, on disk: they may be more than fit into memory."""

    path: Path
    num_rows: int

    def batches(self, *columns: str) -> Iterator[pa.Table]:
        """The events in order, some 260,000 at a time, none of them empty; all columns, or those named."""
        with pq.ParquetFile(self.path, pre_buffer=False, buffer_size=READ_BUFFER_BYTES) as file:
            for batch in file.iter_batches(EVENTS_AT_ONCE, columns=list(columns) or None):
                if batch.num_rows:
                    yield pa.Table.from_batches([batch])

    def unique(self, column: str) -> pa.Array:
        """The different values of a column of strings, in the order in which they come first."""
        found = Distinct()
        for batch in self.batches(column):
            found.see(batch[column])
        return found.finish()

    def __getitem__(self, column: str) -> pa.ChunkedArray:
        """One whole column in memory: for data that is known to be small."""
        return pq.read_table(self.path, columns=[column])[column]

    def table(self) -> pa.Table:
        """All of them in memory: for data that is known to be small."""
        return pq.read_table(self.path)


@dataclass(frozen=True)
class Dataset:
    """A canonical data set: its events on disk, its items in memory; `info` is dataset.json."""

    path: Path
    events: EventFile
    items: pa.Table
    info: dict[str, Any]

    @property
    def has_real_times(self) -> bool:
        """False where the source has only an order, so that time features must stay off."""
        return bool(self.info.get("times") == "real")


def read_dataset(path: Path) -> Dataset:
    """Reads what `python -m training import` wrote. Raises DatasetError for anything else."""
    for name in ("events.parquet", "items.parquet", "dataset.json"):
        if not (path / name).is_file():
            raise DatasetError(f"{path}: {name} is missing; write it with `python -m training import … --out {path}`")
    try:
        with pq.ParquetFile(path / "events.parquet") as file:
            events, schema = EventFile(path / "events.parquet", file.metadata.num_rows), file.schema_arrow
        items = pq.read_table(path / "items.parquet")
        info = json.loads((path / "dataset.json").read_text(encoding="utf-8"))
    except (pa.ArrowException, ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DatasetError(f"{path}: cannot be read ({reason}); run `python -m training import` again") from error
    _check_columns(path / "events.parquet", schema, {field.name: field.type for field in EVENT_SCHEMA})
    _check_columns(path / "items.parquet", items.schema, ITEM_FIELDS)
    if not isinstance(info, dict):
        raise DatasetError(f"{path / 'dataset.json'}: not a JSON object; run `python -m training import` again")
    if events.num_rows == 0 or items.num_rows == 0:
        raise DatasetError(f"{path}: no events or no items; run `python -m training import` on a source that has some")
    return Dataset(path, events, items, info)


PARTS = ("rejects.jsonl", "items.parquet", "events.parquet")
"""The files of a data set beside dataset.json."""


def publish_dataset(path: Path, drafts: Path, info: dict[str, Any]) -> None:
    """Moves the three finished files from `drafts`, a directory of the same disk, to `path`.

    dataset.json is emptied first and written last: a torn import is not taken for a whole one, and may be replaced.
    """
    (path / "dataset.json").write_bytes(b"")
    for name in PARTS:
        (drafts / name).replace(path / name)
    text = json.dumps(info, indent=2, ensure_ascii=False) + "\n"
    (path / "dataset.json").write_text(text, encoding="utf-8")


def parse_watermark(metadata: Mapping[bytes, bytes] | None) -> dict[str, Any] | None:
    """Up to where in a server's journal a parquet file goes that `python -m server.journal export` wrote; None for others.

    Raises DatasetError if what the file's metadata say is no epoch and position.
    """
    text = (metadata or {}).get(WATERMARK, b"").decode(errors="replace")
    if not text:
        return None
    epoch, _, position = text.rpartition(":")
    if not epoch or not position.isdecimal():
        raise DatasetError(f"the events' watermark {text!r} is not epoch:position; export them again")
    return {"epoch": epoch, "position": int(position)}


def dataset_sha256(path: Path) -> str:
    """Hex digest of events.parquet: tells `evaluate` whether a bundle was trained on these very events."""
    with (path / "events.parquet").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_columns(path: Path, schema: pa.Schema, wanted: dict[str, pa.DataType]) -> None:
    for name, kind in wanted.items():
        if name not in schema.names:
            raise DatasetError(f"{path}: column {name} is missing; run `python -m training import` again")
        found = schema.field(name).type
        if found != kind:
            raise DatasetError(f"{path}: column {name} is {found}, not {kind}; run `python -m training import` again")
