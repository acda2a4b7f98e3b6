from collections.abc import Iterator, Mapping
from operator import length_hint
from typing import Any

import array_api_strict
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from index.filters.filter import Exists, Filter, FilterError, MatchAny, Nested, Range
from index.filters.masks import MaskCache, SlotMask
from index.filters.values import Value
from index.slots import SlotTable
from tests.index.filters.oracle import filters, is_incomparable, items, passes, table_of

ACME = Filter(must=(MatchAny("brand", frozenset(["acme"])),))


Slots = np.ndarray[Any, Any] | slice


def numbers(slots: Slots) -> np.ndarray[Any, Any]:
    return np.arange(slots.start, slots.stop) if isinstance(slots, slice) else slots


def all_hold(slots: Slots) -> np.ndarray[Any, Any]:
    return np.ones(len(numbers(slots)), dtype=bool)


class Masks(RuleBasedStateMachine):
    """Items come, change and go while a few filters are asked again and again, against what a dictionary says."""

    def __init__(self) -> None:
        super().__init__()
        self.table = SlotTable(capacity=2)
        self.has_vector: set[int] = set()
        self.cache = MaskCache(self.table, self.holds, capacity=3, ids_at_once=1)
        self.preparing: Iterator[None] = iter(())
        self.items: dict[str, tuple[int, Mapping[str, Value], bool]] = {}  # id -> slot, attributes, available
        self.filters: list[Filter] = [Filter()]

    def holds(self, slots: Slots) -> np.ndarray[Any, Any]:
        return np.isin(numbers(slots), list(self.has_vector))

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

    @rule(filter=filters)
    def prepare_another_filter(self, filter: Filter) -> None:
        self.preparing = self.cache.prepare(filter)
        self.filters = [*self.filters[-4:], filter]

    @rule(steps=st.integers(1, 4))
    def go_on_preparing(self, steps: int) -> None:
        for _ in range(steps):
            next(self.preparing, None)

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


@pytest.mark.parametrize("changes", [65_535, 65_536, 65_537])
def test_no_change_is_forgotten_at_the_end_of_the_memory(changes: int):
    table = SlotTable()
    slots = np.array([table.insert(f"item-{number}") for number in range(270_000)])
    held = np.ones(len(slots), dtype=bool)
    cache = MaskCache(table, lambda asked: held[asked])
    assert cache.mask(Filter()).count == 270_000
    cache.changed(slots[:100])
    cache.mask(Filter())
    held[100 : 100 + changes] = False
    cache.changed(slots[100 : 100 + changes])
    assert cache.mask(Filter()).count == 270_000 - changes


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
    cache = MaskCache(table, lambda slots: numbers(slots) != 1)
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


def test_long_lists_of_ids_are_looked_up_in_steps_and_what_changes_meanwhile_counts():
    table = SlotTable(capacity=3_000)
    for number in range(3_000):
        table.insert(f"item-{number}")
    cache = MaskCache(table, all_hold)
    nested = Filter(deny=frozenset(f"item-{number}" for number in range(500)))
    filter = Filter(must=(Nested(nested),), allow=frozenset(f"item-{number}" for number in range(2_000)))
    looked_up: list[int] = []
    table.slots = lambda ids: (looked_up.append(len(ids)), SlotTable.slots(table, ids))[1]  # type: ignore[method-assign]
    steps = cache.prepare(filter)
    for _ in range(5):
        next(steps)
    changed = [table.remove("item-600"), table.remove("item-1999"), table.remove("item-10")]
    table.free(changed[0])
    changed += [table.insert("item-3000"), table.insert("item-600")]
    changed += [table.insert(f"new-{number}") for number in range(20)]  # the table grows
    cache.changed(np.array(changed))
    assert len(list(steps)) >= 5
    assert max(looked_up) <= 256 and sum(looked_up) == filter.id_count == 2_500
    mask = cache.mask(filter)
    expected = {slot for number in range(500, 2_000) if (slot := table.slot(f"item-{number}")) >= 0}
    check(mask, expected)
    assert sum(looked_up) == 2_500
    assert list(cache.prepare(filter)) == [] and cache.mask(filter) is mask
    assert list(cache.prepare(ACME)) == [] and len(cache) == 1  # nothing long to look up


def large_table() -> SlotTable:
    table = SlotTable(capacity=300_000)
    slots = np.array([table.insert(f"item-{number}") for number in range(300_000)])
    table.columns.set(slots[::10], [{"brand": "acme"}] * 30_000)
    return table


def test_any_filter_over_many_slots_is_evaluated_in_steps_and_what_changes_meanwhile_counts():
    table = large_table()
    cache = MaskCache(table, all_hold)
    steps = cache.prepare(ACME)
    assert not cache.is_ready(ACME) and length_hint(steps, 1) == 1
    next(steps)
    changed = [table.remove("item-10"), table.remove("item-299990"), table.insert("another")]
    table.columns.set(np.array([5, 299_995]), [{"brand": "acme"}] * 2)
    cache.changed(np.array([*changed, 5, 299_995]))
    assert len(list(steps)) == 3
    assert cache.is_ready(ACME) and length_hint(cache.prepare(ACME), 1) == 0
    assert cache.mask(ACME).slots.tolist() == sorted({*range(0, 300_000, 10), 5, 299_995} - {10, 299_990})


def test_a_mask_that_is_far_behind_is_computed_anew_in_steps():
    table = large_table()
    cache = MaskCache(table, all_hold)
    mask = cache.mask(ACME)
    table.columns.set(np.arange(70_000), [{"brand": "acme"}] * 70_000)
    cache.changed(np.arange(70_000))
    assert not cache.is_ready(ACME)
    assert len(list(cache.prepare(ACME))) == 4
    assert cache.is_ready(ACME) and cache.mask(ACME) is mask and mask.count == 70_000 + 23_000


def test_steps_stop_when_a_query_has_computed_the_mask_meanwhile():
    cache = MaskCache(large_table(), all_hold)
    steps = cache.prepare(ACME)
    next(steps)
    mask = cache.mask(ACME)
    assert list(steps) == [] and cache.mask(ACME) is mask


def test_a_long_list_of_slots_is_found_anew_rather_than_copied_at_every_change():
    few, many = (SlotMask(Filter(), np.ones(count, dtype=bool)) for count in (10_000, 100_000))
    for mask, kept in ((few, 9_999 * 8), (many, 0)):
        assert len(mask.slots) == len(mask.passes)
        mask.write(np.array([7]), np.array([False]))
        assert mask.nbytes - mask.passes.nbytes == kept
        assert mask.slots.tolist() == [slot for slot in range(len(mask.passes)) if slot != 7]


def test_filters_with_long_lists_of_ids_do_not_pile_up():
    cache = MaskCache(table_of([{}]), all_hold)
    for start in range(20):
        cache.mask(Filter(deny=frozenset(f"{start}-{number}" for number in range(100_000))))
    assert len(cache) == 10


def test_masks_of_many_slots_do_not_pile_up():
    table = SlotTable(capacity=20_000_000)
    cache = MaskCache(table, all_hold)
    for price in range(30):
        assert cache.mask(Filter(must=(Range("price", gt=price),))).nbytes == 20_000_000
    assert len(cache) == 26


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
