"""Ranks and baselines against examples worked by hand."""

import math

import numpy as np
import pytest
import torch

from training.baselines import MeanPooling, NeighbourKnn, Popularity, transitions
from training.interactions import Interactions
from training.metrics import summarise, tally
from training.ranking import Questions
from training.windows import Batch


def test_metrics_equal_a_hand_computed_example() -> None:
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]])
    target = torch.tensor([2, 0])  # third of seven; last of seven
    seen = torch.tensor([[0, 0, -1], [6, 5, 4]])  # one of the two above; three of the six above
    counts = tally(scores, target, seen)
    assert counts["unfiltered"].tolist() == [[2, 0], [6, 0]]
    assert counts["filtered"].tolist() == [[1, 0], [3, 0]]
    unfiltered, filtered = summarise(counts["unfiltered"]), summarise(counts["filtered"])
    assert unfiltered["R@5"] == 0.5
    assert unfiltered["R@10"] == 1.0
    assert unfiltered["N@5"] == pytest.approx(0.5 / math.log2(4))
    assert unfiltered["N@10"] == pytest.approx((1 / math.log2(4) + 1 / math.log2(8)) / 2)
    assert filtered["R@5"] == 1.0
    assert filtered["N@5"] == pytest.approx((1 / math.log2(3) + 1 / math.log2(5)) / 2)


def test_a_constant_score_gets_what_chance_gives() -> None:
    counts = tally(torch.zeros(1, 40), torch.tensor([3]), torch.tensor([[-1]]))
    metrics = summarise(counts["unfiltered"])
    assert metrics["R@10"] == pytest.approx(10 / 40)
    assert metrics["N@5"] == pytest.approx(sum(1 / math.log2(rank + 1) for rank in range(1, 6)) / 40)


def test_an_unknown_target_and_scores_that_are_not_numbers_are_missed() -> None:
    scores = torch.full((3, 30), 0.5)
    scores[1] = torch.nan
    scores[2, 4] = torch.nan
    counts = tally(scores, torch.tensor([-1, 2, 4]), torch.full((3, 1), -1))
    assert summarise(counts["unfiltered"])["R@10"] == 0.0


def test_a_seen_target_still_counts_itself() -> None:
    counts = tally(torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([1]), torch.tensor([[1, 0]]))
    assert counts["filtered"].tolist() == [[0, 0]]


def questions(history: list[int]) -> Questions:
    item = torch.tensor([[*history, 0, 0]])
    length = torch.tensor([len(history)])
    batch = Batch(item, torch.ones_like(item), torch.zeros(item.shape), length, torch.full_like(item, -1))
    return Questions(batch, item, torch.tensor([0]), np.array([0]))


def interactions(*sequences: list[int], items: int = 4) -> Interactions:
    """Users with these items."""
    item = np.array([row for sequence in sequences for row in sequence], dtype=np.int64)
    offsets = np.append(0, np.cumsum([len(sequence) for sequence in sequences])).astype(np.int64)
    return Interactions(item, np.ones_like(item), np.arange(len(item)), offsets, {"view": 1}, items)


def test_transition_knn_equals_a_hand_computed_example() -> None:
    # two users: 0 1 2 | 0 1 3, so 0 -> 1 twice, 1 -> 2 once, 1 -> 3 once; 2 -> 0 crosses users and does not count
    knn = NeighbourKnn(transitions(interactions([0, 1, 2], [0, 1, 3]), np.ones(6, dtype=np.bool_)))
    assert knn(questions([0, 1])).tolist() == [[0.0, 0.5 * 1.0, 0.5, 0.5]]
    assert knn(questions([3])).tolist() == [[0.0, 0.0, 0.0, 0.0]]


def test_popularity_is_the_same_for_everyone_and_mean_pooling_follows_the_history() -> None:
    assert Popularity(np.array([3.0, 1.0]))(questions([1])).tolist() == [[3.0, 1.0]]
    items = np.eye(3, dtype=np.float32)
    assert MeanPooling(items)(questions([1, 1, 2])).tolist() == [[0.0, 2.0, 1.0]]
