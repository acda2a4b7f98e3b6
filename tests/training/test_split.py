"""The leave-one-out split and the training windows: what is held out stays out."""

import numpy as np
import pyarrow as pa
import pytest

from training.errors import DatasetError
from training.interactions import Interactions, leave_one_out, load_interactions, next_new_item
from training.windows import cut, gather, training_batches


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
        for batch in training_batches(data, split.train_end, target, length=8, positions=64, generator=generator):
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
    for batch in training_batches(data, split.train_end, target, length=10, positions=50, generator=generator):
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
