"""Keywords: short sets in rows by slot, long ones in tables of their own."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.filters.columns import AttributeColumns
from index.filters.evaluate import evaluate
from index.filters.filter import Filter, MatchAny
from index.filters.long_lists import LongLists
from index.filters.values import KEYWORDS_MAX, group
from tests.index.filters.oracle import table_of

lists = st.lists(st.integers(1, 90), min_size=1, max_size=KEYWORDS_MAX, unique=True)
batches = st.lists(st.dictionaries(st.integers(0, 11), lists, min_size=1), max_size=8)


@settings(max_examples=60, deadline=None)
@given(batches, st.sets(st.integers(1, 90), min_size=1, max_size=8))
def test_long_lists_are_what_was_written_last(written: list[dict[int, list[int]]], wanted: set[int]):
    kept: dict[int, list[int]] = {}
    long = LongLists(6, lines=2)
    long.grow(12)
    for batch in written:
        slots = np.array(list(batch), dtype=np.int64)
        if long.count:
            old = sorted(code for slot in batch for code in kept.pop(slot, []))
            assert sorted(long.clear(slots).tolist()) == old
        lengths = np.array([len(codes) for codes in batch.values()])
        long.put(slots, lengths, np.array([code for codes in batch.values() for code in codes], dtype=np.int32))
        kept.update(batch)
        long.grow(12 + len(kept))
        codes = np.array(sorted(wanted), dtype=np.int32)
        expected = [bool(wanted & set(kept.get(slot, []))) for slot in range(12)]
        assert long.holding(slice(0, 12), codes, 91).tolist() == expected
        assert long.holding(slice(3, 9), codes, 91).tolist() == expected[3:9]
        assert long.holding(np.array([7, 0, 7]), codes, 91).tolist() == [expected[7], expected[0], expected[7]]
    assert long.count == len(kept)


def test_one_item_with_many_keywords_takes_no_room_in_every_slot():
    columns = AttributeColumns(100_000)
    columns.set(np.array([5]), [{"tags": [f"t{number}" for number in range(KEYWORDS_MAX)]}])
    columns.set(np.array([6]), [{"tags": ["t1", "a"]}])
    column = columns.get("tags")
    assert column is not None
    assert len(column.keywords.rows) == 2
    assert column.keywords.long.count == 1


def test_an_item_is_found_by_every_one_of_its_keywords_however_many_there_are():
    table = table_of([{"tags": [f"t{number}" for number in range(count)]} for count in range(1, KEYWORDS_MAX + 1)])
    for number in (0, 3, 4, 5, 8, 33, 63):
        found = evaluate(Filter(must=(MatchAny("tags", frozenset([f"t{number}"])),)), table)
        assert np.flatnonzero(found).tolist() == list(range(number, KEYWORDS_MAX))
    many = Filter(must=(MatchAny("tags", frozenset(f"t{number}" for number in range(20, 64))),))
    assert evaluate(many, table, slice(10, 30)).tolist() == [slot >= 20 for slot in range(10, 30)]


def test_lists_that_come_and_go_leave_no_room_taken():
    columns = AttributeColumns(4)
    for number in range(200):
        columns.set(np.array([number % 4]), [{"tags": [f"{number}-{one}" for one in range(5 + number % 60)]}])
    column = columns.get("tags")
    assert column is not None
    assert column.keywords.long.count == 4
    assert column.keywords.code_count <= 1 + 5 * KEYWORDS_MAX
    columns.clear(np.arange(4))
    assert not len(column.keywords.codes_of([f"199-{one}" for one in range(64)]))


def test_attributes_grouped_before_are_written_as_if_set_one_by_one():
    items = [{"brand": "a", "price": 1}, {"brand": ["b", "c"], "new": True}, {}, {"brand": "dropped"}, {"price": "x"}]
    grouped = group(items)
    assert grouped.count == 5
    written, kept = AttributeColumns(8), AttributeColumns(8)
    written.write(np.array([3, 1, 0, 3]), grouped, np.array([3, 1, 4, 0]))  # slot 3 twice: the last one counts
    for slot, place in ((1, 1), (0, 4), (3, 0)):
        kept.set(np.array([slot]), [items[place]])
    for name in ("brand", "price", "new"):
        one, other = written.get(name), kept.get(name)
        assert one is not None and other is not None
        assert one.kind.tolist() == other.kind.tolist()
        assert one.counts.tolist() == other.counts.tolist()
        assert {kind: values.tolist() for kind, values in one.plain.items()} == {
            kind: values.tolist() for kind, values in other.plain.items()
        }
    brand = written.get("brand")
    assert brand is not None
    assert not len(brand.keywords.codes_of(["dropped"]))  # no slot holds it
    assert len(brand.keywords.codes_of(["a", "b", "c"])) == 3


def test_attributes_of_items_that_do_not_fit_the_slots_are_refused():
    with pytest.raises(ValueError, match="expected attributes for 2 slots, got 1"):
        AttributeColumns(4).write(np.array([0, 1]), group([{}, {}, {}]), np.array([2]))
