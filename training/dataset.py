"""The canonical data set on disk: what every importer writes and what `fit` and `evaluate` read.

DATA/events.parquet    user_id, item_id, event_type string; occurred_at timestamp(us, UTC);
                       sorted by (user_id, occurred_at, original order)
DATA/items.parquet     item_id string (unique), text string ("" = none), categories list<string>, attributes …
DATA/dataset.json      kind, source, times ("real" | "ordinal"), counts, rejected (counts by reason); watermark, {"epoch",
                       "position"}, if the events came from a server's journal: the last position that they include
DATA/rejects.jsonl     one line per bad row: {"row", "reason", "values", "table"}

dataset.json is written last: without it an import was not finished.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

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


@dataclass(frozen=True)
class Dataset:
    """A canonical data set in memory; `info` is dataset.json."""

    path: Path
    events: pa.Table
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
        events = pq.read_table(path / "events.parquet")
        items = pq.read_table(path / "items.parquet")
        info = json.loads((path / "dataset.json").read_text(encoding="utf-8"))
    except (pa.ArrowException, ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DatasetError(f"{path}: cannot be read ({reason}); run `python -m training import` again") from error
    _check_columns(path / "events.parquet", events, {field.name: field.type for field in EVENT_SCHEMA})
    _check_columns(path / "items.parquet", items, ITEM_FIELDS)
    if not isinstance(info, dict):
        raise DatasetError(f"{path / 'dataset.json'}: not a JSON object; run `python -m training import` again")
    if events.num_rows == 0 or items.num_rows == 0:
        raise DatasetError(f"{path}: no events or no items; run `python -m training import` on a source that has some")
    return Dataset(path, events, items, info)


def write_dataset(
    path: Path, *, events: pa.Table, items: pa.Table, info: dict[str, Any], rejects: list[dict[str, Any]]
) -> None:
    """Writes the four files; dataset.json last, so that a torn import is not taken for a whole one."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "dataset.json").unlink(missing_ok=True)
    with (path / "rejects.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rejects)
    pq.write_table(items, path / "items.parquet")
    pq.write_table(events.select(EVENT_SCHEMA.names).cast(EVENT_SCHEMA), path / "events.parquet")
    text = json.dumps(info, indent=2, ensure_ascii=False) + "\n"
    (path / "dataset.json").write_text(text, encoding="utf-8")


def watermark_of(events: pa.Table) -> dict[str, Any] | None:
    """Up to where in a server's journal events go that `python -m server.journal export` wrote; None for others.

    Raises DatasetError if what the table says is no epoch and position.
    """
    text = (events.schema.metadata or {}).get(WATERMARK, b"").decode(errors="replace")
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


def _check_columns(path: Path, table: pa.Table, wanted: dict[str, pa.DataType]) -> None:
    for name, kind in wanted.items():
        if name not in table.column_names:
            raise DatasetError(f"{path}: column {name} is missing; run `python -m training import` again")
        found = table.schema.field(name).type
        if found != kind:
            raise DatasetError(f"{path}: column {name} is {found}, not {kind}; run `python -m training import` again")
