"""Events as integer arrays, and the leave-one-out split over them."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from training.errors import DatasetError

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Interactions:
    """Events sorted by user and time; user u's events are rows offsets[u] … offsets[u + 1] - 1, oldest first."""

    item: IntArray  # (E,) int64, row of the item table
    kind: IntArray  # (E,) int64, event type code >= 1
    time_us: IntArray  # (E,) int64, microseconds since 1970
    offsets: IntArray  # (U + 1,) int64
    event_types: dict[str, int]
    items: int

    @property
    def users(self) -> int:
        return len(self.offsets) - 1

    @property
    def user(self) -> IntArray:
        """(E,) int64: the user's number of each event."""
        return np.repeat(np.arange(self.users), np.diff(self.offsets))


@dataclass(frozen=True)
class LeaveOneOut:
    """Which events are trained on and which are held out, as event rows. See `leave_one_out`."""

    train_end: IntArray  # (U,) int64: training events of u are offsets[u] … train_end[u] - 1
    validation: IntArray  # (U,) int64: row of the validation target, -1 = user is not evaluated
    test: IntArray  # (U,) int64: row of the test target, -1 = user is not evaluated


def load_interactions(events: pa.Table, item_ids: pa.ChunkedArray, event_types: dict[str, int] | None = None) -> Interactions:
    """Canonical events as arrays. Items are rows of `item_ids`; an unknown item is row -1.

    `event_types` maps names to codes (unknown = 0); without it codes are given by name order from 1 on.
    """
    user = events["user_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    starts = np.flatnonzero(np.concatenate([[True], user[1:] != user[:-1]]))
    if len(starts) != len(np.unique(user)):
        raise DatasetError("events.parquet: not sorted by user_id; run `python -m training import` again")
    time_us = events["occurred_at"].combine_chunks().cast(pa.int64()).to_numpy()
    same_user = user[1:] == user[:-1]
    if np.any(time_us[1:][same_user] < time_us[:-1][same_user]):
        raise DatasetError("events.parquet: not sorted by occurred_at; run `python -m training import` again")
    item = pc.fill_null(pc.index_in(events["item_id"], value_set=item_ids.combine_chunks()), -1)
    types = events["event_type"]
    if event_types is None:
        event_types = {name: code for code, name in enumerate(sorted(types.unique().to_pylist()), start=1)}
    names = pa.array(list(event_types), pa.string())
    codes = np.array([0, *event_types.values()], dtype=np.int64)
    kind = codes[pc.fill_null(pc.index_in(types, value_set=names), -1).to_numpy().astype(np.int64) + 1]
    offsets = np.append(starts, len(user)).astype(np.int64)
    return Interactions(item.to_numpy().astype(np.int64), kind, time_us, offsets, event_types, len(item_ids))


def first_interactions(data: Interactions) -> npt.NDArray[np.bool_]:
    """(E,) bool: the event is its user's first with that item."""
    key = data.user * (data.items + 1) + (data.item + 1)
    first = np.zeros(len(key), dtype=np.bool_)
    first[np.unique(key, return_index=True)[1]] = True
    return first


def leave_one_out(data: Interactions) -> LeaveOneOut:
    """Each user's last item is the test target, the second last the validation target.

    Targets are first interactions: with repeated items (view, cart, buy of one thing) a target that was already in the
    history would be trivial. What follows the test target is dropped, what lies between the two targets serves as
    history for the test only. A user with fewer than three different items is trained on whole and not evaluated.
    """
    rows = np.flatnonzero(first_interactions(data))
    owner = data.user[rows]
    counts = np.bincount(owner, minlength=data.users)  # (U,) int64, different items of each user
    ends = np.cumsum(counts)
    evaluated = counts >= 3
    none = np.full(data.users, -1, dtype=np.int64)
    test = np.where(evaluated, rows[np.maximum(ends - 1, 0)], none)
    validation = np.where(evaluated, rows[np.maximum(ends - 2, 0)], none)
    return LeaveOneOut(np.where(evaluated, validation, data.offsets[1:]), validation, test)


def next_new_item(data: Interactions, train_end: IntArray) -> IntArray:
    """(E,) int64: for each event the row of the next item that is new to its user, within the training part; -1 = none.

    Only events before `train_end` have or become a target, so held-out items can never reach the loss.
    """
    events = len(data.item)
    owner = data.user
    rows = np.arange(events, dtype=np.int64)
    usable = first_interactions(data) & (rows < train_end[owner])
    later = np.where(usable, rows, events)
    following = np.minimum.accumulate(np.append(later, events)[::-1])[::-1][1:]  # (E,) first usable row after each
    valid = following < train_end[owner]
    return np.where(valid, data.item[np.minimum(following, events - 1)], -1)
