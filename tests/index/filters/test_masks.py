from collections.abc import Mapping
from typing import Any

import array_api_strict
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from index.filters.columns import Value
from index.filters.filter import Exists, Filter, FilterError, MatchAny, Range
from index.filters.masks import MaskCache, SlotMask
from index.slots import SlotTable
from tests.index.filters.oracle import filters, is_incomparable, items, passes, table_of

ACME = Filter(must=(MatchAny("brand", frozenset(["acme"])),))


def all_hold(slots: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.ones(len(slots), dtype=bool)


class Masks(RuleBasedStateMachine):
    """Items come, change and go while a few filters are asked again and again, against what a dictionary says."""

    def __init__(self) -> None:
        super().__init__()
        self.table = SlotTable(capacity=2)
        self.has_vector: set[int] = set()
        self.cache = MaskCache(self.table, self.holds, capacity=3)
        self.items: dict[str, tuple[int, Mapping[str, Value], bool]] = {}  # id -> slot, attributes, available
        self.filters: list[Filter] = [Filter()]

    def holds(self, slots: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.isin(slots, list(self.has_vector))

    @rule(number=st.integers(0, 12), attributes=items, vector=st.booleans(), available=st.booleans())
    def upsert(self, number: int, attributes: dict[str, Value], vector: bool, available: bool) -> None:
        item_id = f"item-{number}"
        slot = self.table.insert(item_id, available=available)
        self.table.columns.set(np.array([slot]), [attributes])
        (self.has_vector.add if vector else self.has_vector.discard)(slot)
        self.items[item_id] = (slot, attributes, available)
        self.cache.changed(np.array([slot]))

    @rule(number=st.integers(0, 12))
    def remove(self, number: int) -> None:
        slot = self.table.remove(f"item-{number}")
        if slot >= 0:
            del self.items[f"item-{number}"]
            self.table.free(slot)
            self.cache.changed(np.array([slot]))

    @rule(filter=filters)
    def another_filter(self, filter: Filter) -> None:
        self.filters = [*self.filters[-4:], filter]

    @rule(read=st.booleans())
    def ask(self, read: bool) -> None:
        for filter in self.filters:
            expected = {
                slot
                for item_id, (slot, item, available) in self.items.items()
                if available and slot in self.has_vector and passes(filter, item_id, item)
            }
            if is_incomparable(filter, (item for _, item, _ in self.items.values())):
                with pytest.raises(FilterError):
                    self.cache.mask(filter)
                continue
            mask = self.cache.mask(filter)
            assert set(np.flatnonzero(mask.passes).tolist()) == expected
            if read:
                check(mask, expected)

    @invariant()
    def the_cache_is_bounded(self) -> None:
        assert len(self.cache) <= 3


def check(mask: SlotMask, expected: set[int]) -> None:
    assert mask.count == len(expected)
    assert mask.slots.tolist() == sorted(expected)
    assert mask.slots.dtype == np.int64
    assert np.unpackbits(mask.bits, bitorder="little")[: len(mask.passes)].tolist() == mask.passes.tolist()
    asked = np.array([-1, *range(40), 10**9])
    assert mask.permits(asked).tolist() == [slot in expected for slot in asked.tolist()]


Masks.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestMasksStayWhatAFullComputationSays = Masks.TestCase


@pytest.mark.parametrize("changes", [3, 5_000, 70_000])
def test_a_mask_catches_up_with_few_changes_and_with_more_than_are_remembered(changes: int):
    table = SlotTable()
    slots = np.array([table.insert(f"item-{number}") for number in range(80_000)])
    table.columns.set(slots, [{"brand": "acme" if slot % 2 else "zeta"} for slot in slots.tolist()])
    cache = MaskCache(table, all_hold)
    mask = cache.mask(ACME)
    assert (mask.count, len(mask.slots), mask.version) == (40_000, 40_000, 0)
    table.columns.set(slots[:changes], [{"brand": "acme"}] * changes)
    for start in range(0, changes, 1000):
        cache.changed(slots[start : min(start + 1000, changes)])
    assert cache.mask(ACME) is mask
    expected = set(range(changes)) | set(range(1, 80_000, 2))
    assert mask.version == 1
    check(mask, expected)
    cache.changed(slots)  # all at once, and nothing new
    assert cache.mask(ACME).version == 1


def test_a_slot_beyond_what_the_mask_knows_never_passes():
    table = table_of([{"brand": "acme"}], capacity=1)
    cache = MaskCache(table, all_hold)
    mask = cache.mask(Filter())
    assert mask.permits(np.array([0, 1, 5, -1])).tolist() == [True, False, False, False]
    table.insert("new")
    cache.changed(np.array([1]))
    assert cache.mask(Filter()).permits(np.array([0, 1, 5, -1])).tolist() == [True, True, False, False]
    empty = MaskCache(SlotTable(capacity=0), all_hold).mask(Filter())
    assert not empty.permits(np.array([0, -1])).any()


def test_what_is_not_available_or_has_no_vector_does_not_pass():
    table = table_of([{}, {}, {}])
    table.insert("item-0", available=False)
    cache = MaskCache(table, lambda slots: slots != 1)
    assert cache.mask(Filter()).slots.tolist() == [2]


def test_the_masks_used_last_are_kept():
    table = table_of([{"price": 1}])
    cache = MaskCache(table, all_hold, capacity=2)
    first, second, third = (Filter(must=(Range("price", gt=bound),)) for bound in (1.0, 2.0, 3.0))
    kept = cache.mask(first)
    dropped = cache.mask(second)
    assert cache.mask(first) is kept
    cache.mask(third)
    assert cache.mask(first) is kept
    assert cache.mask(second) is not dropped


def test_filters_with_long_lists_of_ids_do_not_pile_up():
    cache = MaskCache(table_of([{}]), all_hold)
    for start in range(20):
        cache.mask(Filter(deny=frozenset(f"{start}-{number}" for number in range(100_000))))
    assert len(cache) == 10


def test_a_filter_that_can_be_compared_with_nothing_is_refused_also_when_it_was_not_before():
    table = table_of([{"price": 1}])
    cache = MaskCache(table, all_hold)
    cheap = Filter(must=(Range("price", lt=5),))
    assert cache.mask(cheap).count == 1
    table.columns.set(np.array([0]), [{"price": "cheap"}])
    cache.changed(np.array([0]))
    with pytest.raises(FilterError, match="'price' is text"):
        cache.mask(cheap)


def test_masks_are_the_same_with_another_array_library():
    table = table_of([{"brand": "acme"}, {"brand": ["zeta", "acme"]}, {}])
    strict = MaskCache(table, all_hold, xp=array_api_strict)
    assert strict.mask(ACME).slots.tolist() == [0, 1]
    assert strict.mask(Filter(must_not=(Exists("brand"),))).slots.tolist() == [2]
    table.columns.clear(np.array([0]))
    strict.changed(np.array([0]))
    assert strict.mask(ACME).slots.tolist() == [1]
