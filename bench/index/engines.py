"""What is measured of every engine, ours and others': one adapter each."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]
"""Items are known by their row in the vectors, in every engine."""


class Setting(NamedTuple):
    """What every engine is built for."""

    k: int
    recall: float
    calibration: NDArray[np.float32]  # (Q, D) float32 unit rows, none of which is measured
    hnsw_m: int
    build_threads: int
    search_threads: int
    capacity: int  # items that it must have room for
    seed: int


class Filter(NamedTuple):
    """The share of items that pass, and which they are."""

    share: float
    passes: NDArray[np.bool_]  # (N,) by label
    rolls: NDArray[np.float64]  # (N,) in [0, 1): the attribute; those below `share` pass


class Engine:
    """An index under measurement.

    `prepare` and `labels` are not timed: they turn arrays into what the engine takes and back. A subclass that sets `changes`
    implements `upsert`, `remove` and `settle`, one that sets `filters` implements `prepare_filter` and its search.
    """

    name = ""
    changes = False
    filters = False
    rows_per_slice = 1
    """Upserts that are made between two searches: few enough that a search hardly waits."""
    slow_changes = False
    """Changes, and taking them back, take so long that they are measured in one repeat only."""
    slow_filters = False
    """Filtered searches take so long that only a few are measured."""

    _ids: NDArray[np.object_] = np.zeros(0, dtype=object)  # by label; one array for all engines

    @classmethod
    def name_items(cls, count: int) -> None:
        """Gives the labels 0 to `count` - 1 their ids."""
        Engine._ids = np.array([str(label) for label in range(count)], dtype=object)

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.effort: float | None = None

    @property
    def queued(self) -> int:
        """A count of changes that grows with each."""
        return 0

    @property
    def settled(self) -> int:
        """How many of the changes, in order, searches find: all, where an engine has nothing left to settle."""
        return 0

    @property
    def settings(self) -> dict[str, Any]:
        """How it was built, for the JSON."""
        return {}

    @property
    def efforts(self) -> Sequence[float]:
        """The ladder of its search parameter, ascending, which the bench sweeps; empty if it chooses by itself or has none."""
        return ()

    @property
    def curve(self) -> Sequence[float]:
        """Efforts whose recall and latency are drawn."""
        return self.efforts[::4]

    def build(self, vectors: NDArray[np.float32]) -> None:
        """Takes in (N, D) float32 unit rows as items 0 to N - 1. Everything that is needed before the first search."""
        raise NotImplementedError

    def set_effort(self, effort: float | None) -> None:
        """Sets the search parameter; None is what the engine chose by itself."""
        self.effort = effort

    def prepare(self, queries: NDArray[np.float32]) -> Any:
        """(B, D) float32 queries as `search` takes them."""
        return queries

    def prepare_filter(self, filter_: Filter) -> Any:
        """A filter as `search` takes it."""
        raise NotImplementedError

    def search(self, queries: Any, k: int, filter_: Any = None) -> Any:
        """The k best, as the engine gives them."""
        raise NotImplementedError

    def answer(self, queries: Any, k: int, filter_: Any = None) -> Any:
        """The k best with the ids of their items, which are strings, as whoever asks needs them. This call is timed."""
        return self._ids.take(self.labels(self.search(queries, k, filter_))).tolist()

    def labels(self, found: Any) -> Labels:
        """What `search` returned as (B, k) int64 labels, -1 for none."""
        raise NotImplementedError

    def upsert(self, labels: Labels, vectors: NDArray[np.float32]) -> None:
        """Adds items or replaces their vectors: (n,) int64, each once, (n, D) float32. Found once `settle` is done."""
        raise NotImplementedError

    def remove(self, labels: Labels) -> None:
        """Removes items: (n,) int64, each once. They are not found any more."""
        raise NotImplementedError

    def settle(self) -> bool:
        """Does one short slice of what changes left to do; False if nothing is left."""
        return False


def pad(labels: NDArray[Any], k: int) -> Labels:
    """(B, n <= k) labels as (B, k) int64, with -1 at the end."""
    padded = np.full((len(labels), k), -1, dtype=np.int64)
    padded[:, : labels.shape[1]] = labels
    return padded
