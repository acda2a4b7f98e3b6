"""Inverted lists by FAISS: IndexIVFScalarQuantizer with float16 rows and a hash table from slot to place, so that rows can be
replaced and removed in place.
"""

from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from index.lists import Found, InvertedLists
from index.matrix import VectorMatrix
from index.search import Hits, no_hits

_HASH_TABLE: Any = vars(faiss)["DirectMap"].Hashtable  # its types do not know it
# FAISS's wrappers check every assignment to an attribute, which takes as long as a tenth of a search: these do not.
_set_probes: Any = vars(faiss)["SearchParametersIVF"].nprobe.fset
_set_selector: Any = vars(faiss)["SearchParameters"].sel.fset


class FaissLists(InvertedLists):
    """For machines without a C++ compiler, and for those who ask for it."""

    kind = "faiss-ivf"

    def __init__(self, centroids: NDArray[np.float32]) -> None:
        """See `InvertedLists`."""
        super().__init__(centroids)
        dim = centroids.shape[1]
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

    @property
    def memory_bytes(self) -> int:
        """See `InvertedLists`; the hash table by its usual 48 bytes an entry."""
        dim = self._centroids.shape[1]
        return len(self) * (2 * dim + 8 + 48) + self._centroids.numel() * 4 + self.list_of.nbytes

    def _add(self, slots: NDArray[np.int64], rows: torch.Tensor, lists: NDArray[np.int32]) -> None:
        keys, values = lists.astype(np.int64), rows.contiguous().numpy()
        self._index.add_core(len(slots), faiss.swig_ptr(values), faiss.swig_ptr(slots), faiss.swig_ptr(keys))

    def _remove(self, slots: NDArray[np.int64], lists: NDArray[np.int32]) -> None:
        self._index.remove_ids(faiss.IDSelectorArray(len(slots), faiss.swig_ptr(slots)))

    def search(self, queries: NDArray[np.float32], k: int, probes: int, matrix: VectorMatrix) -> Hits:
        """See `InvertedLists.search`."""
        slots = self._best(queries, k, probes)
        if len(queries) == 1:  # as most searches are: what each call costs counts here, after a scan
            own, scores = _scored(queries[0], slots[0], matrix)
            return Hits(own[None], scores[None])
        found = no_hits(len(queries), k)
        for row, query in enumerate(queries):
            found.slots[row], found.scores[row] = _scored(query, slots[row], matrix)
        return found

    def search_in(
        self, query: NDArray[np.float32], k: int, lists: NDArray[np.int64], bits: NDArray[np.uint8], matrix: VectorMatrix
    ) -> Found:
        """See `InvertedLists.search_in`."""
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
        return _scored(query, slots, matrix)

    def near(self, query: NDArray[np.float32], k: int, probes: int) -> NDArray[np.int64]:
        """See `InvertedLists.near`."""
        slots = self._best(query[None], k, probes)[0]
        found: NDArray[np.int64] = slots[slots >= 0]
        return found

    def _best(self, queries: NDArray[np.float32], k: int, probes: int) -> NDArray[np.int64]:
        count = len(queries)
        scores = np.empty((count, k), dtype=np.float32)
        slots = np.empty((count, k), dtype=np.int64)
        if probes != self._probes:  # which costs as much as a tenth of a search
            self._index.nprobe = self._probes = probes
        pointer = faiss.swig_ptr
        self._index.search_c(count, pointer(queries), k, pointer(scores), pointer(slots))
        return slots

    def _no_scores(self, count: int) -> NDArray[np.float32]:
        if len(self._zeros) < count:
            self._zeros = np.zeros(count, dtype=np.float32)
        return self._zeros


def _scored(query: NDArray[np.float32], slots: NDArray[np.int64], matrix: VectorMatrix) -> Found:
    """The (k,) slots by the matrix's rows, best first. In NumPy, whose calls cost less than torch's."""
    missing = slots < 0 if slots[-1] < 0 else None  # FAISS puts them last
    rows = matrix.read_on_host(slots if missing is None else np.maximum(slots, 0))  # (k, D) float32
    scores: NDArray[np.float32] = rows @ query
    if missing is not None:
        scores[missing] = -np.inf
    best = (-scores).argsort(kind="stable")  # nearly sorted already
    return slots[best], scores[best]
