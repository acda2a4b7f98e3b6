"""Ranks and baselines against examples worked by hand."""

import math
import tracemalloc

import numpy as np
import pytest
import torch

from training.data.interactions import Interactions
from training.data.windows import Batch
from training.evaluation.baselines import (
    CategoryKnn,
    MeanPooling,
    NeighbourKnn,
    Popularity,
    TextKnn,
    co_occurrences,
    transitions,
)
from training.evaluation.metrics import coverage, gini, per_user, shown, summarise, tally
from training.evaluation.ranking import Questions


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
    scores = Popularity(np.array([3.0, 2.0**24 + 1, 1.0, 2.0**24, 1.0]))(questions([1]))
    assert scores[0].argsort(stable=True).tolist() == [2, 4, 0, 3, 1] and scores[0, 2] == scores[0, 4]
    items = np.eye(3, dtype=np.float32)
    assert MeanPooling(items)(questions([1, 1, 2])).tolist() == [[0.0, 2.0, 1.0]]


def test_figures_of_tied_targets_are_means_over_all_orders() -> None:
    random = np.random.default_rng(0)
    scores = torch.from_numpy(random.integers(0, 4, (200, 130)).astype(np.float32))
    target = torch.from_numpy(random.integers(0, 130, 200))
    seen = torch.from_numpy(random.integers(-1, 130, (200, 12)))
    counts = tally(scores, target, seen)
    for kind in ("filtered", "unfiltered"):
        figures = per_user(counts[kind])
        for row in range(200):
            own = int(target[row])
            rivals = set(range(130)) - {own} - (set(seen[row].tolist()) if kind == "filtered" else set())
            above = sum(bool(scores[row, item] > scores[row, own]) for item in rivals)
            level = sum(bool(scores[row, item] == scores[row, own]) for item in rivals)
            ranks = range(above + 1, above + level + 2)
            wanted = {f"R@{k}": [rank <= k for rank in ranks] for k in (5, 10, 50, 100)}
            wanted |= {f"N@{k}": [(rank <= k) / math.log2(rank + 1) for rank in ranks] for k in (5, 10, 50, 100)}
            wanted["MRR"] = [1 / rank for rank in ranks]
            assert set(figures) == set(wanted)
            for name, values in wanted.items():
                assert figures[name][row] == pytest.approx(sum(values) / len(values))


def test_a_missed_target_has_no_reciprocal_rank_either() -> None:
    figures = per_user(tally(torch.zeros(1, 3), torch.tensor([-1]), torch.tensor([[0]]))["filtered"])
    assert all(values.tolist() == [0.0] for values in figures.values())


def test_what_is_shown_are_the_best_unseen_items_that_the_model_has_an_opinion_on() -> None:
    scores = torch.tensor([[5.0, 4.0, 3.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0, 5.0]])
    seen = torch.tensor([[0, -1], [1, -1], [4, 4]])
    before = scores.clone()
    assert sorted(shown(scores, seen, 2).tolist()) == [1, 2, 2, 3]
    assert torch.equal(scores, before)
    assert sorted(shown(scores[:1], seen[:1], 10).tolist()) == [1, 2]


def test_coverage_and_gini_equal_hand_computed_examples() -> None:
    assert coverage(np.array([3, 0, 1, 0])) == 0.5
    assert gini(np.array([2, 2, 2])) == pytest.approx(0.0)
    assert gini(np.array([0, 0, 0, 8])) == pytest.approx(3 / 4)  # 1 - 1 / N where one item has all
    assert gini(np.array([1, 3])) == pytest.approx(0.25)  # (-1 · 1 + 1 · 3) / (2 · 4)
    assert math.isnan(gini(np.array([0, 0])))


def test_item_to_item_lookup_equals_a_hand_computed_example() -> None:
    # users {0, 1, 2}, {0, 1}, {1, 3}; 0 with 1: twice; 1 is in three histories
    data = interactions([0, 1, 0, 2], [0, 1], [1, 3])
    knn = NeighbourKnn(co_occurrences(data, np.ones(8, dtype=np.bool_)))
    assert knn(questions([0])).numpy()[0] == pytest.approx([0, 2 / math.sqrt(2 * 3), 1 / math.sqrt(2 * 1), 0])
    from_one = np.array([2 / math.sqrt(6), 0, 1 / math.sqrt(3), 1 / math.sqrt(3)])
    from_zero = np.array([0, 2 / math.sqrt(6), 1 / math.sqrt(2), 0])
    assert knn(questions([0, 1])).numpy()[0] == pytest.approx(from_one + 0.5 * from_zero)


def test_tables_of_counts_know_nothing_of_what_comes_after_the_past() -> None:
    data = interactions([0, 1, 2], [0, 1, 3])
    past = np.array([True, True, False, True, True, False])
    assert NeighbourKnn(transitions(data, past))(questions([1])).tolist() == [[0.0, 0.0, 0.0, 0.0]]
    assert NeighbourKnn(co_occurrences(data, past))(questions([1])).tolist() == [[1.0, 0.0, 0.0, 0.0]]


def test_content_knn_ranks_by_cosine_to_the_history() -> None:
    text = np.array([[2, 0], [0, 3], [1, 1], [0, 0]], dtype=np.float32)
    half = math.sqrt(0.5)
    assert TextKnn(text)(questions([0, 1])).numpy()[0] == pytest.approx([1, 1, 2 * half, 0])
    codes = np.array([[1, 0], [2, 0], [1, 2], [0, 0]])
    assert CategoryKnn(codes, 2)(questions([0, 1])).numpy()[0] == pytest.approx([1, 1, 2 * half, 0])
    assert CategoryKnn(codes, 2)(questions([2])).numpy()[0] == pytest.approx([half, half, 1, 0])


def test_pairs_counted_in_parts_are_the_pairs_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    data = interactions(*(random.integers(0, 20, 15).tolist() for _ in range(30)), items=20)
    past = np.ones(len(data.item), dtype=np.bool_)
    whole = co_occurrences(data, past)
    monkeypatch.setattr("training.evaluation.baselines.EVENTS_AT_ONCE", 7)  # less than an item has
    parts = co_occurrences(data, past)
    both = np.zeros((20, 20))
    for first, last in zip(data.offsets, data.offsets[1:], strict=False):
        own = np.zeros(20)
        own[data.item[first:last]] = 1
        both += np.outer(own, own)
    cosine = both / np.sqrt(np.outer(both.diagonal(), both.diagonal()))
    np.fill_diagonal(cosine, 0)
    for table in (whole, parts):
        dense = np.zeros((20, 20))
        dense[np.repeat(np.arange(20), np.diff(table.offsets)), table.item] = table.weight
        np.testing.assert_allclose(dense, cosine)


def test_of_very_many_pairs_each_item_keeps_its_nearest_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    data = interactions(*(random.integers(0, 20, 15).tolist() for _ in range(9)), items=20)
    past = np.ones(len(data.item), dtype=np.bool_)
    whole = co_occurrences(data, past)
    monkeypatch.setattr("training.evaluation.baselines.MOST_NEIGHBOURS", 60)
    few = co_occurrences(data, past)
    assert np.diff(whole.offsets).min() > 3 and np.diff(few.offsets).tolist() == [3] * 20
    for item in range(20):
        weights, kept = (table.weight[table.offsets[item] : table.offsets[item + 1]] for table in (whole, few))
        assert sorted(kept) == sorted(weights)[-3:]


def test_four_times_as_many_events_take_no_more_memory_to_count(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(2)
    monkeypatch.setattr("training.evaluation.baselines.MOST_NEIGHBOURS", 1 << 16)
    monkeypatch.setattr("training.evaluation.baselines.EVENTS_AT_ONCE", 1 << 9)
    peaks = []
    for users in (100, 400):
        data = interactions(*random.integers(0, 5000, (users, 50)).tolist(), items=5000)
        past = np.ones(len(data.item), dtype=np.bool_)
        tracemalloc.start()
        co_occurrences(data, past)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 8 * 400 * 49 * 50  # a byte a pair; held together they would take 32 bytes each
