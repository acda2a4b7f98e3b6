"""Which slots pass a filter. Written against the array API standard: `xp` is NumPy, or any other namespace that keeps to it.

The columns lie in host memory; what is compared goes through `xp.asarray`, and the answer is an array of `xp`.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType, ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.filters.columns import AttributeColumns, Column
from index.filters.filter import Condition, Exists, Filter, FilterError, Kind, MatchAny, Nested, Range, TimeRange
from index.filters.keywords import Keywords
from index.slots import SlotTable

IdSlots = Mapping[frozenset[str], NDArray[np.int64]]
"""Slots of the live items of lists of ids that have been looked up already."""

_FEW = 4  # wanted values that are compared one by one rather than looked up


def evaluate(
    filter: Filter,
    table: SlotTable,
    slots: NDArray[np.int64] | slice | None = None,
    *,
    xp: ModuleType = np,
    known: IdSlots = MappingProxyType({}),
) -> Any:  # an array of xp
    """Which slots hold a live item that passes the filter: (extent,) bool, or (n,) bool for (n,) int64 slots or a slice of n.

    Availability and vectors are others' to check. A slot that the table does not have passes nothing. A slice has a start, and
    a stop within the extent. known: what need not be looked up again where all slots or a slice are asked for.
    """
    if slots is None or isinstance(slots, slice):
        return _Evaluation(table, slice(0, table.extent) if slots is None else slots, xp, known).run(filter)
    inside = (slots >= 0) & (slots < table.extent)
    if inside.all():
        return _Evaluation(table, slots, xp).run(filter)
    if not table.extent:
        return xp.asarray(inside)
    return _Evaluation(table, np.where(inside, slots, 0), xp).run(filter) & xp.asarray(inside)


def check_comparable(filter: Filter, columns: AttributeColumns) -> None:
    """Raises FilterError if a condition cannot be compared with any item although some have its attribute.

    An attribute that no item has is well defined: nothing matches.
    """
    for one in filter.conditions():
        if isinstance(one, Nested):
            continue
        column = columns.get(one.attribute)
        if column is None:
            if columns.overflowed:
                raise FilterError(one.attribute, "is not indexed: there are more names of attributes than can be; use fewer")
        elif not isinstance(one, Exists) and any(counts := column.counts.tolist()) and not counts[one.kind]:
            held = " and ".join(_NAMES[kind] for kind in Kind if counts[kind])
            raise FilterError(one.attribute, f"is {held} in every item that has it; {_CURES[one.kind]}")


class _Evaluation:
    def __init__(
        self, table: SlotTable, slots: NDArray[np.int64] | slice, xp: ModuleType, known: IdSlots = MappingProxyType({})
    ) -> None:
        self._table = table
        self._columns = table.columns
        self._slots = slots
        self._xp = xp
        self._known = known
        self._live = self._part(table.live)
        self._none = xp.zeros_like(self._live)  # (n,) bool, all false
        self._refused = self._none  # which slots hold an attribute in a kind that cannot be compared

    def run(self, filter: Filter) -> Any:
        passes = self._filter(filter)
        return passes & ~self._refused & self._live

    def _filter(self, filter: Filter) -> Any:
        passes = ~self._none
        for one in filter.must:
            passes = passes & self._condition(one)
        if filter.should:
            some = self._none
            for one in filter.should:
                some = some | self._condition(one)
            passes = passes & some
        for one in filter.must_not:
            passes = passes & ~self._condition(one)
        if filter.allow is not None:
            passes = passes & self._is_among(filter.allow)
        if filter.deny:
            passes = passes & ~self._is_among(filter.deny)
        return passes

    def _condition(self, condition: Condition) -> Any:
        """Which slots match: (n,) bool. Notes which ones can not be compared."""
        if isinstance(condition, Nested):
            return self._filter(condition.filter)
        column = self._columns.get(condition.attribute)
        if column is None:
            if self._columns.overflowed:
                self._refused = ~self._none
            return self._none
        kind = self._part(column.kind)
        if isinstance(condition, Exists):
            return kind != int(Kind.ABSENT)
        wanted = kind == int(condition.kind)
        self._refused = self._refused | ((kind != int(Kind.ABSENT)) & ~wanted)
        if not column.counts[condition.kind]:
            return wanted  # nobody holds it in this kind: all false
        return wanted & self._compare(condition, column)

    def _compare(self, condition: MatchAny | Range | TimeRange, column: Column) -> Any:
        """Compares the values of the condition's kind; what comes out for slots that hold another kind means nothing."""
        if isinstance(condition, Range | TimeRange):
            return self._is_within(self._part(column.plain[condition.kind]), condition)
        if condition.kind is Kind.KEYWORDS:
            return self._holds_any(column.keywords, [str(value) for value in condition.values])
        values = self._part(column.plain[condition.kind])
        if condition.kind is Kind.BOOLEAN:
            return values if condition.values == {True} else ~values if condition.values == {False} else values | ~values
        return self._is_any(values, sorted(float(value) for value in condition.values))

    def _is_within(self, values: Any, bounds: Range | TimeRange) -> Any:
        within = ~self._none
        if bounds.gt is not None:
            within = within & (values > bounds.gt)
        if bounds.gte is not None:
            within = within & (values >= bounds.gte)
        if bounds.lt is not None:
            within = within & (values < bounds.lt)
        if bounds.lte is not None:
            within = within & (values <= bounds.lte)
        return within

    def _is_any(self, values: Any, wanted: list[float]) -> Any:
        xp = self._xp
        if len(wanted) <= _FEW:
            found = values == wanted[0]
            for one in wanted[1:]:
                found = found | (values == one)
            return found
        ordered = xp.asarray(np.array(wanted))  # (m,) float64
        place = xp.searchsorted(ordered, values)  # (n,)
        return xp.take(ordered, xp.clip(place, 0, len(wanted) - 1)) == values

    def _holds_any(self, keywords: Keywords, wanted: Sequence[str]) -> Any:
        xp = self._xp
        found = self._none
        codes = keywords.codes_of(wanted)  # (<= m,) int32: of those that any item has
        if not len(codes):
            return found
        table = None
        if len(codes) > _FEW:
            is_wanted = np.zeros(keywords.code_count, dtype=bool)  # by code; padding is not wanted
            is_wanted[codes] = True
            table = xp.asarray(is_wanted)
        for row in keywords.rows:  # (capacity,) int32: the first keyword of each slot, the second, ...
            held = self._part(row)
            if table is not None:
                found = found | xp.take(table, held)
                continue
            for code in codes.tolist():
                found = found | (held == code)
        if keywords.long.count:
            found = found | xp.asarray(keywords.long.holding(self._slots, codes, keywords.code_count))
        return found

    def _is_among(self, item_ids: frozenset[str]) -> Any:
        if isinstance(self._slots, slice):
            start, stop = self._slots.start, self._slots.stop
            known = self._known.get(item_ids)
            slots = self._table.slots(tuple(item_ids)) if known is None else known
            among = np.zeros(stop - start, dtype=bool)
            among[slots[(slots >= start) & (slots < stop)] - start] = True
        else:
            among = np.fromiter((one in item_ids for one in self._table.ids[self._slots].tolist()), dtype=bool)
        return self._xp.asarray(among)

    def _part(self, column: NDArray[Any]) -> Any:
        """The slots' part of a column: (capacity,) -> (n,) of xp."""
        return self._xp.asarray(column[self._slots])


_NAMES = {
    Kind.KEYWORDS: "text",
    Kind.NUMBER: "a number",
    Kind.BOOLEAN: "a boolean",
    Kind.TIMESTAMP: "a timestamp",
    Kind.OTHER: "too long to be compared",
    Kind.ABSENT: "absent",
}
_CURES = {
    Kind.KEYWORDS: "match_any with strings needs text of at most 256 bytes or a list of at most 64: upsert the items with it",
    Kind.NUMBER: "a number needs numbers to compare with: upsert the items with numbers, or ask for what they hold",
    Kind.BOOLEAN: "match_any with booleans needs booleans: upsert the items with them, or ask for what they hold",
    Kind.TIMESTAMP: "time_range needs timestamps: upsert the items with them, or ask for what they hold",
}
