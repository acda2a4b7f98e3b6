"""Inverted lists: rows kept by the nearest of some thousand centroids, so that a search reads only the lists near its query.

FAISS does the work: IndexIVFScalarQuantizer with float16 rows and a hash table from slot to place, so that rows can be replaced
and removed in place.
"""

from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

_HASH_TABLE: Any = vars(faiss)["DirectMap"].Hashtable  # its types do not know it
# FAISS's wrappers check every assignment to an attribute, which takes as long as a tenth of a search: these do not.
_set_probes: Any = vars(faiss)["SearchParametersIVF"].nprobe.fset
_set_selector: Any = vars(faiss)["SearchParameters"].sel.fset
TRAIN_POINTS = 64
"""Rows a list that k-means reads at most; more make the centroids hardly better."""
_TRAIN_ROUNDS = 10
_ROWS_AT_ONCE = 4096  # rows compared with the centroids together: their scores stay within some megabytes


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


class InvertedLists:
    """Rows by slot in lists. Not safe to change while it is searched: one thread does both."""

    def __init__(self, centroids: NDArray[np.float32]) -> None:
        """centroids: (L, D) float32 unit rows."""
        self.count, dim = centroids.shape
        self._centroids = torch.from_numpy(np.ascontiguousarray(centroids))
        quantizer = faiss.IndexFlatIP(dim)
        quantizer.add(np.ascontiguousarray(centroids))
        self._index: Any = faiss.IndexIVFScalarQuantizer(
            quantizer, dim, self.count, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False
        )
        self._quantizer = quantizer  # FAISS keeps a pointer only
        self._index.train(np.zeros((1, dim), dtype=np.float32))  # float16 has nothing to learn; the centroids are there
        self._index.set_direct_map_type(_HASH_TABLE)
        self._probes = 1
        self._parameters: Any = faiss.SearchParametersIVF()
        self._zeros: NDArray[np.float32] = np.zeros(0, dtype=np.float32)
        self.list_of: NDArray[np.int32] = np.full(1024, -1, dtype=np.int32)  # by slot, -1: not in any list
        self.sizes: NDArray[np.int64] = np.zeros(self.count, dtype=np.int64)  # rows by list

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def memory_bytes(self) -> int:
        """Bytes of rows, slots, centroids and tables; the hash table by its usual 48 bytes an entry."""
        dim = self._centroids.shape[1]
        return len(self) * (2 * dim + 8 + 48) + self._centroids.numel() * 4 + self.list_of.nbytes

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
        keys = np.ascontiguousarray(self.nearest(rows) if lists is None else lists, dtype=np.int64)
        slots = np.ascontiguousarray(slots, dtype=np.int64)
        values = rows.contiguous().numpy()
        self._index.add_core(len(slots), faiss.swig_ptr(values), faiss.swig_ptr(slots), faiss.swig_ptr(keys))
        self.list_of[slots] = keys
        self.sizes += np.bincount(keys, minlength=self.count)

    def remove(self, slots: NDArray[np.int64]) -> None:
        """Removes the rows of those of the slots, (n,) int64 without repetition, that have one."""
        present = np.ascontiguousarray(slots[self.contains(slots)], dtype=np.int64)
        if len(present):
            self._index.remove_ids(faiss.IDSelectorArray(len(present), faiss.swig_ptr(present)))
            self.sizes -= np.bincount(self.list_of[present], minlength=self.count)
            self.list_of[present] = -1

    def search(self, queries: NDArray[np.float32], k: int, probes: int) -> NDArray[np.int64]:
        """The slots of the best k rows in each query's nearest lists, best first: (B, D) -> (B, k) int64, -1 at the end."""
        count = len(queries)
        scores = np.empty((count, k), dtype=np.float32)
        slots = np.empty((count, k), dtype=np.int64)
        if probes != self._probes:  # which costs as much as a tenth of a search
            self._index.nprobe = self._probes = probes
        pointer = faiss.swig_ptr
        self._index.search_c(count, pointer(queries), k, pointer(scores), pointer(slots))
        return slots

    def search_bits(
        self, query: NDArray[np.float32], k: int, lists: NDArray[np.int64], bits: NDArray[np.uint8]
    ) -> NDArray[np.int64]:
        """The slots of the best k rows among those that a bitmap lets through: (D,) float32 -> (k,) int64, -1 at the end.

        lists: (P,) int64, where to look, the nearest first: what comes later then hardly changes the hits, which is faster.
        bits: packed little-endian by slot, up to the highest in the lists.
        """
        scores = np.empty(k, dtype=np.float32)
        slots = np.empty(k, dtype=np.int64)
        lists = np.ascontiguousarray(lists)
        pointer = faiss.swig_ptr
        # The selector keeps a pointer, so it lives as long as `bits`: this call.
        selector = faiss.IDSelectorBitmap(len(bits), pointer(bits))
        _set_probes(self._parameters, len(lists))
        _set_selector(self._parameters, selector)
        # The lists' own scores, for which FAISS asks, are needed for rows kept as residuals only.
        unused = self._no_scores(len(lists))
        self._index.search_preassigned_c(
            1, pointer(query), k, pointer(lists), pointer(unused), pointer(scores), pointer(slots), False, self._parameters
        )
        _set_selector(self._parameters, None)
        return slots

    def _no_scores(self, count: int) -> NDArray[np.float32]:
        if len(self._zeros) < count:
            self._zeros = np.zeros(count, dtype=np.float32)
        return self._zeros

    def _reach(self, slots: NDArray[np.int64]) -> None:
        if len(slots) and slots.max() >= len(self.list_of):
            added = max(int(slots.max()) + 1, 2 * len(self.list_of)) - len(self.list_of)
            self.list_of = np.concatenate([self.list_of, np.full(added, -1, dtype=np.int32)])
