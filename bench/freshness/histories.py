"""What a user's history is at a moment, and the vector that the frozen user tower makes of it."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bench.freshness.policies import IntArray
from index.bundle import Bundle
from training.data.interactions import Interactions, first_interactions
from training.data.windows import gather
from training.progress import Progress

_ENCODED_AT_ONCE = 256


class Histories:
    """Histories of the events that count: those of items and types that the bundle knows, as in the service.

    A history is named by its end: a row of `kept`, one beyond its last event. It begins with its user's first event.
    """

    def __init__(self, events: Interactions) -> None:
        """events: with the bundle's item rows and type codes, -1 and 0 where it does not know them."""
        counting = (events.item >= 0) & (events.kind > 0)
        self._before: IntArray = np.append(0, np.cumsum(counting))  # (E + 1,) events that count before each row
        self._events = events
        self.kept = replace(
            events,
            item=events.item[counting],
            kind=events.kind[counting],
            time_us=events.time_us[counting],
            offsets=self._before[events.offsets],
        )
        self._first = first_interactions(self.kept)

    def starts(self, users: IntArray) -> IntArray:
        """(n,) int64: where the users' histories begin."""
        return self.kept.offsets[users]

    def ends(self, users: IntArray, as_of_us: IntArray) -> IntArray:
        """(n,) int64: where the histories end that hold the events with strictly earlier stamps than a moment each."""
        return self._before[rows_before(self._events, users, as_of_us)]

    def seen(self, users: IntArray, ends: IntArray) -> tuple[IntArray, IntArray]:
        """The items of n histories, each item once a history: (m,) int64 numbers 0 … n - 1, and (m,) int64 item rows."""
        owners, rows = spread(self.starts(users), ends)
        first = self._first[rows]
        return owners[first], self.kept.item[rows[first]]

    def encode(self, bundle: Bundle, users: IntArray, ends: IntArray, progress: Progress) -> NDArray[np.float32]:
        """(n, D) float32 unit rows: the vectors of the last L_max events of n histories, none of them empty."""
        vectors = np.empty((len(ends), bundle.manifest.dim), dtype=np.float32)
        firsts = np.maximum(self.starts(users), ends - (bundle.manifest.history_length or 0))
        order = np.argsort(ends - firsts, kind="stable")  # little padding
        with progress.bar("encode histories", len(order)) as bar:
            for begin in range(0, len(order), _ENCODED_AT_ONCE):
                part = order[begin : begin + _ENCODED_AT_ONCE]
                batch = gather(self.kept, firsts[part], ends[part])
                length = batch.length.numpy()
                real = np.arange(batch.item.shape[1]) < length[:, None]  # (B, L) bool
                items = bundle.item_vectors[batch.item.numpy()] * real[:, :, None]
                seconds = batch.seconds_before_newest.numpy() * bundle.manifest.time_features
                vectors[part] = bundle.encode_users(items, batch.kind.numpy(), seconds, length)
                bar.update(len(part))
        return vectors


def rows_before(events: Interactions, users: IntArray, as_of_us: IntArray) -> IntArray:
    """(n,) int64: for each user and moment, the row after the user's last event with a strictly earlier stamp."""
    rows = np.empty(len(users), dtype=np.int64)
    order = np.argsort(users, kind="stable")
    firsts = np.flatnonzero(np.diff(users[order], prepend=-1))
    for part in np.split(order, firsts[1:]):
        begin, end = events.offsets[users[part[0]]], events.offsets[users[part[0]] + 1]
        rows[part] = begin + np.searchsorted(events.time_us[begin:end], as_of_us[part], side="left")
    return rows


def spread(starts: IntArray, ends: IntArray) -> tuple[IntArray, IntArray]:
    """Ranges [start, end) of rows, written out: (m,) int64 numbers of the ranges, and (m,) int64 rows."""
    sizes = ends - starts
    owners = np.repeat(np.arange(len(sizes)), sizes)
    rows = np.arange(len(owners)) - np.repeat(np.cumsum(sizes) - sizes, sizes) + starts[owners]
    return owners, rows
