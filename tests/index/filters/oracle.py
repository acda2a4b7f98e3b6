"""Filters and items at random, and what a filter means, in plain Python, one item at a time."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
from hypothesis import strategies as st

from index.filters.filter import Condition, Exists, Filter, MatchAny, Nested, Range, TimeRange
from index.filters.values import Value, microseconds
from index.slots import SlotTable

NAMES = ("brand", "price", "new", "since")
WORDS = ("acme", "zeta", "été", "", "a", "b", "c", "d")
DAYS = [datetime(2026, 1, day, tzinfo=UTC) for day in range(1, 5)]
LONG = "x" * 257

words = st.sampled_from(WORDS)
numbers = st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0])
values = st.one_of(
    words, st.lists(words, max_size=4), numbers, st.booleans(), st.sampled_from(DAYS), st.integers(0, 5), st.just(LONG)
)
# Mostly one kind a name, as in life, so that filters have something to find.
items = st.fixed_dictionaries(
    {},
    optional={
        "brand": st.one_of(words, st.lists(words, max_size=4), st.lists(words, max_size=9), values),
        "price": st.one_of(numbers, numbers, numbers, values),
        "new": st.one_of(st.booleans(), st.booleans(), values),
        "since": st.one_of(st.sampled_from(DAYS), st.sampled_from(DAYS), values),
    },
)
names = st.sampled_from((*NAMES, "nobody's"))
ids = st.integers(0, 12).map(lambda n: f"item-{n}")
maybe_number = st.none() | numbers
maybe_time = st.none() | st.sampled_from([microseconds(day) for day in DAYS])
leaves = st.one_of(
    st.builds(MatchAny, names, st.frozensets(words, min_size=1)),
    st.builds(MatchAny, st.just("brand"), st.frozensets(words, min_size=1)),
    st.builds(MatchAny, names, st.frozensets(numbers, min_size=1)),
    st.builds(MatchAny, names, st.frozensets(st.booleans(), min_size=1)),
    st.builds(Range, st.sampled_from(["price", "price", "brand"]), maybe_number, maybe_number, maybe_number, maybe_number),
    st.builds(TimeRange, st.sampled_from(["since", "since", "price"]), maybe_time, maybe_time, maybe_time, maybe_time),
    st.builds(Exists, names),
)


def _filters(conditions: st.SearchStrategy[Condition]) -> st.SearchStrategy[Filter]:
    group = st.lists(conditions, max_size=2).map(tuple)
    return st.builds(Filter, group, group, group, st.none() | st.frozensets(ids, max_size=8), st.frozensets(ids, max_size=3))


filters = _filters(st.one_of(leaves, leaves, st.recursive(leaves, lambda inner: _filters(inner).map(Nested), max_leaves=6)))


def passes(filter: Filter, item_id: str, item: Mapping[str, Value]) -> bool:
    """Whether an item passes; the whole definition."""
    return _matches(filter, item_id, item) and not any(_is_refused(one, item) for one in filter.conditions())


def _matches(filter: Filter, item_id: str, item: Mapping[str, Value]) -> bool:
    return (
        all(_holds(one, item_id, item) for one in filter.must)
        and (not filter.should or any(_holds(one, item_id, item) for one in filter.should))
        and not any(_holds(one, item_id, item) for one in filter.must_not)
        and (filter.allow is None or item_id in filter.allow)
        and item_id not in filter.deny
    )


def _holds(condition: Condition, item_id: str, item: Mapping[str, Value]) -> bool:
    if isinstance(condition, Nested):
        return _matches(condition.filter, item_id, item)
    value = item.get(condition.attribute)
    if value is None or value == []:
        return False
    if isinstance(condition, Exists):
        return True
    if isinstance(condition, MatchAny):
        held = value if isinstance(value, list) else [value]
        return any(kind_of(one) == kind_of(wanted) and one == wanted for one in held for wanted in condition.values)
    if isinstance(condition, Range):
        return kind_of(value) == "number" and _within(value, condition)
    return kind_of(value) == "time" and _within(microseconds(value), condition)  # type: ignore[arg-type]


def _within(value: Any, bounds: Range | TimeRange) -> bool:
    return (
        (bounds.gt is None or value > bounds.gt)
        and (bounds.gte is None or value >= bounds.gte)
        and (bounds.lt is None or value < bounds.lt)
        and (bounds.lte is None or value <= bounds.lte)
    )


def _is_refused(condition: Condition, item: Mapping[str, Value]) -> bool:
    if isinstance(condition, Nested | Exists):
        return False  # a nested filter's conditions are looked at by themselves
    value = item.get(condition.attribute)
    return value is not None and value != [] and kind_of(value) != _kind_wanted(condition)


def _kind_wanted(condition: MatchAny | Range | TimeRange) -> str:
    if isinstance(condition, MatchAny):
        return kind_of(next(iter(condition.values)))
    return "number" if isinstance(condition, Range) else "time"


def is_incomparable(filter: Filter, items: Iterable[Mapping[str, Value]]) -> bool:
    """Whether a condition can be compared with no item, although some have its attribute."""
    held = list(items)
    for one in filter.conditions():
        if not isinstance(one, Nested | Exists):
            kinds = {kind_of(item[one.attribute]) for item in held if item.get(one.attribute, []) != []}
            if kinds and _kind_wanted(one) not in kinds:
                return True
    return False


def kind_of(value: Any) -> str:
    if isinstance(value, str | list):
        return "other" if value == LONG else "text"
    if isinstance(value, bool):
        return "boolean"
    return "time" if isinstance(value, datetime) else "number"


def table_of(items: list[dict[str, Value]], *, capacity: int = 4) -> SlotTable:
    """A slot table of item-0, item-1, ... in slots 0, 1, ..."""
    table = SlotTable(capacity=capacity)
    slots = [table.insert(f"item-{number}") for number in range(len(items))]
    table.columns.set(np.array(slots, dtype=np.int64), items)
    return table
