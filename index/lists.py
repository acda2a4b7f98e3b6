"""Inverted lists: rows kept by the nearest of some thousand centroids, so that a search reads only the lists near its query.

What all lists have in common. How rows are kept and scanned differs: `index.native.lists` and `index.faiss_lists`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from index.matrix import VectorMatrix
from index.search import Hits

TRAIN_POINTS = 64
"""Rows a list that k-means reads at most; more make the centroids hardly better."""
_TRAIN_ROUNDS = 10
_ROWS_AT_ONCE = 4096  # rows compared with the centroids together: their scores stay within some megabytes

Found = tuple[NDArray[np.int64], NDArray[np.float32]]
"""The best k of one query, best first: slots (k,) int64 and scores (k,) float32; -1 and -inf behind them if there are fewer."""


@dataclass(frozen=True)
class ListsState:
    """What lists consist of, without the rows."""

    centroids: NDArray[np.float32]  # (L, D) float32 unit rows
    slots: NDArray[np.int64]  # (n,) int64
    list_of: NDArray[np.int32]  # (n,) int32: the list that each slot's row is in


def list_count(rows: int) -> int:
    """How many lists suit a number of rows: the power of two nearest to 4.5 times its square root, at least 1.

    More lists are shorter, but finding the nearest ones takes longer, as does putting a row into one.
    """
    return int(2 ** round(np.log2(max(1.0, 4.5 * np.sqrt(rows))))) if rows > 0 else 1


def train_centroids(rows: NDArray[np.float32], lists: int, *, seed: int) -> NDArray[np.float32]:
    """Spherical k-means: (n, D) float32 unit rows, n >= lists -> (lists, D) float32 unit rows."""
    kmeans = faiss.Kmeans(
        rows.shape[1],
        lists,
        niter=_TRAIN_ROUNDS,
        spherical=True,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=TRAIN_POINTS,
    )
    kmeans.train(np.ascontiguousarray(rows))
    return np.asarray(kmeans.centroids, dtype=np.float32)


class InvertedLists(ABC):
    """Rows by slot in lists. Not safe to change while it is searched: one thread does both.

    Rows in lists are rounded, and may be older than the matrix's: what a search finds is scored with the matrix's.
    """

    kind: ClassVar[str]
    """The engine's name: see `Search.kind`."""

    def __init__(self, centroids: NDArray[np.float32]) -> None:
        """centroids: (L, D) float32 unit rows."""
        self.count = len(centroids)
        self._centroids = torch.from_numpy(np.ascontiguousarray(centroids))
        self._row_count = 0
        self.list_of: NDArray[np.int32] = np.full(1024, -1, dtype=np.int32)  # by slot, -1: not in any list
        self.sizes: NDArray[np.int64] = np.zeros(self.count, dtype=np.int64)  # rows by list

    def __len__(self) -> int:
        return self._row_count

    @property
    @abstractmethod
    def memory_bytes(self) -> int:
        """Bytes of rows, slots, centroids and tables."""

    @property
    def state(self) -> ListsState:
        slots = np.flatnonzero(self.list_of >= 0)
        return ListsState(self._centroids.numpy().copy(), slots, self.list_of[slots])

    def contains(self, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of the slots have a row here: (n,) bool."""
        return self.lists_of(slots) >= 0

    def lists_of(self, slots: NDArray[np.int64]) -> NDArray[np.int32]:
        """The list that each slot's row is in, -1 where it has none: (n,) int32."""
        self._reach(slots)
        found: NDArray[np.int32] = self.list_of[slots]
        return found

    def nearest(self, rows: torch.Tensor) -> NDArray[np.int32]:
        """The list each row belongs to: (n, D) float32 -> (n,) int32."""
        parts = [torch.argmax(part @ self._centroids.T, dim=1) for part in torch.split(rows, _ROWS_AT_ONCE)]
        return torch.cat(parts).to(torch.int32).numpy()

    def by_nearness(self, query: torch.Tensor) -> NDArray[np.int64]:
        """All lists, the nearest to the (D,) float32 query first: (L,) int64."""
        return np.argsort(-torch.mv(self._centroids, query).numpy())

    def ranks(self, queries: torch.Tensor) -> torch.Tensor:
        """Each list's place in the order in which each query looks at them: (Q, D) float32 -> (Q, L) int64."""
        order = torch.argsort(queries @ self._centroids.T, dim=1, descending=True)
        return torch.empty_like(order).scatter_(1, order, torch.arange(self.count).expand_as(order).contiguous())

    def put(self, slots: NDArray[np.int64], rows: torch.Tensor, lists: NDArray[np.int32] | None = None) -> None:
        """Adds or replaces rows: (n,) int64 without repetition, (n, D) float32; lists: where they belong, if it is known."""
        if not len(slots):
            return
        self.remove(slots)
        own = np.ascontiguousarray(self.nearest(rows) if lists is None else lists, dtype=np.int32)
        self._add(np.ascontiguousarray(slots, dtype=np.int64), rows, own)
        self.list_of[slots] = own
        self.sizes += np.bincount(own, minlength=self.count)
        self._row_count += len(slots)

    def remove(self, slots: NDArray[np.int64]) -> None:
        """Removes the rows of those of the slots, (n,) int64 without repetition, that have one."""
        present = np.ascontiguousarray(slots[self.contains(slots)], dtype=np.int64)
        if len(present):
            own = self.list_of[present]
            self._remove(present, own)
            self.sizes -= np.bincount(own, minlength=self.count)
            self.list_of[present] = -1
            self._row_count -= len(present)

    @abstractmethod
    def search(self, queries: NDArray[np.float32], k: int, probes: int, matrix: VectorMatrix) -> Hits:
        """The best k rows in each query's `probes` nearest lists, 1 to `count`: (B, D) -> (B, k), scored by the matrix."""

    @abstractmethod
    def search_in(
        self, query: NDArray[np.float32], k: int, lists: NDArray[np.int64], bits: NDArray[np.uint8], matrix: VectorMatrix
    ) -> Found:
        """The best k rows for one query, (D,), among those that a bitmap lets through, scored by the matrix.

        lists: (P,) int64, where to look, the nearest first: what comes later then hardly changes the hits, which is faster.
        bits: packed little-endian by slot; slots behind its end do not pass.
        """

    @abstractmethod
    def near(self, query: NDArray[np.float32], k: int, probes: int) -> NDArray[np.int64]:
        """Slots among which are the best k of the `probes` nearest lists, as far as the lists' own rows can tell: (>= k,) int64
        where there are as many.
        """

    @abstractmethod
    def _add(self, slots: NDArray[np.int64], rows: torch.Tensor, lists: NDArray[np.int32]) -> None:
        """Adds rows of slots that are in no list, to the lists that they belong to; all or none if it raises."""

    @abstractmethod
    def _remove(self, slots: NDArray[np.int64], lists: NDArray[np.int32]) -> None:
        """Removes rows that are there, each from its list."""

    def _reach(self, slots: NDArray[np.int64]) -> None:
        if len(slots) and slots.max() >= len(self.list_of):
            added = max(int(slots.max()) + 1, 2 * len(self.list_of)) - len(self.list_of)
            self.list_of = np.concatenate([self.list_of, np.full(added, -1, dtype=np.int32)])
