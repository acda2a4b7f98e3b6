"""Intervals from resampled people, and people in parts, against what is known of them."""

import numpy as np
import pytest

from training.data.interactions import Interactions
from training.data.split import Split
from training.evaluation.exam import Asked, Exam
from training.evaluation.intervals import Bootstrap, interval
from training.evaluation.slices import TOO_FEW, group_rows, group_slices, slices


def test_the_interval_of_a_share_is_about_as_wide_as_theory_says() -> None:
    values = (np.arange(2000) < 500).astype(np.float64)[:, None]  # a quarter
    low, high = interval(Bootstrap(2000).means(values))[:, 0]
    half = 1.96 * np.sqrt(0.25 * 0.75 / 2000)
    assert low == pytest.approx(0.25 - half, abs=0.2 * half)
    assert high == pytest.approx(0.25 + half, abs=0.2 * half)


def test_differences_are_paired() -> None:
    random = np.random.default_rng(0)
    first = random.random(300)
    both = np.stack([first, first - 0.125], 1)
    draws = Bootstrap(300).means(both)
    low, high = interval(draws[:, :1] - draws[:, 1:])[:, 0]
    assert (low, high) == (pytest.approx(0.125), pytest.approx(0.125))  # the same people are drawn for both
    assert np.ptp(interval(draws)[:, 0]) > 0.05


def test_the_same_seed_gives_the_same_draws_and_memory_does_not_change_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random((50, 2))
    again = [Bootstrap(50, resamples=99).means(values) for _ in range(2)]
    np.testing.assert_array_equal(*again)
    assert not np.array_equal(again[0], Bootstrap(50, resamples=99, seed=1).means(values))
    monkeypatch.setattr("training.evaluation.intervals.AT_ONCE", 500)
    assert Bootstrap(50, resamples=99).means(values).shape == (99, 2)


def test_a_group_that_is_everyone_has_no_gap_and_one_that_is_worse_has_one() -> None:
    values = {"R@10": np.repeat([1.0, 0.0], [60, 40])}
    whole = group_rows(group_slices(np.full(100, "all", dtype=object)), values, ("R@10",), Bootstrap(100))
    assert whole[0]["R@10"]["gap_interval"] == [0.0, 0.0]
    parts = group_slices(np.repeat(np.array(["good", "bad"], dtype=object), [60, 40]))
    rows = {row["group"]: row["R@10"] for row in group_rows(parts, values, ("R@10",), Bootstrap(100))}
    assert rows["bad"]["mean"] == 0.0 and rows["bad"]["gap"] == pytest.approx(-0.6)
    assert rows["bad"]["gap_interval"][1] < -0.4 and rows["good"]["gap_interval"][0] > 0.2


def test_groups_below_twenty_are_one_and_without_figures_if_even_together_too_few() -> None:
    group = np.array(["a"] * 30 + ["b"] * 20 + ["c"] * 19, dtype=object)
    parts = group_slices(group)
    assert [(part.name, int(part.member.sum())) for part in parts] == [("a", 30), ("b", 20), (TOO_FEW, 19)]
    rows = group_rows(parts, {"R@10": np.ones(69)}, ("R@10",), Bootstrap(69))
    assert rows[2] == {"group": TOO_FEW, "users": 19}
    more = group_slices(np.append(group, "d"))
    assert [(part.name, int(part.member.sum())) for part in more][-1] == (TOO_FEW, 20)


def exam(counts: list[int], target: list[int], lengths: list[int]) -> Exam:
    """One person asked per target; item i has counts[i] events before the test, all of a person who is not asked."""
    item = np.repeat(np.arange(len(counts)), counts)
    size = np.array(lengths)
    ends = np.cumsum(size)
    none = np.empty(0, dtype=np.int64)
    data = Interactions(item, np.ones_like(item), item, np.array([0, len(item)]), {"view": 1}, len(counts))
    split = Split("leave-one-out", data, none, none, none, np.zeros(len(counts), dtype=np.bool_))
    asked = Asked(np.arange(len(target)), ends - size, ends, np.array(target))
    nobody = Asked(none, none, none, none)
    return Exam(split, data, np.ones(len(item), dtype=np.bool_), asked, np.ones(len(target), dtype=np.bool_), nobody, none)


def test_deciles_are_tenths_of_the_catalogue_and_items_with_as_many_events_are_together() -> None:
    counts = [1] * 5 + [2] * 3 + [7, 9]
    parts = slices(exam(counts, [0, 4, 5, 8, 9, -1], [1] * 6))["popularity decile of the target"]
    # places 0-5 have 1 event, their middle is in the third tenth; 5-8 have 2, in the seventh
    assert [(part.name, np.flatnonzero(part.member).tolist()) for part in parts] == [
        ("3 (1 events)", [0, 1]),
        ("7 (2 events)", [2]),
        ("9 (7 events)", [3]),
        ("10 (9 events)", [4]),
        ("not in the bundle", [5]),
    ]


def test_people_are_cut_by_the_length_of_their_history() -> None:
    parts = slices(exam([1], [0] * 7, [1, 2, 4, 5, 9, 10, 400]))["events in the history"]
    assert {part.name: np.flatnonzero(part.member).tolist() for part in parts} == {
        "1": [0],
        "2-4": [1, 2],
        "5-9": [3, 4],
        "10+": [5, 6],
    }
