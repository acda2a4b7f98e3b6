import warnings

import array_api_strict
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.filters.columns import NAMES_MAX, AttributeColumns
from index.filters.evaluate import check_comparable, evaluate
from index.filters.filter import Exists, Filter, FilterError, MatchAny, Nested, Range, TimeRange
from index.filters.values import KEYWORDS_MAX, Value
from index.slots import SlotTable
from tests.index.filters.oracle import DAYS, LONG, filters, items, passes, table_of


def passing(filter: Filter, table: SlotTable) -> list[str]:
    return table.ids[: table.extent][evaluate(filter, table)].tolist()


def match(name: str, *values: str | bool | float) -> MatchAny:
    return MatchAny(name, frozenset(values))


@settings(max_examples=300, deadline=None)
@given(st.lists(items, min_size=1, max_size=12), filters)
def test_every_item_passes_as_plain_python_says(held: list[dict[str, Value]], filter: Filter):
    table = table_of(held)
    expected = [passes(filter, f"item-{number}", item) for number, item in enumerate(held)]
    assert evaluate(filter, table).tolist() == expected


@settings(max_examples=100, deadline=None)
@given(st.lists(items, min_size=1, max_size=12), filters, st.lists(st.integers(-1, 20), max_size=20))
def test_a_subset_of_the_slots_passes_as_it_does_among_all(held: list[dict[str, Value]], filter: Filter, asked: list[int]):
    table = table_of(held)
    everything = evaluate(filter, table)
    found = evaluate(filter, table, np.array(asked, dtype=np.int64))
    assert found.tolist() == [0 <= slot < len(held) and bool(everything[slot]) for slot in asked]


@settings(max_examples=100, deadline=None)
@given(st.lists(items, min_size=1, max_size=12), filters, st.lists(st.integers(-1, 20), max_size=20))
def test_an_array_library_that_knows_only_the_standard_gives_the_same(
    held: list[dict[str, Value]], filter: Filter, asked: list[int]
):
    table = table_of(held)
    slots = np.array(asked, dtype=np.int64)
    with warnings.catch_warnings():
        strict = evaluate(filter, table, xp=array_api_strict)
        some = evaluate(filter, table, slots, xp=array_api_strict)
    assert isinstance(strict, type(array_api_strict.asarray(0)))
    assert np.from_dlpack(strict).tolist() == evaluate(filter, table).tolist()
    assert np.from_dlpack(some).tolist() == evaluate(filter, table, slots).tolist()


def test_many_wanted_values_are_looked_up_like_few():
    table = table_of([{"n": float(n), "word": [f"w{n}", f"w{n + 1}"]} for n in range(100)])
    evens = frozenset(float(n) for n in range(0, 100, 2))
    assert passing(Filter(must=(MatchAny("n", evens),)), table) == [f"item-{n}" for n in range(0, 100, 2)]
    words = Filter(must=(match("word", *(f"w{n}" for n in range(10, 20)), "never heard of"),))
    assert passing(words, table) == [f"item-{n}" for n in range(9, 20)]


def test_an_item_without_the_attribute_matches_nothing_so_must_not_lets_it_pass():
    table = table_of([{"brand": "acme"}, {}])
    assert passing(Filter(must=(match("brand", "acme"),)), table) == ["item-0"]
    assert passing(Filter(must_not=(match("brand", "acme"),)), table) == ["item-1"]
    assert passing(Filter(must_not=(Exists("brand"),)), table) == ["item-1"]


@pytest.mark.parametrize("where", ["must", "should", "must_not", "nested"])
def test_an_item_whose_value_cannot_be_compared_is_ruled_out_wherever_the_condition_stands(where: str):
    table = table_of([{"price": 5.0}, {"price": "five"}, {"price": LONG}, {"price": ["w"] * 2}, {"price": True}])
    anything, never = Range("price", gte=0), Range("price", gt=1e9)
    filter = {
        "must": Filter(must=(anything,)),
        "should": Filter(should=(anything, Exists("price"))),
        "must_not": Filter(must_not=(never,)),
        "nested": Filter(must_not=(Nested(Filter(must=(never,))),)),
    }[where]
    assert passing(filter, table) == ["item-0"]


def test_a_list_of_too_many_keywords_can_be_compared_with_nothing():
    table = table_of([{"tags": [f"t{n}" for n in range(KEYWORDS_MAX + 1)]}, {"tags": [f"t{n}" for n in range(KEYWORDS_MAX)]}])
    assert passing(Filter(must=(match("tags", "t1"),)), table) == ["item-1"]
    assert passing(Filter(must_not=(match("tags", "other"),)), table) == ["item-1"]
    assert passing(Filter(must=(Exists("tags"),)), table) == ["item-0", "item-1"]


def test_not_a_number_is_not_a_number():
    table = table_of([{"price": float("nan")}, {"price": 1.0}])
    assert passing(Filter(must_not=(Range("price", gt=5),)), table) == ["item-1"]


def test_true_is_not_one():
    table = table_of([{"flag": True}, {"flag": 1.0}])
    assert passing(Filter(must=(match("flag", True),)), table) == ["item-0"]
    assert passing(Filter(must=(match("flag", 1.0),)), table) == ["item-1"]
    assert Filter(must=(match("flag", True),)).key != Filter(must=(match("flag", 1.0),)).key


def test_a_hundred_thousand_allowed_and_denied_ids():
    table = SlotTable()
    for number in range(150_000):
        table.insert(f"item-{number}")
    some = frozenset(f"item-{number}" for number in range(100_000))
    assert evaluate(Filter(allow=some), table).sum() == 100_000
    assert evaluate(Filter(deny=some), table).sum() == 50_000
    assert evaluate(Filter(allow=some, deny=some), table).sum() == 0
    assert evaluate(Filter(allow=frozenset()), table).sum() == 0


def test_what_some_items_hold_in_another_kind_only_is_refused_by_name():
    table = table_of([{"price": "cheap"}, {"price": True}])
    with pytest.raises(FilterError, match=r"'price' is text and a boolean in every item that has it.* with numbers"):
        check_comparable(Filter(must_not=(Nested(Filter(should=(Range("price", lt=5),))),)), table.columns)
    with pytest.raises(FilterError, match=r"'price' is text and a boolean.*time_range"):
        check_comparable(Filter(must=(TimeRange("price", lt=5),)), table.columns)
    check_comparable(Filter(must=(match("price", "cheap"), match("price", True), Exists("price"))), table.columns)
    check_comparable(Filter(must=(Range("nobody has it", lt=5),)), table.columns)
    table.columns.set(np.array([0]), [{"price": 3}])
    check_comparable(Filter(must=(Range("price", lt=5),)), table.columns)


def test_setting_replaces_and_clearing_forgets_everything():
    table = table_of([{"brand": "acme", "since": DAYS[0]}, {"brand": ["acme", "zeta"]}])
    acme = Filter(must=(match("brand", "acme"),))
    table.columns.set(np.array([0, 1, 1]), [{"price": 1}, {"brand": "ignored"}, {"brand": ["zeta", "acme"]}])
    assert passing(acme, table) == ["item-1"]
    assert passing(Filter(must=(Exists("since"),)), table) == []
    table.columns.clear(np.array([1, 0, 1, 99]))
    assert passing(acme, table) == []
    assert passing(Filter(must=(Exists("price"),)), table) == []


def test_a_freed_slot_keeps_nothing_for_the_next_item():
    table = table_of([{"brand": "acme"}])
    table.remove("item-0")
    assert passing(Filter(must=(Exists("brand"),)), table) == []
    table.free(0)
    assert table.insert("next") == 0
    assert passing(Filter(must_not=(Exists("brand"),)), table) == ["next"]


def test_a_code_that_is_used_again_does_not_stand_for_the_old_word():
    table = table_of([{"brand": "acme"}, {"brand": "old"}])
    table.columns.set(np.array([0]), [{"brand": "zeta"}])
    table.columns.set(np.array([1]), [{"brand": "omega"}])
    assert passing(Filter(must=(match("brand", "acme", "old"),)), table) == []
    assert passing(Filter(must=(match("brand", "zeta"),)), table) == ["item-0"]


def test_a_code_stays_its_words_while_any_item_holds_it():
    table = table_of([{"brand": "acme"}, {"brand": ["acme", "old"]}, {}])
    table.columns.clear(np.array([0]))
    table.columns.set(np.array([2]), [{"brand": "zeta"}])
    table.columns.set(np.array([0]), [{"brand": ["new", "newer"]}])
    for word, holders in (("acme", ["item-1"]), ("old", ["item-1"]), ("zeta", ["item-2"]), ("new", ["item-0"])):
        assert passing(Filter(must=(match("brand", word),)), table) == holders


def test_names_beyond_those_that_have_a_column_are_refused_and_never_pass():
    table = table_of([{f"name-{n}": 1 for n in range(NAMES_MAX + 1)}])
    assert passing(Filter(must=(Range("name-0", gte=0),)), table) == ["item-0"]
    left_out = Filter(must_not=(Exists(f"name-{NAMES_MAX}"),))
    assert passing(left_out, table) == []
    with pytest.raises(FilterError, match="is not indexed"):
        check_comparable(left_out, table.columns)


def test_a_name_that_no_item_has_any_more_makes_room_for_another():
    table = table_of([{f"name-{n}": 1 for n in range(NAMES_MAX)}, {"name-0": 2}])
    table.columns.set(np.array([0]), [{"name-1": 1, "new": 1}])
    for name, holders in (("name-0", ["item-1"]), ("name-1", ["item-0"]), ("new", ["item-0"]), ("name-2", [])):
        wanted = Filter(must=(Exists(name),))
        check_comparable(wanted, table.columns)
        assert passing(wanted, table) == holders


def test_a_name_that_was_refused_once_stays_refused_since_nobody_knows_whose_it_is():
    table = table_of([{f"name-{n}": 1 for n in range(NAMES_MAX)}, {"late": 1}, {}])
    table.columns.set(np.array([0, 2]), [{}, {"late": 1}])  # there would be room now; item-1 has the name too
    with pytest.raises(FilterError, match="late"):
        check_comparable(Filter(must_not=(Exists("late"),)), table.columns)


def test_attributes_for_slots_that_are_not_there_are_refused_and_nothing_is_written():
    columns = AttributeColumns(4)
    for slots in ([0, 4], [-1, 0]):
        with pytest.raises(ValueError, match="slots must be 0 to 3"):
            columns.set(np.array(slots), [{"brand": "acme"}, {"brand": "acme"}])
    with pytest.raises(ValueError, match="expected attributes for 2 slots, got 1"):
        columns.set(np.array([0, 1]), [{}])
    assert columns.get("brand") is None


def test_a_match_of_mixed_or_no_values_is_refused():
    for values in (frozenset(), frozenset(["a", 1.0])):
        with pytest.raises(ValueError, match="all str, all bool or all float"):
            MatchAny("brand", values)


def test_equal_filters_have_equal_keys_and_others_have_others():
    first = Filter(must=(match("brand", "a", "b"), Nested(Filter(deny=frozenset("xy")))))
    same = Filter(must=(match("brand", "b", "a"), Nested(Filter(deny=frozenset("yx")))))
    assert first == same and hash(first) == hash(same) and first.key == same.key
    others = [
        Filter(),
        Filter(allow=frozenset()),
        Filter(should=first.must),
        Filter(must=(match("brand", "a", "b"), Nested(Filter(deny=frozenset("x"))))),
        Filter(must=(Range("brand", gt=1),)),
        Filter(must=(TimeRange("brand", gt=1),)),
    ]
    assert len({first.key, *(other.key for other in others)}) == 1 + len(others)
