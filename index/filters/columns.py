"""Attributes of items as columns by slot."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.filters.filter import Kind
from index.filters.keywords import Keywords

Value = str | bool | int | float | datetime | Sequence[str]
"""What an attribute can be; a datetime without a time zone is in UTC."""

NAMES_MAX = 256
"""Attributes that have a column: each takes up to some ten bytes a slot."""
KEYWORD_BYTES = 256
"""A longer string is kept nowhere here and cannot be compared: a description is not a keyword."""
KEYWORDS_MAX = 64
"""Keywords of one attribute of one item; a longer list cannot be compared."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Column:
    """One attribute of all slots. A slot holds a value of at most one kind; different slots may hold different kinds."""

    def __init__(self, capacity: int) -> None:
        self.kind: NDArray[np.uint8] = np.zeros(capacity, dtype=np.uint8)  # (capacity,) a `Kind` each
        self.counts: NDArray[np.int64] = np.zeros(len(Kind), dtype=np.int64)  # slots by kind; ABSENT is not counted
        self.keywords = Keywords(capacity)
        # By kind, each made when it is first needed: (capacity,) float64, bool, int64 microseconds.
        self.plain: dict[Kind, NDArray[Any]] = {}

    def put(self, kind: Kind, slots: NDArray[np.int64], values: list[Any]) -> None:
        """Writes values of one kind into slots that hold nothing: (n,) int64, each slot once."""
        if kind is Kind.KEYWORDS:
            self.keywords.put(slots, values)
        elif kind is not Kind.OTHER:
            if kind not in self.plain:
                self.plain[kind] = np.zeros(len(self.kind), dtype=_DTYPES[kind])
            self.plain[kind][slots] = values
        self.kind[slots] = kind
        self.counts[kind] += len(slots)

    def clear(self, slots: NDArray[np.int64]) -> None:
        """Empties slots: (n,) int64, each slot once."""
        kinds = self.kind[slots]
        counts = np.bincount(kinds, minlength=len(Kind))
        counts[Kind.ABSENT] = 0
        self.counts -= counts
        if counts[Kind.KEYWORDS]:
            self.keywords.clear(slots[kinds == Kind.KEYWORDS])
        for values in self.plain.values():
            values[slots] = 0
        self.kind[slots] = Kind.ABSENT

    def grow(self, capacity: int) -> None:
        added = capacity - len(self.kind)
        self.kind = np.pad(self.kind, (0, added))
        self.plain = {kind: np.pad(values, (0, added)) for kind, values in self.plain.items()}
        self.keywords.grow(capacity)


class AttributeColumns:
    """The attributes of all slots: one column a name. It grows with the slot table, whose owner thread calls it.

    Only the first `NAMES_MAX` names have a column. `overflowed` says that there were more: then a filter on a name without a
    column is refused, since nobody can tell whether an item has it.
    """

    def __init__(self, capacity: int) -> None:
        self._columns: dict[str, Column] = {}
        self._holds: NDArray[np.bool_] = np.zeros(capacity, dtype=bool)  # (capacity,) whether it may hold any attribute
        self.overflowed = False

    def get(self, name: str) -> Column | None:
        """The column of an attribute; None if no item has ever had it."""
        return self._columns.get(name)

    def set(self, slots: NDArray[np.int64], attributes: Sequence[Mapping[str, Value]]) -> None:
        """Replaces all attributes of the slots: (n,) int64, n mappings. If a slot occurs twice the last one counts.

        An empty list of keywords is no attribute. Raises ValueError if the lengths differ or a slot is beyond the capacity;
        nothing is written then.
        """
        if len(slots) != len(attributes):
            raise ValueError(f"expected attributes for {len(slots)} slots, got {len(attributes)}")
        last = dict(zip(slots.tolist(), attributes, strict=True))
        if last and not (min(last) >= 0 and max(last) < len(self._holds)):
            raise ValueError(f"slots must be 0 to {len(self._holds) - 1}")
        values: dict[tuple[str, Kind], tuple[list[int], list[Any]]] = {}
        for slot, mapping in last.items():
            for name, value in mapping.items():
                kind, plain = _plain(value)
                if kind is not Kind.ABSENT:
                    at, held = values.setdefault((name, kind), ([], []))
                    at.append(slot)
                    held.append(plain)
        self.clear(slots)
        for (name, kind), (at, held) in values.items():
            column = self._column(name)
            if column is not None:
                places = np.array(at, dtype=np.int64)
                column.put(kind, places, held)
                self._holds[places] = True

    def clear(self, slots: NDArray[np.int64]) -> None:
        """Forgets all attributes of the slots: (n,) int64. Nothing of them can be read again."""
        slots = slots[slots < len(self._holds)]
        slots = slots[self._holds[slots]]
        if len(slots):
            slots = np.unique(slots) if len(slots) > 1 else slots
            for column in self._columns.values():
                column.clear(slots)
            self._holds[slots] = False

    def clear_one(self, slot: int) -> None:
        """`clear` for one slot, at no cost for one that holds nothing."""
        if self._holds[slot]:
            self.clear(np.array([slot]))

    def grow(self, capacity: int) -> None:
        """Makes room for slots below `capacity`."""
        self._holds = np.pad(self._holds, (0, capacity - len(self._holds)))
        for column in self._columns.values():
            column.grow(capacity)

    def _column(self, name: str) -> Column | None:
        column = self._columns.get(name)
        if column is None:
            if len(self._columns) == NAMES_MAX:
                self.overflowed = True
                return None
            column = self._columns[name] = Column(len(self._holds))
        return column


_DTYPES = {Kind.NUMBER: np.float64, Kind.BOOLEAN: np.bool_, Kind.TIMESTAMP: np.int64}


def microseconds(moment: datetime) -> int:
    """Microseconds since 1970, UTC."""
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return (aware - _EPOCH) // _MICROSECOND


def _plain(value: Value) -> tuple[Kind, Any]:
    """The kind of a value, and the value as its column takes it."""
    if isinstance(value, str):
        return (Kind.KEYWORDS, (value,)) if _is_keyword(value) else (Kind.OTHER, None)
    if isinstance(value, bool):
        return Kind.BOOLEAN, value
    if isinstance(value, int | float):
        # NaN compares with nothing, so it must not count as a number that a range rules out and must_not lets in.
        return (Kind.NUMBER, float(value)) if value == value else (Kind.OTHER, None)
    if isinstance(value, datetime):
        return Kind.TIMESTAMP, microseconds(value)
    if isinstance(value, list | tuple):
        if not value:
            return Kind.ABSENT, None
        if len(value) <= KEYWORDS_MAX and all(isinstance(one, str) and _is_keyword(one) for one in value):
            return Kind.KEYWORDS, tuple(dict.fromkeys(value))
    return Kind.OTHER, None


def _is_keyword(value: str) -> bool:
    return len(value) <= KEYWORD_BYTES and len(value.encode(errors="surrogatepass")) <= KEYWORD_BYTES
