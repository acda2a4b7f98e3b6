"""Raw event rows -> canonical events, a piece at a time and all vectorised; sorting them is sorting.py's."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from training.data.dataset import EVENT_SCHEMA
from training.importers.columns import as_strings, find_column, flags, need_column, reading
from training.importers.rejects import Marks, Rejects
from training.importers.times import UnixUnit, parse_times

MAX_ID_BYTES = 256
EVENT_TYPE = r"^[a-z][a-z0-9_.-]{0,63}$"  # what the service takes
NO_ID = r"^(?i:[+-]?(nan|inf|infinity)|null|none|<na>)$"  # what programs write where they have none
DEFAULT_EVENT_TYPE = "view"
NUMBERED_SCHEMA = EVENT_SCHEMA.append(pa.field("row", pa.int64()))  # canonical events with their rows in the source


@dataclass(frozen=True)
class EventColumns:
    """The columns of one source that hold events; there may be none for the type."""

    user_id: str
    item_id: str
    occurred_at: str
    event_type: str | None

    @property
    def names(self) -> list[str]:
        """Those that have to be read, each once."""
        names = (self.user_id, self.item_id, self.event_type, self.occurred_at)
        return list(dict.fromkeys(name for name in names if name is not None))


@dataclass(frozen=True)
class EventRules:
    """How the rows of one import are understood."""

    unit: UnixUnit
    item_ids: pa.Array | None = None  # the known items where the source lists them; events on others are rejected
    type_names: Mapping[str, str] = field(default_factory=dict)  # event types that the source calls by another name


def find_event_columns(columns: list[str], overrides: dict[str, str]) -> EventColumns:
    """Raises DatasetError, which names the columns that there are, where a needed one is missing."""
    user, item, time = (need_column(name, columns, overrides) for name in ("user_id", "item_id", "occurred_at"))
    return EventColumns(user, item, time, find_column("event_type", columns, overrides))


def clean_events(
    raw: pa.Table, row: npt.NDArray[np.int64], columns: EventColumns, rules: EventRules, rejects: Rejects
) -> pa.Table:
    """Canonical events of raw rows numbered by `row` (n,) int64, in their order -> table of NUMBERED_SCHEMA."""
    marks = Marks("events", raw, row)
    users = check_ids(raw, columns.user_id, "user_id", marks)
    items = check_ids(raw, columns.item_id, "item_id", marks)
    types = _types(raw, columns.event_type, rules.type_names)
    marks.reject(~flags(pc.match_substring_regex(types, EVENT_TYPE)), "event_type malformed")
    times, readable = parse_times(raw[columns.occurred_at], rules.unit)
    marks.reject(~readable, "time unreadable or outside 1969-2100")
    if rules.item_ids is not None:
        marks.reject(~flags(pc.is_in(items, value_set=rules.item_ids)), "item not in the items file")
    marks.report(rejects)
    stamps = pa.array(times).cast(EVENT_SCHEMA.field("occurred_at").type)
    table = pa.table([users, items, types, stamps, pa.array(row)], schema=NUMBERED_SCHEMA)
    return table.filter(pa.array(marks.good))


def check_ids(raw: pa.Table, column: str, name: str, marks: Marks) -> pa.Array:
    """(n,) strings of a column; rows without an id, or with one too long for the service, are marked."""
    with reading(column, raw[column]):
        ids = as_strings(raw[column])
    size = pc.fill_null(pc.binary_length(pc.utf8_trim_whitespace(ids)), 0).to_numpy(zero_copy_only=False)
    marks.reject(size == 0, f"{name} missing")
    marks.reject(flags(pc.match_substring_regex(ids, NO_ID)), f"{name} is nan, inf, null or none")
    size = pc.fill_null(pc.binary_length(ids), 0).to_numpy(zero_copy_only=False)
    marks.reject(size > MAX_ID_BYTES, f"{name} over {MAX_ID_BYTES} bytes")
    marks.reject(flags(pc.match_substring(ids, "\0")), f"{name} with a NUL character")
    return ids


def _types(raw: pa.Table, column: str | None, names: Mapping[str, str]) -> pa.Array:
    """(n,) strings in lower case, renamed by `names`; `view` where the source has no such column."""
    if column is None:
        return pa.array([DEFAULT_EVENT_TYPE] * raw.num_rows, pa.string())
    with reading(column, raw[column]):
        types = pc.ascii_lower(as_strings(raw[column]))
    for old, new in names.items():
        types = pc.if_else(pc.equal(types, old), new, types)
    return types
