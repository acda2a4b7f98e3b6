"""Events as integer arrays: read a piece at a time, and mapped from disk where they are large (see training/data/spill.py)."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from training.data.dataset import EventFile
from training.data.spill import ArrayBuilder
from training.errors import DatasetError

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
EVENTS_AT_ONCE = 1 << 20
TIMES = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True)
class Interactions:
    """Events sorted by user and time; user u's events are rows offsets[u] … offsets[u + 1] - 1, oldest first."""

    item: IntArray  # (E,) int64, row of the item table
    kind: IntArray  # (E,) int64, event type code >= 1
    time_us: IntArray  # (E,) int64, microseconds since 1970
    offsets: IntArray  # (U + 1,) int64
    event_types: dict[str, int]
    items: int
    user_digest: npt.NDArray[np.uint64] | None = None  # (U,) hash of each user's id; None = the ids are not known

    @property
    def users(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def user(self) -> IntArray:
        """(E,) int64: the user's number of each event."""
        owner = ArrayBuilder(np.int64)
        for part in pieces(self.offsets):
            owner.append(part.user)
        return owner.finish()


@dataclass(frozen=True)
class Piece:
    """The events of some consecutive users."""

    users: slice
    rows: slice  # of the events
    user: IntArray  # (n,) int64, the user's number of each of them


def pieces(offsets: IntArray) -> Iterator[Piece]:
    """All events in order, whole users at a time: about `EVENTS_AT_ONCE`, or one user with more."""
    users, first = len(offsets) - 1, 0
    while first < users:
        last = int(np.searchsorted(offsets, offsets[first] + EVENTS_AT_ONCE, side="right")) - 1
        last = min(max(last, first + 1), users)
        size = np.diff(offsets[first : last + 1])
        rows = slice(int(offsets[first]), int(offsets[last]))
        yield Piece(slice(first, last), rows, np.repeat(np.arange(first, last), size))
        first = last


def load_interactions(
    events: EventFile | pa.Table, item_ids: pa.ChunkedArray, event_types: dict[str, int] | None = None
) -> Interactions:
    """Canonical events as arrays. Items are rows of `item_ids`; an unknown item is row -1.

    `event_types` maps names to codes (unknown = 0); without it codes are given by name order from 1 on. Of an event file
    one piece at a time is in memory. Raises DatasetError where events are not sorted by user_id (by its bytes) and time.
    """
    if event_types is None:
        used = events.unique("event_type") if isinstance(events, EventFile) else events["event_type"].unique()
        event_types = {name: code for code, name in enumerate(sorted(used.to_pylist()), start=1)}
    known = item_ids.combine_chunks()
    names = pa.array(list(event_types), pa.string())
    codes = np.array([0, *event_types.values()], dtype=np.int64)
    item, kind, time_us = ArrayBuilder(np.int64), ArrayBuilder(np.int64), ArrayBuilder(np.int64)
    starts, digests = ArrayBuilder(np.int64), ArrayBuilder(np.uint64)
    last: pa.Table | None = None
    done = 0
    for part in _parts(events):
        begins = _check_order(part, last)
        starts.append(done + begins)
        digests.append(_digests(part["user_id"].take(begins)))
        item.append(_places(part["item_id"], known))
        kind.append(codes[_places(part["event_type"], names) + 1])
        time_us.append(part["occurred_at"].cast(TIMES).cast(pa.int64()).to_numpy())
        last, done = part.slice(part.num_rows - 1), done + part.num_rows
    starts.append(np.array([done]))
    columns = (item.finish(), kind.finish(), time_us.finish(), starts.finish())
    return Interactions(*columns, event_types, len(item_ids), digests.finish())


def selected(data: Interactions, keep: Callable[[slice], BoolArray]) -> Interactions:
    """The same users with those events alone that `keep`, given their rows, marks (n,) bool; a user may be left with none."""
    columns = (data.item, data.kind, data.time_us)
    built = [ArrayBuilder(np.int64) for _ in columns]
    sizes = [np.zeros(0, dtype=np.int64)]
    for part in pieces(data.offsets):
        kept = keep(part.rows)
        for column, builder in zip(columns, built, strict=True):
            builder.append(column[part.rows][kept])
        sizes.append(np.bincount(part.user[kept] - part.users.start, minlength=part.users.stop - part.users.start))
    item, kind, time_us = (builder.finish() for builder in built)
    offsets = np.append(0, np.cumsum(np.concatenate(sizes)))
    return replace(data, item=item, kind=kind, time_us=time_us, offsets=offsets)


def first_interactions(data: Interactions) -> npt.NDArray[np.bool_]:
    """(E,) bool: the event is its user's first with that item."""
    first = ArrayBuilder(np.bool_)
    for part in pieces(data.offsets):
        first.append(_first(data.item[part.rows], part.user, data.items))
    return first.finish()


def next_new_item(data: Interactions, train_end: IntArray, chosen: npt.NDArray[np.bool_] | None = None) -> IntArray:
    """(E,) int64: for each event the row of the next item that is new to its user, within the training part; -1 = none.

    Only events before `train_end` have or become a target, so held-out items can never reach the loss. With `chosen`
    (E,) bool only those events become one: an event whose next new item is not among them has none.
    """
    target = ArrayBuilder(np.int64)
    for part in pieces(data.offsets):
        item, events = data.item[part.rows], len(part.user)
        rows = np.arange(events, dtype=np.int64)
        end = (train_end - part.rows.start)[part.user] if events else rows
        usable = _first(item, part.user, data.items) & (rows < end)
        later = np.where(usable, rows, events)
        following = np.minimum.accumulate(np.append(later, events)[::-1])[::-1][1:]  # (n,) first usable row after each
        found, following = following < end, np.minimum(following, events - 1)
        if chosen is not None:
            found &= chosen[part.rows][following]
        target.append(np.where(found, item[following], -1))
    return target.finish()


def _first(item: IntArray, user: IntArray, items: int) -> npt.NDArray[np.bool_]:
    """(n,) bool for whole users' events: first of its user with that item; -1 counts as an item."""
    key = user * (items + 1) + (item + 1)
    first = np.zeros(len(key), dtype=np.bool_)
    first[np.unique(key, return_index=True)[1]] = True
    return first


def _parts(events: EventFile | pa.Table) -> Iterator[pa.Table]:
    """The events in pieces that are not empty."""
    if isinstance(events, EventFile):
        yield from events.batches()
        return
    for begin in range(0, events.num_rows, EVENTS_AT_ONCE):
        yield events.slice(begin, EVENTS_AT_ONCE)


def _places(values: pa.ChunkedArray, known: pa.Array) -> IntArray:
    """(n,) int64: where each value stands in `known`, -1 = nowhere."""
    places: IntArray = pc.fill_null(pc.index_in(values, value_set=known), -1).to_numpy().astype(np.int64)
    return places


def _digests(ids: pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    """(n,) uint64: BLAKE2b, 64 bits, the same for an id whoever else is in the data."""
    hashed = b"".join(hashlib.blake2b(one.encode(), digest_size=8).digest() for one in ids.to_pylist())
    return np.frombuffer(hashed, dtype="<u8").astype(np.uint64)


def _check_order(part: pa.Table, last: pa.Table | None) -> IntArray:
    """Rows of `part` at which a user begins; `last` is the row before it. Raises DatasetError if one is out of order."""
    joined = part if last is None else pa.concat_tables([last, part])
    user, time = joined["user_id"].combine_chunks(), joined["occurred_at"].cast(TIMES).cast(pa.int64()).to_numpy()
    new = pc.not_equal(user[1:], user[:-1]).to_numpy(zero_copy_only=False)
    if pc.any(pc.less(user[1:], user[:-1])).as_py():
        raise DatasetError("events.parquet: not sorted by user_id; run `python -m training import` again")
    if np.any(~new & (time[1:] < time[:-1])):
        raise DatasetError("events.parquet: not sorted by occurred_at; run `python -m training import` again")
    begins = np.flatnonzero(new)
    return np.append(0, begins + 1) if last is None else begins
