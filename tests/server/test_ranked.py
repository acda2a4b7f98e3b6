"""What passes a filter among the popular, and where items are placed."""

import numpy as np
import pytest

from index.exact import ExactSearch
from index.filters.filter import Filter, Range
from index.items import ItemIndex
from index.matrix import VectorMatrix
from server.catalogue.placement import Placement
from server.releases.ranked import first_permitted

COUNT = 40_000


@pytest.fixture(scope="module")
def placement() -> Placement:
    """Ordinals from 0, in slots the other way round; every seventh ordinal is not available, every eleventh is removed."""
    placed = Placement(items=1000, ordinals=10)
    for ordinal in reversed(range(COUNT)):
        placed.place(ordinal, f"item-{ordinal}", available=bool(ordinal % 7))
    for ordinal in range(0, COUNT, 11):
        placed.withdraw(f"item-{ordinal}")
    slots = placed.slots_of(np.arange(COUNT))
    placed.slots.columns.set(slots, [{"price": ordinal} for ordinal in range(COUNT)])
    return placed


@pytest.mark.parametrize("without_vector", [0, 3, 1])
@pytest.mark.parametrize(("below", "limit"), [(COUNT, 100), (COUNT, COUNT), (60, 100), (300, 7), (0, 10)])
def test_the_first_of_a_ranking_that_pass_are_found_however_few_and_with_or_without_a_vector(
    placement: Placement, without_vector: int, below: int, limit: int
):
    matrix = VectorMatrix(2)
    matrix.write(np.arange(COUNT), np.ones((COUNT, 2), dtype=np.float32))
    if without_vector:
        matrix.clear(np.arange(0, COUNT, without_vector))
    index = ItemIndex(placement.slots, matrix, ExactSearch(placement.slots, matrix))
    ranking = np.random.default_rng(1).permutation(COUNT + 5)  # more than are placed yet
    exclude = np.arange(20, 40)
    filter_ = Filter(must=(Range("price", lt=below),))
    expected = [n for n in ranking.tolist() if n < below and n < COUNT and n % 7 and n % 11 and not 20 <= n < 40][:limit]
    found = first_permitted(index, placement, filter_, ranking, limit, exclude)
    assert found.dtype == np.int64
    assert found.tolist() == expected


def test_a_place_that_is_given_to_another_item_is_the_others():
    placement = Placement()
    for ordinal in range(2000):
        placement.place(ordinal, f"item-{ordinal}", available=True)
    placement.withdraw("item-5")
    slot = placement.free(5)
    assert placement.free(5) == -1
    assert placement.place(2000, "next", available=True) == slot
    assert placement.ordinals_of(np.array([slot])).tolist() == [2000]
    assert placement.slots_of(np.array([5, 2000, 10**6])).tolist() == [-1, slot, -1]


def test_tables_have_room_for_half_as_many_items_again():
    placement = Placement(items=10_000, ordinals=12_000)
    assert len(placement.slots.ids) == 15_000
    before = placement.slots.live
    for ordinal in range(15_000):
        placement.place(ordinal, f"item-{ordinal}", available=True)
    assert placement.slots.live is before, "nothing was copied"
