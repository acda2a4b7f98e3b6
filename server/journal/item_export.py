"""The catalogue for training: what the journal knows of the items that are in it, as an items.parquet."""

import json
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import apsw
import pyarrow as pa
import pyarrow.parquet as pq

from server.errors import StartupError
from server.journal.export import open_readable, put_in_place

COLUMNS = (("item_id", pa.string()), ("text", pa.string()), ("categories", pa.list_(pa.string())))
_OWN = {name for name, _ in COLUMNS} | {"popularity"}  # no attribute takes the name of a column that training reads or writes
_TIME = pa.timestamp("us", "UTC")
_ROWS_AT_ONCE = 20_000
_ITEMS = "SELECT item_id, text, categories, attributes FROM items WHERE removed_at IS NULL ORDER BY ordinal"


def export_items(directory: Path, out: Path) -> int:
    """Writes the items of the catalogue, also while a server runs, and returns how many.

    Each attribute is a column of the one type that all its values have: numbers with a fraction among whole ones make floats,
    any other mixture strings. An unavailable item is in it, a removed one is not. Raises StartupError.
    """
    if out.exists():
        raise StartupError(f"{out} exists; choose another --items")
    aside = out.with_name(f".{out.name}.partial")
    count = 0
    try:
        with closing(open_readable(directory)) as reader:
            reader.execute("BEGIN")  # both passes see one moment
            schema = _schema(reader)
            with pq.ParquetWriter(aside, schema) as writer:
                rows = iter(reader.execute(_ITEMS))
                while part := [_row(row, schema) for row in islice(rows, _ROWS_AT_ONCE)]:
                    writer.write_table(pa.Table.from_pylist(part, schema=schema))
                    count += len(part)
        put_in_place(aside, out)
    except (OSError, apsw.Error, pa.ArrowException) as error:
        raise StartupError(f"cannot export to {out}: {error}; check the directory, its permissions and its space") from None
    finally:
        aside.unlink(missing_ok=True)
    return count


def _schema(reader: apsw.Connection) -> pa.Schema:
    """The columns of all items: their own, then the attributes by name."""
    kinds: dict[str, set[pa.DataType]] = {}
    for name, value in _attributes(reader):
        kinds.setdefault(name, set()).add(_kind(value))
    return pa.schema([*COLUMNS, *((name, _common(kinds[name])) for name in sorted(kinds))])


def _attributes(reader: apsw.Connection) -> Iterator[tuple[str, Any]]:
    for row in reader.execute(_ITEMS):
        for name, value in json.loads(str(row[3])).items():
            if name not in _OWN:
                yield name, value


def _kind(value: Any) -> pa.DataType:
    """The type of one value as the journal keeps it; see server/catalogue/attributes.py."""
    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, int):
        return pa.int64() if -(2**63) <= value < 2**63 else pa.float64()
    if isinstance(value, float):
        return pa.float64()
    if isinstance(value, list):
        return pa.list_(pa.string())
    return _TIME if isinstance(value, dict) else pa.string()


def _common(kinds: set[pa.DataType]) -> pa.DataType:
    if len(kinds) == 1:
        return next(iter(kinds))
    return pa.float64() if kinds == {pa.int64(), pa.float64()} else pa.string()


def _row(row: tuple[Any, ...], schema: pa.Schema) -> dict[str, Any]:
    item_id, text, categories, attributes = row
    own = {"item_id": item_id, "text": text, "categories": json.loads(categories)}
    return own | {
        name: _cell(value, schema.field(name).type) for name, value in json.loads(attributes).items() if name not in _OWN
    }


def _cell(value: Any, kind: pa.DataType) -> Any:
    plain = value["timestamp"] if isinstance(value, dict) else value
    if kind == _TIME:
        return datetime.fromisoformat(plain)
    if kind == pa.string():
        return plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)
    return float(plain) if kind == pa.float64() else plain
