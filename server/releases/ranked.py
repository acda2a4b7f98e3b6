"""The first items of a ranking that pass a filter, with or without a vector."""

import numpy as np
from numpy.typing import NDArray

from index.filters.evaluate import evaluate
from index.filters.filter import Filter
from index.items import ItemIndex
from server.catalogue.placement import Placement

_ONE_BY_ONE = 16_384
"""Ranked items that are looked up one by one, which is enough for a filter that lets one in a hundred pass. Behind them it is
quicker to mark what passes and to read on in the ranking: some 3 ms for a million items, however few pass."""


def first_permitted(
    index: ItemIndex, placement: Placement, filter_: Filter, ranking: NDArray[np.int64], limit: int, exclude: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The first ordinals of a ranking whose items are available and pass the filter.

    ranking, exclude: ordinals, (n,) int64. Returns (<= limit,) int64 in the ranking's order. Raises FilterError like a search.
    """
    mask = index.mask(filter_)  # it says everything of the items with a vector, and nothing of the others
    first, rest = ranking[:_ONE_BY_ONE], ranking[_ONE_BY_ONE:]
    slots = placement.slots_of(first)
    passes = mask.permits(slots)
    placed = np.flatnonzero((slots >= 0) & ~passes)
    passes[placed[_without_vector(index, filter_, slots[placed])]] = True
    found = _left_in(first[passes], exclude)
    if len(found) >= limit or not len(rest):
        return found[:limit]
    everything = np.flatnonzero(_has_no_vector(index, slice(0, index.slots.extent)))
    passing = np.concatenate([mask.slots, everything[_without_vector(index, filter_, everything)]])
    if not len(passing):
        return found
    ordinals = placement.ordinals_of(passing)
    marked = np.zeros(int(max(ordinals.max(), rest.max())) + 1, dtype=bool)  # by ordinal
    marked[ordinals] = True
    return np.concatenate([found, _left_in(rest[marked[rest]], exclude)])[:limit]


def _without_vector(index: ItemIndex, filter_: Filter, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of the slots hold an available item without a vector that passes the filter: (n,) bool."""
    passes = _has_no_vector(index, slots)
    asked = np.flatnonzero(passes)
    if len(asked) > index.slots.extent // 8:  # many slots are read faster in order
        passes &= evaluate(filter_, index.slots)[slots]
    elif len(asked):
        passes[asked] = evaluate(filter_, index.slots, slots[asked])
    return passes


def _has_no_vector(index: ItemIndex, slots: NDArray[np.int64] | slice) -> NDArray[np.bool_]:
    return index.slots.eligible(slots) & ~index.matrix.holds(slots)


def _left_in(ordinals: NDArray[np.int64], exclude: NDArray[np.int64]) -> NDArray[np.int64]:
    return ordinals[~np.isin(ordinals, exclude)]
