"""items.parquet and vocabularies.json: the items a bundle knows, row i of the table being row i of the tensors."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from index.bundle.errors import BundleInvalidError, BundleTornError
from index.bundle.format import ITEM_ID_BYTES, ITEMS, VOCABULARIES

_REWRITE = "correct the items and write the bundle again"
COLUMNS: dict[str, pa.DataType] = {
    "item_id": pa.string(),
    "text": pa.string(),
    "categories": pa.list_(pa.string()),
    "popularity": pa.float64(),
}
_ATTRIBUTE_TYPES = (pa.string(), pa.float64(), pa.int64(), pa.bool_(), pa.list_(pa.string()))
_STORED_TYPES = "string, float64, int64, bool, timestamp or list<string>"
GREATEST_CODE = 2**31 - 1


def items_bytes(items: pa.Table) -> bytes:
    """Parquet bytes of the table, with large strings, dictionaries and timestamps brought to the format's types."""
    plain = plain_items(items)
    buffer = io.BytesIO()
    pq.write_table(plain, buffer, compression="zstd")
    return buffer.getvalue()


def plain_items(items: pa.Table) -> pa.Table:
    """The same columns in the format's types (pandas and polars write strings as large_string or dictionary)."""
    fields = [pa.field(field.name, _plain_type(field.name, field.type)) for field in items.schema]
    try:
        return items.cast(pa.schema(fields)).combine_chunks()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise BundleInvalidError(ITEMS, f"has a column that cannot be stored ({error})", _REWRITE) from error


def load_items(data: bytes) -> pa.Table:
    """The table in parquet bytes, every value checked to be what its type says. Raises BundleTornError if not."""
    try:
        items = pq.read_table(pa.BufferReader(data))
        items.validate(full=True)  # strings are UTF-8, offsets stay inside their buffers
        items.schema.names  # noqa: B018 - decodes the names, which validate does not
        return items
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise BundleTornError(ITEMS, f"is not a readable parquet file ({error})", "copy the bundle again") from error


def check_items(items: pa.Table) -> None:
    """Refuses wrong columns and types, bad ids and bad popularity. In Arrow alone, which lets other threads run."""
    _check_columns(items)
    ids = items.column("item_id")
    sizes = pc.binary_length(ids)
    wrong = pc.or_(pc.equal(sizes, 0), pc.greater(sizes, ITEM_ID_BYTES))
    if pc.any(wrong).as_py():
        row = _first(wrong)
        problem = f"row {row} has an item_id of {sizes[row].as_py()} bytes, not 1 to {ITEM_ID_BYTES}"
        raise BundleInvalidError(ITEMS, problem, _REWRITE)
    wrong = pc.match_substring(ids, "\0")
    if pc.any(wrong).as_py():
        raise BundleInvalidError(ITEMS, f"row {_first(wrong)} has an item_id with a NUL character", _REWRITE)
    popularity = items.column("popularity")
    wrong = pc.invert(pc.and_(pc.is_finite(popularity), pc.greater_equal(popularity, 0.0)))
    if pc.any(wrong).as_py():
        row = _first(wrong)
        raise BundleInvalidError(ITEMS, f"row {row} has popularity {popularity[row].as_py()}, not a count", _REWRITE)
    if pc.count_distinct(ids).as_py() != len(ids):
        counts = pc.value_counts(ids)
        twice = counts.filter(pc.greater(counts.field("counts"), 1))[0]["values"].as_py()
        raise BundleInvalidError(ITEMS, f"item_id {twice!r} is there more than once", _REWRITE)


def vocabularies_bytes(categories: dict[str, int]) -> bytes:
    """vocabularies.json: categories by code."""
    ordered = dict(sorted(categories.items(), key=lambda pair: (pair[1], pair[0])))
    return json.dumps({"categories": ordered}, ensure_ascii=False, indent=0).encode()


def load_categories(data: bytes) -> dict[str, int]:
    """Category value -> code in vocabularies.json; codes are whole numbers from 1."""
    try:
        vocabularies = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BundleTornError(VOCABULARIES, f"is not JSON ({error})", "copy the bundle again") from error
    categories: Any = vocabularies.get("categories") if isinstance(vocabularies, dict) else None
    if not isinstance(categories, dict) or set(vocabularies) != {"categories"}:
        raise BundleInvalidError(VOCABULARIES, "is not an object with just 'categories'", _REWRITE)
    for value, code in categories.items():
        if type(code) is not int or not 1 <= code <= GREATEST_CODE:
            problem = f"category {value[:80]!r} has code {code!r}, not a whole number from 1 (0 is unknown)"
            raise BundleInvalidError(VOCABULARIES, problem, _REWRITE)
    return categories


def category_codes(categories: Mapping[str, int], values: Sequence[str], slots: int) -> list[int]:
    """Codes of `values` in their order: unknown ones dropped, at most `slots`, padded with 0 to exactly `slots`."""
    codes = [categories[value] for value in values if value in categories][:slots]
    return codes + [0] * (slots - len(codes))


def _check_columns(items: pa.Table) -> None:
    names = items.column_names
    if len(set(names)) != len(names):
        raise BundleInvalidError(ITEMS, "has two columns of the same name", _REWRITE)
    for name, kind in COLUMNS.items():
        if name not in names:
            raise BundleInvalidError(ITEMS, f"lacks the column {name}", _REWRITE)
        if items.schema.field(name).type != kind:
            raise BundleInvalidError(ITEMS, f"column {name} is {items.schema.field(name).type}, not {kind}", _REWRITE)
        if items.column(name).null_count:
            raise BundleInvalidError(ITEMS, f"column {name} has nulls", _REWRITE)
    if pc.list_flatten(items.column("categories")).null_count:
        raise BundleInvalidError(ITEMS, "column categories has a null inside a list", _REWRITE)
    for field in items.schema:
        if field.name not in COLUMNS and field.type not in _ATTRIBUTE_TYPES and not pa.types.is_timestamp(field.type):
            problem = f"column {field.name} is {field.type}, an attribute is {_STORED_TYPES}"
            raise BundleInvalidError(ITEMS, problem, _REWRITE)
        if pa.types.is_timestamp(field.type):
            _check_times(items, field.name)
    if items.num_rows == 0:
        raise BundleInvalidError(ITEMS, "has no items", _REWRITE)


def _check_times(items: pa.Table, name: str) -> None:
    """Refuse times that Python cannot hold: outside the years 1 to 9999, or in a zone that it does not know."""
    try:
        extremes = pc.min_max(items.column(name))
        extremes.as_py()
    except (OverflowError, ValueError, pa.ArrowException, LookupError) as error:
        problem = f"column {name} has times that cannot be read ({' '.join(str(error).split())[:120]})"
        raise BundleInvalidError(ITEMS, problem, _REWRITE) from error


def _plain_type(name: str, kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _plain_type(name, kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind) or pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(_plain_type(name, kind.value_type))
    if pa.types.is_floating(kind) or (name == "popularity" and pa.types.is_integer(kind)):
        return pa.float64()
    if pa.types.is_integer(kind):
        return pa.int64()
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", tz=kind.tz)
    return kind


def _first(mask: pa.ChunkedArray) -> int:
    return int(np.argmax(mask.to_numpy()))
