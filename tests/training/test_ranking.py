"""Questions of an evaluation: what is asked together, and how much memory that takes."""

import tracemalloc

import numpy as np
import pytest
import torch

from training.data.interactions import Interactions
from training.evaluation import ranking
from training.evaluation.ranking import ask


def histories(sizes: list[int], items: int = 50) -> Interactions:
    """Users with so many random events."""
    item = np.random.default_rng(0).integers(0, items, sum(sizes))
    offsets = np.append(0, np.cumsum(sizes)).astype(np.int64)
    return Interactions(item, np.ones_like(item), np.arange(len(item)), offsets, {"view": 1}, items)


def test_one_very_long_history_does_not_widen_those_of_others() -> None:
    data = histories([10] * 600 + [200_000])
    tracemalloc.start()
    try:
        for part in ask(data, data.offsets[:-1], data.offsets[1:], np.zeros(601, dtype=np.int64), history_length=8):
            assert len(part.place) * part.seen.shape[1] <= ranking.MOST_SEEN
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10 * data.item[:200_000].nbytes  # padded together they would be hundreds of times that


def test_each_history_is_asked_once_and_whole_even_one_that_is_too_long_for_any_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "MOST_SEEN", 12)
    data = histories([3, 1, 20, 4, 4, 5, 1])
    places = []
    for part in ask(data, data.offsets[:-1], data.offsets[1:], np.arange(7), history_length=2):
        assert len(part.place) == 1 or part.seen.numel() <= 12
        for row, place in enumerate(part.place):
            whole = data.item[data.offsets[place] : data.offsets[place + 1]]
            assert part.seen[row, : len(whole)].tolist() == whole.tolist()
            assert torch.all(part.seen[row, len(whole) :] == -1)
            assert part.history.item[row, : part.history.length[row]].tolist() == whole[-2:].tolist()
            assert part.target[row] == place
        places += part.place.tolist()
    assert sorted(places) == list(range(7)) and places[-1] == 2
