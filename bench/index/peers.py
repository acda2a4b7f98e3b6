"""The libraries that people would use instead, each through its Python package as its documentation shows it."""

import importlib
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.index.engines import Engine, Filter, Labels, Setting, pad

EF_CONSTRUCTION = 200
"""With M 32, the default, hnswlib answers faster at recalls of .93 and above than with 16 or 24 (200,000 x 64, generated)."""
_LADDER_STEP = 1.12  # so that no engine is measured at much more recall than was asked for
_LADDER_END = 8192


def ladder(start: int) -> list[float]:
    """Values of ef: from `start`, each 12 % above the one before, to 8,192."""
    values = [float(start)]
    while values[-1] < _LADDER_END:
        values.append(float(max(int(values[-1] * _LADDER_STEP), int(values[-1]) + 1)))
    return values


class _Graph(Engine):
    """What HNSW engines share: M, ef_construction, and ef as the effort."""

    @property
    def settings(self) -> dict[str, Any]:
        """See `Engine.settings`."""
        return {"m": self.setting.hnsw_m, "ef_construction": EF_CONSTRUCTION, "ef": self.effort}

    @property
    def efforts(self) -> Sequence[float]:
        """See `Engine.efforts`: ef is k at least."""
        return ladder(self.setting.k)


class Hnswlib(_Graph):
    """hnswlib: removal marks, and an insertion may reuse a marked place."""

    name = "hnswlib"
    changes = True
    slow_changes = True
    filters = True
    slow_filters = True  # a Python call for each item that it comes across

    def build(self, vectors: NDArray[np.float32]) -> None:
        """See `Engine.build`."""
        setting = self.setting
        self._index = importlib.import_module("hnswlib").Index("ip", vectors.shape[1])
        self._index.init_index(
            max_elements=setting.capacity,
            M=setting.hnsw_m,
            ef_construction=EF_CONSTRUCTION,
            random_seed=setting.seed + 1,
            allow_replace_deleted=True,
        )
        self._index.add_items(vectors, np.arange(len(vectors)), num_threads=setting.build_threads)
        self._index.set_num_threads(setting.search_threads)
        # A label that was removed cannot be used again: each item gets a new one then.
        self._label_of = {label: label for label in range(len(vectors))}
        self._item_of: NDArray[np.int64] = np.arange(4 * setting.capacity)
        self._next = len(vectors)
        self._removed = 0

    def set_effort(self, effort: float | None) -> None:
        """See `Engine.set_effort`."""
        super().set_effort(effort)
        if effort is not None:
            self._index.set_ef(int(effort))

    def prepare_filter(self, filter_: Filter) -> Any:
        """See `Engine.prepare_filter`."""
        return filter_.passes.tolist().__getitem__

    def search(self, queries: NDArray[np.float32], k: int, filter_: Any = None) -> Any:
        """See `Engine.search`. It raises where it finds fewer than k."""
        try:
            return self._index.knn_query(queries, k, filter=filter_)[0]
        except RuntimeError:
            return np.full((len(queries), 0), 0, dtype=np.int64)

    def labels(self, found: Any) -> Labels:
        """See `Engine.labels`."""
        return pad(self._item_of[found.astype(np.int64)], self.setting.k)

    def upsert(self, labels: Labels, vectors: NDArray[np.float32]) -> None:
        """See `Engine.upsert`."""
        known = np.array([label in self._label_of for label in labels.tolist()])
        old = [self._label_of[label] for label in labels[known].tolist()]
        if old:
            self._index.add_items(vectors[known], old, num_threads=self.setting.search_threads)
        for label, vector in zip(labels[~known].tolist(), vectors[~known], strict=True):
            self._label_of[label] = own = self._next
            self._next += 1
            if own == len(self._item_of):
                self._item_of = np.concatenate([self._item_of, np.zeros(own, dtype=np.int64)])
            self._item_of[own] = label
            self._index.add_items(vector[None], [own], num_threads=1, replace_deleted=self._removed > 0)
            self._removed = max(0, self._removed - 1)

    def remove(self, labels: Labels) -> None:
        """See `Engine.remove`."""
        for label in labels.tolist():
            self._index.mark_deleted(self._label_of.pop(label))
            self._removed += 1


class Usearch(_Graph):
    """usearch with float32 rows; an update is a removal and an insertion."""

    name = "usearch"
    changes = True
    slow_changes = True

    def build(self, vectors: NDArray[np.float32]) -> None:
        """See `Engine.build`."""
        setting = self.setting
        self._index = importlib.import_module("usearch.index").Index(
            ndim=vectors.shape[1],
            metric="ip",
            dtype="f32",
            connectivity=setting.hnsw_m,
            expansion_add=EF_CONSTRUCTION,
        )
        self._index.add(np.arange(len(vectors), dtype=np.uint64), vectors, threads=setting.build_threads)

    def set_effort(self, effort: float | None) -> None:
        """See `Engine.set_effort`."""
        super().set_effort(effort)
        if effort is not None:
            self._index.expansion_search = int(effort)

    def search(self, queries: NDArray[np.float32], k: int, filter_: Any = None) -> Any:
        """See `Engine.search`."""
        return self._index.search(queries, k, threads=self.setting.search_threads)

    def labels(self, found: Any) -> Labels:
        """See `Engine.labels`."""
        keys = np.atleast_2d(found.keys).astype(np.int64)
        if hasattr(found, "counts"):  # of a batch; what is behind it in a row is nothing
            keys[np.arange(keys.shape[1]) >= np.asarray(found.counts)[:, None]] = -1
        return pad(keys, self.setting.k)

    def upsert(self, labels: Labels, vectors: NDArray[np.float32]) -> None:
        """See `Engine.upsert`."""
        keys = labels.astype(np.uint64)
        known = self._index.contains(keys)
        if known.any():
            self._index.remove(keys[known], threads=self.setting.search_threads)
        self._index.add(keys, vectors, threads=self.setting.search_threads)

    def remove(self, labels: Labels) -> None:
        """See `Engine.remove`."""
        self._index.remove(labels.astype(np.uint64), threads=self.setting.search_threads)


class _Faiss(Engine):
    """What FAISS engines share: `search` with parameters that carry the filter."""

    filters = True

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._faiss = importlib.import_module("faiss")

    def _fill(self, index: Any, vectors: NDArray[np.float32]) -> None:
        self._index = index
        self._faiss.omp_set_num_threads(self.setting.build_threads)
        index.add(vectors)
        self._faiss.omp_set_num_threads(self.setting.search_threads)

    def prepare_filter(self, filter_: Filter) -> Any:
        """See `Engine.prepare_filter`."""
        bits = np.packbits(filter_.passes, bitorder="little")
        return self._parameters(sel=self._faiss.IDSelectorBitmap(bits))

    def _parameters(self, **parameters: Any) -> Any:
        return self._faiss.SearchParameters(**parameters)

    def search(self, queries: NDArray[np.float32], k: int, filter_: Any = None) -> Any:
        """See `Engine.search`."""
        return self._index.search(queries, k, params=filter_)[1]

    def labels(self, found: Any) -> Labels:
        """See `Engine.labels`."""
        return pad(found, self.setting.k)


class FaissHnsw(_Faiss, _Graph):
    """faiss.IndexHNSWFlat with inner products; it can neither remove nor replace."""

    name = "faiss-hnsw"

    def build(self, vectors: NDArray[np.float32]) -> None:
        """See `Engine.build`."""
        index = self._faiss.IndexHNSWFlat(vectors.shape[1], self.setting.hnsw_m, self._faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = EF_CONSTRUCTION
        self._fill(index, vectors)

    def set_effort(self, effort: float | None) -> None:
        """See `Engine.set_effort`."""
        super().set_effort(effort)
        if effort is not None:
            self._index.hnsw.efSearch = int(effort)

    def _parameters(self, **parameters: Any) -> Any:
        return self._faiss.SearchParametersHNSW(efSearch=int(self.effort or self.setting.k), **parameters)


class FaissFlat(_Faiss):
    """faiss.IndexFlatIP: brute force; removal moves all that comes after, so it counts as none."""

    name = "faiss-flat"

    def build(self, vectors: NDArray[np.float32]) -> None:
        """See `Engine.build`."""
        self._fill(self._faiss.IndexFlatIP(vectors.shape[1]), vectors)


PEERS: dict[str, type[Engine]] = {peer.name: peer for peer in (Hnswlib, Usearch, FaissHnsw, FaissFlat)}
PACKAGES = {"hnswlib": "hnswlib", "usearch": "usearch", "faiss-hnsw": "faiss", "faiss-flat": "faiss"}
"""The module that each peer needs."""
INSTALLS = {"hnswlib": "hnswlib", "usearch": "usearch", "faiss-hnsw": "faiss-cpu", "faiss-flat": "faiss-cpu"}
"""What to install for it with pip."""


def is_installed(peer: str) -> bool:
    """Whether a peer's package can be imported."""
    try:
        importlib.import_module(PACKAGES[peer])
    except ImportError:
        return False
    return True


def versions(peers: Sequence[str]) -> dict[str, str]:
    """The versions of the peers' packages."""
    found = {}
    for peer in peers:
        name = INSTALLS[peer]
        found[name] = str(importlib.import_module("faiss").__version__) if name == "faiss-cpu" else version(name)
    return found
