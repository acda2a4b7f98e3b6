import numpy as np
import pytest

from index.growth import grown, longer
from index.slots import SlotTable


def test_items_keep_their_slot_while_they_live():
    table = SlotTable()
    first = table.insert("a")
    assert table.insert("b") != first
    assert table.insert("a") == first
    assert len(table) == 2


def test_a_removed_item_keeps_its_slot_until_it_is_freed():
    table = SlotTable()
    slot = table.insert("a")
    assert table.remove("a") == slot
    assert table.slot("a") == -1
    assert table.insert("b") != slot
    table.free(slot)
    assert table.insert("c") == slot


def test_a_live_slot_cannot_be_freed_nor_a_free_one_twice():
    table = SlotTable()
    slot = table.insert("a")
    with pytest.raises(ValueError, match="live or already free"):
        table.free(slot)
    table.remove("a")
    table.free(slot)
    with pytest.raises(ValueError, match="live or already free"):
        table.free(slot)


def test_a_removed_item_can_come_back_to_the_slot_it_holds():
    table = SlotTable()
    slot = table.insert("a")
    table.remove("a")
    table.revive("a", slot)
    assert table.slot("a") == slot
    with pytest.raises(ValueError, match="does not hold the removed item"):
        table.revive("b", slot)


def test_only_live_and_available_items_are_eligible():
    table = SlotTable()
    slots = np.array([table.insert("a", available=False)])
    assert not table.eligible(slots).any()
    table.insert("a", available=True)
    assert table.eligible(slots).all()
    table.remove("a")
    assert not table.eligible(slots).any()


def test_the_table_grows_beyond_its_first_capacity():
    table = SlotTable(capacity=2)
    slots = [table.insert(f"item-{number}") for number in range(100)]
    assert slots == list(range(100))
    assert table.slots(["item-99", "unknown", "item-0"]).tolist() == [99, 0]
    assert table.eligible(table.slots(["item-3"])).all()


def test_a_large_table_grows_by_a_quarter_and_a_small_one_doubles():
    assert [grown(length) for length in (0, 1, 1000, 262_144)] == [1, 2, 2000, 524_288]
    assert grown(10_000_000) == 12_500_000
    table = SlotTable(capacity=524_288)
    for number in range(524_289):
        table.insert(f"item-{number}")
    assert len(table.ids) == len(table.live) == 524_288 + 262_144


def test_a_table_that_grows_keeps_everything_and_adds_nothing():
    table = SlotTable(capacity=1)
    table.columns.set(np.array([table.insert("a")]), [{"brand": [f"b{number}" for number in range(9)], "price": 3}])
    live, ids = table.live, table.ids
    table.insert("b")
    assert ids.tolist() == ["a"] and live.tolist() == [True]  # a reader in another thread may still hold them
    assert table.ids[:2].tolist() == ["a", "b"]
    assert set(table.ids[2:].tolist()) <= {None}
    price, brand = table.columns.get("price"), table.columns.get("brand")
    assert price is not None and brand is not None
    assert price.kind[0] and not price.kind[1:].any() and len(price.kind) == len(table.ids)
    assert brand.keywords.long.count == 1
    assert longer(np.array([1, 2]), 4).tolist() == [1, 2, 0, 0]
