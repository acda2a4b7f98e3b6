"""Raw event rows -> canonical events: reads, checks, drops exact duplicates and sorts, all vectorised."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from training.dataset import EVENT_SCHEMA
from training.importers.columns import as_strings, find_column, need_column, parse_times
from training.importers.rejects import Marks, Rejects

MAX_ID_BYTES = 256
EVENT_TYPE = r"^[a-z][a-z0-9_.-]{0,63}$"  # what the service takes
DEFAULT_EVENT_TYPE = "view"
NEEDED = ("user_id", "item_id", "occurred_at")


def clean_events(
    raw: pa.Table,
    row: npt.NDArray[np.int64],
    *,
    source: str,
    overrides: dict[str, str],
    item_ids: pa.Array | None,
    rejects: Rejects,
) -> pa.Table:
    """Canonical events of a raw table whose rows are numbered by `row` (n,) int64.

    `item_ids`: the known items where the source lists them; events on others are rejected. Raises DatasetError where a
    needed column is missing.
    """
    columns = raw.column_names
    chosen = {name: need_column(name, columns, overrides, source=source) for name in NEEDED}
    type_column = find_column("event_type", columns, overrides)
    marks = Marks("events", raw, row)
    users = check_ids(raw[chosen["user_id"]], "user_id", marks)
    items = check_ids(raw[chosen["item_id"]], "item_id", marks)
    if type_column is None:
        types = pa.array([DEFAULT_EVENT_TYPE] * raw.num_rows, pa.string())
    else:
        types = pc.ascii_lower(as_strings(raw[type_column]))
        matches = pc.fill_null(pc.match_substring_regex(types, EVENT_TYPE), False)
        marks.reject(~_flags(matches), "event_type malformed")
    times, readable = parse_times(raw[chosen["occurred_at"]])
    marks.reject(~readable, "time unreadable or outside 1969-2100")
    if item_ids is not None:
        marks.reject(~_flags(pc.is_in(items, value_set=item_ids)), "item not in the items file")
    stamps = pa.array(times).cast(EVENT_SCHEMA.field("occurred_at").type)
    table = pa.table([users, items, types, stamps], names=EVENT_SCHEMA.names)
    good = np.flatnonzero(marks.good)
    readable_rows = table.take(pa.array(good)).combine_chunks()
    order = sorted_order(readable_rows)
    ordered = readable_rows.take(pa.array(order))
    repeated = _repeats_earlier(ordered)
    marks.reject(np.isin(np.arange(raw.num_rows), good[order[repeated]]), "duplicate of an earlier row")
    marks.report(rejects)
    return ordered.filter(pa.array(~repeated)).cast(EVENT_SCHEMA)


def check_ids(column: pa.ChunkedArray, name: str, marks: Marks) -> pa.Array:
    """(n,) strings; rows without an id, or with one too long for the service, are marked."""
    ids = as_strings(column)
    size = pc.fill_null(pc.binary_length(ids), 0).to_numpy(zero_copy_only=False)
    marks.reject(size == 0, f"{name} missing")
    marks.reject(size > MAX_ID_BYTES, f"{name} over {MAX_ID_BYTES} bytes")
    marks.reject(_flags(pc.fill_null(pc.match_substring(ids, "\0"), False)), f"{name} with a NUL character")
    return ids


def sorted_order(table: pa.Table) -> npt.NDArray[np.int64]:
    """(n,) int64: the stable order by (user_id, occurred_at); equal times keep the source's order."""
    keyed = table.select(["user_id", "occurred_at"]).append_column("place", pa.array(np.arange(table.num_rows)))
    keys = [(name, "ascending") for name in keyed.column_names]
    order: npt.NDArray[np.int64] = pc.sort_indices(keyed, sort_keys=keys).to_numpy().astype(np.int64)
    return order


def _repeats_earlier(ordered: pa.Table) -> npt.NDArray[np.bool_]:
    """(n,) bool: an earlier row equals this one in all four columns."""
    names = ("event_type", "item_id", "user_id")
    parts = [ordered[name].combine_chunks().dictionary_encode().indices.to_numpy() for name in names]
    parts.append(ordered["occurred_at"].cast(pa.int64()).to_numpy())
    by_key = np.lexsort(tuple(parts))  # stable: equal rows stay in their order
    same = np.ones(max(ordered.num_rows - 1, 0), dtype=np.bool_)
    for part in parts:
        same &= part[by_key][1:] == part[by_key][:-1]
    repeated = np.zeros(ordered.num_rows, dtype=np.bool_)
    repeated[by_key[1:][same]] = True
    return repeated


def _flags(values: pa.Array) -> npt.NDArray[np.bool_]:
    flags: npt.NDArray[np.bool_] = values.to_numpy(zero_copy_only=False).astype(np.bool_)
    return flags
