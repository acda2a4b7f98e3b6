"""Whose vectors should be computed anew, and how long events took to be in them."""

import threading
import time
from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

LAG_BOUNDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
"""Seconds: upper bounds of the histogram's buckets; one more takes what is above."""


@dataclass(slots=True)
class Mark:
    """A person whose vector is behind."""

    key: int
    # When the first change that the vector does not have was committed, in time.monotonic seconds; None: not to be measured.
    committed: float | None


class Refresher:
    """People whose histories changed, the longest-waiting first, each once however many events came.

    At most `capacity` wait; beyond it the oldest is forgotten, since a vector is made fresh before an answer anyway. Any thread
    may call.
    """

    def __init__(self, capacity: int = 100_000, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._capacity = capacity
        self._clock = clock
        self._waiting: OrderedDict[int, Mark] = OrderedDict()
        self._idle: list[int] = []  # without any vector since the start; the last is the next
        self._under_way: deque[list[Mark]] = deque(maxlen=2)  # taken: histories are read one turn before they are encoded
        self._outdated: set[int] = set()  # forgotten: their vectors, if there are any, are behind
        self._lock = threading.Lock()
        self.taken = 0  # people, since the start
        self.forgotten = 0
        self.lag_counts = [0] * (len(LAG_BOUNDS) + 1)
        self.lag_seconds = 0.0  # the sum of all that were observed

    @property
    def waiting(self) -> int:
        """People whose vectors are behind, or who have had none since the start."""
        return len(self._waiting) + len(self._idle)

    @property
    def has_any(self) -> bool:
        """Whether there is anybody to take, or to forget the vector of."""
        return bool(self._waiting or self._idle or self._outdated)

    @property
    def changed(self) -> int:
        """Of those who wait, people whose histories changed."""
        return len(self._waiting)

    def mark(self, key: int, committed: float | None = None) -> None:
        """The person's history changed. committed: when, in time.monotonic seconds; None: not to be measured."""
        with self._lock:
            if key in self._waiting:
                return
            self._waiting[key] = Mark(key, committed)
            if len(self._waiting) > self._capacity:
                oldest, _ = self._waiting.popitem(last=False)
                self._outdated.add(oldest)
                self.forgotten += 1

    def mark_all(self, keys: Sequence[int]) -> None:
        """People without a vector, the most urgent first: for when nobody else waits. Replaces those marked so before."""
        with self._lock:
            self._idle = list(reversed(keys))

    def drop(self, keys: Sequence[int]) -> None:
        """Forgets people whose vectors are of no use."""
        with self._lock:
            for key in keys:
                self._waiting.pop(key, None)
                self._ignore(key)

    def take(self, count: int) -> list[Mark]:
        """Up to `count` people, who are no longer waiting then."""
        with self._lock:
            taken: list[Mark] = []
            while len(taken) < count and self._waiting:
                taken.append(self._waiting.popitem(last=False)[1])
            while len(taken) < count and self._idle:
                taken.append(Mark(self._idle.pop(), None))
            self._under_way.append(taken)
            self.taken += len(taken)
            return taken

    def take_outdated(self) -> list[int]:
        """People who were forgotten since the last call: whatever vector they have is behind."""
        if not self._outdated:
            return []
        with self._lock:
            outdated, self._outdated = self._outdated, set()
            return [key for key in outdated if key not in self._waiting]

    def stored(self, mark: Mark) -> None:
        """The vector of a person who was taken has been stored, of the history as it was after `take`."""
        with self._lock:
            if mark.committed is not None:
                lag = self._clock() - mark.committed
                self.lag_counts[bisect_left(LAG_BOUNDS, lag)] += 1
                self.lag_seconds += lag

    def asked(self, key: int) -> None:
        """A request had the person's vector computed: how long it took says nothing about those nobody asks about.

        A person who waits goes on waiting: there may be events that the request did not know of.
        """
        with self._lock:
            if key in self._waiting:
                self._waiting[key].committed = None
            self._ignore(key)

    def _ignore(self, key: int) -> None:
        for mark in chain.from_iterable(self._under_way):
            if mark.key == key:
                mark.committed = None
