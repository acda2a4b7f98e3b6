"""Masks over inverted lists stay right while the index changes, settled or not."""

import numpy as np
import torch

from index.filters.filter import Filter, MatchAny
from tests.index.engines import ENGINES, make_lists, unit_rows

COUNT, DIM = 4_000, 8
CHOSEN = Filter(must=(MatchAny("chosen", frozenset({True})),))


def test_what_a_mask_lists_follows_every_change():
    """One item in ten passes, so that the mask is gathered list by list; it is used before and after changes settle."""
    index = ENGINES["ivf"](DIM, 8192)
    slots = np.array([index.slots.insert(str(number)) for number in range(COUNT)])
    index.slots.columns.set(slots, [{"chosen": number % 10 == 0} for number in range(COUNT)])
    index.set_vectors(slots, unit_rows(COUNT, 1, DIM))
    make_lists(index, lists=32, gather_rows=10)
    query = torch.from_numpy(unit_rows(1, 2, DIM))
    target = query[0].numpy()[None]  # a row with which an item is the best of all

    def best() -> str:
        return index.search(query, [5], filters=[CHOSEN])[0].item_ids[0]

    assert int(best()) % 10 == 0
    added = index.slots.insert("added")
    index.slots.columns.set(np.array([added]), [{"chosen": True}])
    index.set_vectors(np.array([added]), target)
    best()  # the mask is listed while the change waits
    index.finish()
    assert best() == "added"
    index.slots.available[added] = False
    index.changed(np.array([added]))
    assert best() != "added"
    index.set_vectors(np.array([11]), target)  # it does not pass
    index.finish()
    assert best() != "11"
    index.slots.columns.set(np.array([11]), [{"chosen": True}])  # now it does
    index.changed(np.array([11]))
    best()
    index.finish()
    assert best() == "11"
    index.set_vectors(np.array([11]), -target)
    index.finish()
    assert best() != "11"
    assert index.violations == 0


def test_a_mask_that_is_listed_while_a_change_waits_finds_it_once_it_is_settled():
    index = ENGINES["ivf"](DIM, 8192)
    slots = np.array([index.slots.insert(str(number)) for number in range(COUNT)])
    index.slots.columns.set(slots, [{"chosen": number % 10 == 0} for number in range(COUNT)])
    index.set_vectors(slots, unit_rows(COUNT, 1, DIM))
    make_lists(index, lists=32, gather_rows=10)
    query = torch.from_numpy(unit_rows(1, 2, DIM))
    added = index.slots.insert("added")
    index.slots.columns.set(np.array([added]), [{"chosen": True}])
    index.set_vectors(np.array([added]), query.numpy())
    index.search(query, [5], filters=[CHOSEN])  # the first use of the filter
    index.finish()
    assert index.search(query, [5], filters=[CHOSEN])[0].item_ids[0] == "added"


def test_more_changes_than_are_remembered_list_a_mask_anew():
    index = ENGINES["ivf"](DIM, 65_536)
    vectors = unit_rows(30_000, 3, DIM)
    slots = np.array([index.slots.insert(str(number)) for number in range(len(vectors))])
    index.slots.columns.set(slots, [{"chosen": number % 10 == 0} for number in range(len(vectors))])
    index.set_vectors(slots, vectors)
    make_lists(index, lists=64, gather_rows=10)
    query = torch.from_numpy(unit_rows(1, 4, DIM))
    index.search(query, [5], filters=[CHOSEN])
    index.set_vectors(slots, vectors[::-1])
    index.finish()
    [found] = index.search(query, [50], filters=[CHOSEN])
    [truth] = index.search(query, [50], filters=[CHOSEN], exact=True)
    assert len(set(found.item_ids) & set(truth.item_ids)) >= 45
