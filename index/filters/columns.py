"""Attributes of items as columns by slot."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.filters.filter import Kind
from index.filters.keywords import Keywords
from index.filters.values import DTYPES, Group, Grouped, Value, group
from index.growth import longer

NAMES_MAX = 256
"""Attributes that have a column: each takes up to some ten bytes a slot."""


class Column:
    """One attribute of all slots. A slot holds a value of at most one kind; different slots may hold different kinds."""

    def __init__(self, capacity: int) -> None:
        self.kind: NDArray[np.uint8] = np.zeros(capacity, dtype=np.uint8)  # (capacity,) a `Kind` each
        self.counts: NDArray[np.int64] = np.zeros(len(Kind), dtype=np.int64)  # slots by kind; ABSENT is not counted
        self.keywords = Keywords(capacity)
        # By kind, each made when it is first needed: (capacity,) float64, bool, int64 microseconds.
        self.plain: dict[Kind, NDArray[Any]] = {}

    def put(self, slots: NDArray[np.int64], held: Group) -> None:
        """Writes values of one kind into slots that hold nothing: (n,) int64, each slot once, and n values."""
        kind = held.kind
        if held.words is not None:
            self.keywords.put(slots, held.words)
        elif held.plain is not None:
            if kind not in self.plain:
                self.plain[kind] = np.zeros(len(self.kind), dtype=DTYPES[kind])
            self.plain[kind][slots] = held.plain
        self.kind[slots] = kind
        self.counts[kind] += len(slots)

    def clear(self, slots: NDArray[np.int64]) -> None:
        """Empties slots: (n,) int64, each slot once."""
        kinds = self.kind[slots]
        if not kinds.any():
            return
        counts = np.bincount(kinds, minlength=len(Kind))
        counts[Kind.ABSENT] = 0
        self.counts -= counts
        if counts[Kind.KEYWORDS]:
            self.keywords.clear(slots[kinds == Kind.KEYWORDS])
        for values in self.plain.values():
            values[slots] = 0
        self.kind[slots] = Kind.ABSENT

    def grow(self, capacity: int) -> None:
        self.kind = longer(self.kind, capacity)
        self.plain = {kind: longer(values, capacity) for kind, values in self.plain.items()}
        self.keywords.grow(capacity)


class AttributeColumns:
    """The attributes of all slots: one column a name. It grows with the slot table, whose owner thread calls it.

    Only the first `NAMES_MAX` names have a column; until there are more, a name that no slot holds makes room for another.
    `overflowed` says that there were: a filter on a name without a column is refused then, since nobody can tell whose it is.
    """

    def __init__(self, capacity: int) -> None:
        self._columns: dict[str, Column] = {}
        self._holds: NDArray[np.bool_] = np.zeros(capacity, dtype=bool)  # (capacity,) whether it may hold any attribute
        self.overflowed = False

    def get(self, name: str) -> Column | None:
        """The column of an attribute; None if no slot has it, or if there were too many names."""
        return self._columns.get(name)

    def set(self, slots: NDArray[np.int64], attributes: Sequence[Mapping[str, Value]]) -> None:
        """Replaces all attributes of the slots: (n,) int64, n mappings. If a slot occurs twice the last one counts.

        An empty list of keywords is no attribute. Raises ValueError if the lengths differ or a slot is beyond the capacity;
        nothing is written then.
        """
        if len(slots) != len(attributes):
            raise ValueError(f"expected attributes for {len(slots)} slots, got {len(attributes)}")
        self.write(slots, group(attributes))

    def write(self, slots: NDArray[np.int64], grouped: Grouped, items: NDArray[np.int64] | None = None) -> None:
        """`set`, with attributes that were grouped before: 1,000 items with 7 attributes take about a millisecond.

        items: the place in the batch of each slot's item, (n,) int64; by default all, in order. Items that are not named are
        left out. Raises ValueError as `set` does.
        """
        items = np.arange(grouped.count) if items is None else items
        if len(slots) != len(items):
            raise ValueError(f"expected attributes for {len(slots)} slots, got {len(items)}")
        if not len(slots):
            return
        if not (slots.min() >= 0 and slots.max() < len(self._holds)):
            raise ValueError(f"slots must be 0 to {len(self._holds) - 1}")
        last = len(slots) - 1 - np.unique(slots[::-1], return_index=True)[1]
        self.clear(slots[last])
        slot_of = np.full(grouped.count, -1, dtype=np.int64)  # by item
        slot_of[items[last]] = slots[last]
        for held in grouped.groups:
            self._put(slot_of[held.items], held)

    def _put(self, slots: NDArray[np.int64], held: Group) -> None:
        """Writes one group: (n,) int64 slots that hold nothing, -1 for an item that is left out."""
        kept = slots >= 0
        if not kept.all():
            slots, held = slots[kept], held.only(kept)
        column = self._column(held.name) if len(slots) else None
        if column is not None:
            column.put(slots, held)
            self._holds[slots] = True

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
        self._holds = longer(self._holds, capacity)
        for column in self._columns.values():
            column.grow(capacity)

    def _column(self, name: str) -> Column | None:
        column = self._columns.get(name)
        if column is None:
            if len(self._columns) == NAMES_MAX and not self.overflowed:  # a name that was refused once may not come back
                self._columns = {known: one for known, one in self._columns.items() if one.counts.any()}
            if len(self._columns) == NAMES_MAX:
                self.overflowed = True
                return None
            column = self._columns[name] = Column(len(self._holds))
        return column
