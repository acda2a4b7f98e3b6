"""The leave-one-out split and the training windows: what is held out stays out."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from training.config import SplitConfig
from training.data.interactions import IntArray, Interactions, load_interactions, next_new_item
from training.data.split import Split, cold_targets, make_split, without_items
from training.data.windows import Batch, cut, gather, training_steps
from training.errors import ConfigError, DatasetError


def interactions(*sequences: list[int], items: int = 20) -> Interactions:
    """Users with these items, one second apart."""
    lengths = [len(sequence) for sequence in sequences]
    item = np.array([row for sequence in sequences for row in sequence], dtype=np.int64)
    second = np.concatenate([np.arange(length) for length in lengths])
    return Interactions(
        item=item,
        kind=np.ones(len(item), dtype=np.int64),
        time_us=second.astype(np.int64) * 1_000_000,
        offsets=np.append(0, np.cumsum(lengths)).astype(np.int64),
        event_types={"view": 1},
        items=items,
    )


def epoch_batches(data: Interactions, train_end: IntArray, target: IntArray, **sizes: Any) -> Iterator[Batch]:
    """The steps of one epoch, each as one batch."""
    for starts, ends in training_steps(data, train_end, target, **sizes):
        yield gather(data, starts, ends, target)


def leave_one_out(data: Interactions) -> Split:
    return make_split(data, SplitConfig())


def test_the_last_item_is_the_test_target_and_the_second_last_the_validation_target() -> None:
    split = leave_one_out(interactions([1, 2, 3, 4, 5], [7, 8, 9]))
    assert split.validation.tolist() == [3, 6]
    assert split.test.tolist() == [4, 7]
    assert split.train_end.tolist() == [3, 6]


def test_with_repeated_items_targets_are_first_interactions() -> None:
    # view 1, view 2, cart 2, view 3, cart 3, buy 3: test = first 3, validation = first 2, the rest of 3 is dropped
    split = leave_one_out(interactions([1, 2, 2, 3, 3, 3]))
    assert (split.validation.tolist(), split.test.tolist(), split.train_end.tolist()) == ([1], [3], [1])


def test_a_user_with_fewer_than_three_different_items_is_trained_on_and_not_evaluated() -> None:
    split = leave_one_out(interactions([1, 2, 1, 2], [5], [1, 2, 3]))
    assert split.validation.tolist() == [-1, -1, 6]
    assert split.train_end.tolist() == [4, 5, 6]


def test_the_next_item_of_an_event_is_the_next_one_that_is_new_to_its_user() -> None:
    data = interactions([1, 2, 2, 1, 3, 4, 5, 6], [7, 8, 9, 10])
    target = next_new_item(data, leave_one_out(data).train_end)
    assert target.tolist() == [2, 3, 3, 3, 4, 5 - 6, -1, -1, 8, -1, -1, -1]


def test_training_batches_never_hold_a_validation_or_test_item() -> None:
    random = np.random.default_rng(0)
    sequences = []
    for user in range(40):  # every user's last two items occur nowhere else
        sequences.append([*random.integers(0, 50, random.integers(3, 30)).tolist(), 100 + 2 * user, 101 + 2 * user])
    data = interactions(*sequences, items=200)
    split = leave_one_out(data)
    target = next_new_item(data, split.train_end)
    for epoch in range(3):
        generator = np.random.default_rng(epoch)
        for batch in epoch_batches(data, split.train_end, target, length=8, positions=64, generator=generator):
            assert int(batch.item.max()) < 100
            assert int(batch.target.max()) < 100


def test_one_epoch_holds_every_training_target_exactly_once() -> None:
    random = np.random.default_rng(1)
    sequences = [random.permutation(60)[: random.integers(3, 60)].tolist() for _ in range(30)]
    data = interactions(*sequences, items=60)
    split = leave_one_out(data)
    target = next_new_item(data, split.train_end)
    found: list[tuple[int, int]] = []
    generator = np.random.default_rng(2)
    for batch in epoch_batches(data, split.train_end, target, length=10, positions=50, generator=generator):
        wanted = batch.target >= 0
        found += zip(batch.item[wanted].tolist(), batch.target[wanted].tolist(), strict=True)
    expected = zip(data.item[target >= 0].tolist(), target[target >= 0].tolist(), strict=True)
    assert sorted(found) == sorted(expected)


def test_long_histories_are_cut_at_another_place_in_each_epoch() -> None:
    starts, ends = np.array([0, 25]), np.array([25, 28])
    seen = set()
    for seed in range(20):
        first, last = cut(starts, ends, 10, np.random.default_rng(seed))
        assert (last - first).max() <= 10 and (last - first).min() >= 1
        assert sorted(zip(first.tolist(), last.tolist(), strict=True))[-1] == (25, 28)
        assert int((last - first).sum()) == 28
        seen.add(tuple(first.tolist()))
    assert len(seen) > 5


def test_a_gathered_batch_is_padded_on_the_right_and_counts_seconds_from_its_newest_event() -> None:
    batch = gather(interactions([1, 2, 3], [7, 8]), np.array([0, 3]), np.array([3, 5]))
    assert batch.item.tolist() == [[1, 2, 3], [7, 8, 0]]
    assert batch.seconds_before_newest.tolist() == [[2.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
    assert batch.kind.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch.length.tolist() == [3, 2]


def events(users: list[str], seconds: list[int]) -> pa.Table:
    return pa.table(
        {
            "user_id": users,
            "item_id": ["x"] * len(users),
            "event_type": ["view"] * len(users),
            "occurred_at": pa.array([second * 10**6 for second in seconds]).cast(pa.timestamp("us", tz="UTC")),
        }
    )


@pytest.mark.parametrize(("users", "seconds"), [(["a", "b", "a"], [1, 2, 3]), (["a", "a"], [2, 1])])
def test_unsorted_events_are_refused(users: list[str], seconds: list[int]) -> None:
    with pytest.raises(DatasetError, match="not sorted"):
        load_interactions(events(users, seconds), pa.chunked_array([["x"]]))


def test_unknown_items_are_row_minus_one_and_unknown_types_code_zero() -> None:
    data = load_interactions(events(["a", "b"], [1, 1]), pa.chunked_array([["y"]]), {"cart": 1})
    assert data.item.tolist() == [-1, -1]
    assert data.kind.tolist() == [0, 0]


def temporal(data: Interactions, validation_from: str, test_from: str) -> Split:
    return make_split(data, SplitConfig(kind="temporal", validation_from=validation_from, test_from=test_from))


def test_a_split_by_time_trains_before_one_moment_and_targets_the_next_new_item_after_it_and_after_a_later_one() -> None:
    # one second apart; validation from second 3, test from second 5
    data = interactions([1, 2, 3, 1, 4, 2, 5, 6], [7, 7, 7, 7, 7, 7, 7], [1, 2])
    split = temporal(data, "1970-01-01T00:00:03Z", "1970-01-01T00:00:05Z")
    assert split.train_end.tolist() == [3, 11, 17]
    assert split.validation.tolist() == [4, -1, -1]  # second 3 repeats item 1
    assert split.test.tolist() == [6, -1, -1]  # second 5 repeats item 2


def test_a_person_who_came_after_the_training_is_asked_about_their_second_new_item() -> None:
    data = interactions([1, 2, 3, 4], [9, 9, 8, 7])
    data = replace(data, time_us=data.time_us + np.repeat([0, 10_000_000], 4))
    split = temporal(data, "1970-01-01T00:00:02Z", "1970-01-01T00:00:10Z")
    assert split.train_end.tolist() == [2, 4]  # the second user has no training event
    assert split.test.tolist() == [-1, 6]  # with the first event nothing could be asked


def test_shares_of_events_become_moments() -> None:
    split = make_split(interactions(list(range(10)), list(range(10, 20))), SplitConfig(kind="temporal"))
    assert (split.validation_from_us, split.test_from_us) == (8_000_000, 9_000_000)
    assert split.describe()["test_from"] == "1970-01-01T00:00:09+00:00"
    assert int(split.counts().sum()) == 16


@pytest.mark.parametrize(
    ("first", "second"),
    [("1970-01-01T00:00:05Z", "1970-01-01T00:00:03Z"), ("1969-01-01", "1970-01-01T00:00:03Z"), (0.5, "1971-01-01")],
)
def test_moments_outside_the_events_or_in_the_wrong_order_are_refused(first: str | float, second: str) -> None:
    with pytest.raises(ConfigError, match="must follow each other"):
        make_split(interactions(list(range(9))), SplitConfig(kind="temporal", validation_from=first, test_from=second))


def test_a_split_by_time_of_data_without_times_is_refused() -> None:
    with pytest.raises(ConfigError, match="only an order"):
        make_split(interactions([1, 2, 3]), SplitConfig(kind="temporal"), real_times=False)


def test_all_trains_on_everything_but_the_last_new_item_of_a_few() -> None:
    data = interactions(*([1, 2, 3, 3] for _ in range(400)), [5])
    split = make_split(data, SplitConfig(kind="all", validation_users=0.1))
    held = np.flatnonzero(split.validation >= 0)
    assert 25 < len(held) < 55 and (split.test == -1).all()
    assert (split.validation[held] == data.offsets[held] + 2).all() and (split.train_end[held] == split.validation[held]).all()
    others = np.setdiff1d(np.arange(401), held)
    assert (split.train_end[others] == data.offsets[1:][others]).all()
    assert make_split(data, SplitConfig(kind="all", validation_users=0.0)).validation.max() == -1
    few = make_split(interactions([1, 2], [3, 4], [5]), SplitConfig(kind="all", validation_users=1e-9))
    assert (few.validation >= 0).sum() == 1  # one at least, so that there is something to stop by


def test_whom_all_holds_out_does_not_change_as_other_people_come() -> None:
    def held_out(names: list[str], seed: int = 0) -> set[str]:
        rows = [{"user_id": name, "item_id": item} for name in sorted(names) for item in "ab"]
        table = pa.Table.from_pylist(rows)
        for column in (pa.array(["view"] * len(rows)), pa.array(range(len(rows)), pa.timestamp("us", tz="UTC"))):
            table = table.append_column("event_type" if table.num_columns == 2 else "occurred_at", column)
        split = make_split(load_interactions(table, pa.chunked_array([["a", "b"]])), SplitConfig(kind="all", seed=seed))
        return {sorted(names)[row] for row in np.flatnonzero(split.validation >= 0)}

    before = [f"person-{number}" for number in range(0, 600, 2)]
    after = [f"person-{number}" for number in range(600)]
    assert held_out(before) == held_out(after) & set(before) and 5 < len(held_out(before)) < 30
    assert held_out(before) != held_out(before, seed=1)


@pytest.mark.parametrize("kind", ["leave-one-out", "temporal", "all"])
def test_events_of_cold_items_are_in_no_training_and_no_target(kind: str) -> None:
    random = np.random.default_rng(3)
    sequences = [random.integers(0, 40, random.integers(1, 12)).tolist() for _ in range(60)]
    data = interactions(*sequences, items=50)
    config = SplitConfig.model_validate({"kind": kind, "cold_items": 0.25, "validation_users": 0.5})
    split = make_split(data, config)
    assert split.cold.sum() == 10 and not split.cold[40:].any()  # a quarter of the 40 that have events
    assert not split.cold[split.data.item].any() and not split.counts()[split.cold].any()
    left = [[row for row in sequence if not split.cold[row]] for sequence in sequences]
    assert [len(row) for row in left] == np.diff(split.data.offsets).tolist()  # users left with none are still there
    target = next_new_item(split.data, split.train_end)
    batches = epoch_batches(split.data, split.train_end, target, length=5, positions=20, generator=np.random.default_rng(0))
    trained = 0
    for batch in batches:
        real = torch.arange(batch.item.shape[1]) < batch.length[:, None]
        assert not split.cold[batch.item[real].numpy()].any()
        assert not split.cold[batch.target[batch.target >= 0].numpy()].any()
        trained += int((batch.target >= 0).sum())
    assert trained == int((target >= 0).sum()) > 0
    again = make_split(data, config)
    assert again.describe() == split.describe()
    other = make_split(data, config.model_copy(update={"seed": 1}))
    assert other.describe()["cold_items_sha256"] != split.describe()["cold_items_sha256"]


def test_training_windows_never_reach_past_the_training_part() -> None:
    random = np.random.default_rng(4)
    data = interactions(*(random.integers(0, 30, random.integers(1, 15)).tolist() for _ in range(50)), items=30)
    for config in (SplitConfig(kind="temporal", validation_from=0.4, test_from=0.7), SplitConfig(kind="all")):
        split = make_split(data, config)
        hidden = np.arange(len(data.item)) >= split.train_end[data.user]
        marked = replace(data, item=np.where(hidden, 999, data.item), items=1000)
        target = next_new_item(marked, split.train_end)
        for batch in epoch_batches(marked, split.train_end, target, length=6, positions=30, generator=np.random.default_rng(0)):
            assert int(batch.item.max()) < 999 and int(batch.target.max()) < 999


def test_cold_targets_come_after_all_that_was_trained_on_and_after_the_tests_moment() -> None:
    # 9 and 8 are cold. First user: 1 2 3 4 without them; validation 3, test 4, trained on 1 and 2
    data = interactions([1, 9, 2, 8, 3, 4, 9], [1, 2, 3, 9, 8], [9, 1, 2, 3], [9], [5, 9])
    cold = np.isin(np.arange(20), [8, 9])
    warm = without_items(data, cold)
    split = replace(leave_one_out(warm), cold=cold)
    row, end = cold_targets(data, split)
    # 8 in the first history lies after the training; the second 9 is not new. The third's 9 has no history before it
    assert row.tolist() == [3, 11, -1, -1, 18]
    assert (end - warm.offsets[:-1])[[0, 1, 4]].tolist() == [2, 3, 1]
    later = temporal(warm, "1970-01-01T00:00:02Z", "1970-01-01T00:00:04Z")
    row, end = cold_targets(data, replace(later, cold=cold))
    assert row.tolist() == [-1, 11, -1, -1, -1]  # only what came from second 4 on: 9 is not new, 8 is


@pytest.mark.parametrize("kind", ["leave-one-out", "temporal", "all"])
def test_a_split_made_in_pieces_is_the_split_of_the_whole(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(5)
    data = interactions(*(random.integers(0, 30, random.integers(1, 15)).tolist() for _ in range(80)), items=30)
    config = SplitConfig.model_validate({"kind": kind, "cold_items": 0.3, "validation_users": 0.3})
    whole = make_split(data, config)
    monkeypatch.setattr("training.data.interactions.EVENTS_AT_ONCE", 25)
    parts = make_split(data, config)
    assert whole.describe() == parts.describe()
    for name in ("train_end", "validation", "test", "cold"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))
    np.testing.assert_array_equal(whole.counts(), parts.counts())
    for name in ("item", "kind", "time_us", "offsets"):
        np.testing.assert_array_equal(getattr(whole.data, name), getattr(parts.data, name))
