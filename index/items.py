"""The facade: items with vectors, searched by any engine, checked once more before they are handed out."""

import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from index.exact import ExactSearch
from index.filters.filter import Filter
from index.filters.masks import MaskCache, SlotMask
from index.matrix import VectorMatrix
from index.search import Exclusions, Search
from index.slots import SlotTable

_log = logging.getLogger(__name__)


class Candidates(NamedTuple):
    """Items for one query, best first; parallel."""

    item_ids: list[str]
    slots: NDArray[np.int64]  # (n,) int64
    scores: NDArray[np.float32]  # (n,) float32, higher is better


class Searched(NamedTuple):
    """One answered query, for those who watch: what was asked of which engine, and what it found."""

    query: torch.Tensor  # (D,) float32
    k: int
    exclude: NDArray[np.int64] | None
    mask: SlotMask | None
    slots: NDArray[np.int64]  # (<= k,) int64, best first


class Watcher(Protocol):
    """Learns of every change and of answered queries. Runs on the owner's thread, so it must be quick."""

    def changed(self, slots: NDArray[np.int64]) -> None:
        """The vectors, life, availability or attributes of these slots changed: (n,) int64."""
        ...

    def wants_answer(self) -> bool:
        """Whether it wants to see the next answer. Asked at every one."""
        ...

    def searched(self, searched: Searched) -> None:
        """The engine answered a query."""
        ...


class ItemIndex:
    """The slot table of a tenant and the vectors and the search engine of one release, kept in step.

    One thread owns it. Changes are readable at once and found by searches once they are settled: the engine's upkeep is done in
    short slices by `settle`, between which searches may run. `queued` counts slots that were changed, `settled` how many of
    them, in order, searches find: what was queued by a change is found when `settled` has reached `queued` as it was after it.

    `violations` counts candidates that an engine returned although they were not eligible, were excluded or did not pass the
    filter; it stays 0, and a candidate that counts is never handed out.
    """

    def __init__(self, slots: SlotTable, matrix: VectorMatrix, search: Search, *, oracle: ExactSearch | None = None) -> None:
        """oracle: the exact search over the same slots and matrix; by default the engine itself if exact, else a new one."""
        self.slots = slots
        self.matrix = matrix
        self.engine = search
        self.oracle = oracle or (search if isinstance(search, ExactSearch) else ExactSearch(slots, matrix))
        self.watchers: list[Watcher] = []
        self.violations = 0
        self.queued = 0
        self.settled = 0
        self._masks = MaskCache(slots, matrix.holds)

    def set_vectors(self, slots: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        """Writes the vectors of slots: (n,) int64, (n, D) float32 unit rows."""
        self.matrix.write(slots, vectors)
        self.changed(slots)

    def clear_vectors(self, slots: NDArray[np.int64]) -> None:
        """Forgets the vectors of slots: (n,) int64. No later search returns them."""
        self.matrix.clear(slots)
        self.changed(slots)

    def changed(self, slots: NDArray[np.int64]) -> None:
        """Takes note that the slot table says something new of these slots: (n,) int64.

        What is not eligible any more is returned by no later search, settled or not.
        """
        if not len(slots):
            return
        if self.engine is not self.oracle:
            self.oracle.update(slots)
        self.engine.update(slots)
        self._masks.changed(slots)
        for watcher in self.watchers:
            watcher.changed(slots)
        self.queued += len(slots)
        if isinstance(self.engine, ExactSearch):
            self.settled = self.queued

    def settle(self) -> bool:
        """Does one short slice of the engine's upkeep; False if nothing is left."""
        left = self.engine.settle()
        self.settled = self.queued - left
        return left > 0

    def finish(self) -> None:
        """Settles everything."""
        while self.settle():
            pass

    def search(
        self,
        queries: torch.Tensor,
        ks: Sequence[int],
        exclude: Exclusions | None = None,
        filters: Sequence[Filter | None] | None = None,
        *,
        exact: bool = False,
    ) -> list[Candidates]:
        """The best items for each query: (B, D) float32; k, slots to leave out, and a filter or None for each.

        Exactly min(k, eligible) items each, best first. exact: compares with every eligible item, whatever the engine is.
        Raises FilterError for a filter that cannot be applied.
        """
        masks = [self.mask(one) if one is not None else None for one in filters] if filters is not None else None
        engine = self.oracle if exact else self.engine
        hits = engine.search(queries, max(ks), exclude, masks)
        found = []
        for row, k in enumerate(ks):
            excluded = exclude[row] if exclude is not None else None
            mask = masks[row] if masks is not None else None
            found.append(self._recheck(hits.slots[row, :k], hits.scores[row, :k], excluded, mask))
            for watcher in self.watchers if not exact else ():
                if watcher.wants_answer():
                    watcher.searched(Searched(queries[row], k, excluded, mask, found[-1].slots))
        return found

    def mask(self, filter_: Filter) -> SlotMask:
        """What a filter lets through now. Raises FilterError if it cannot be applied."""
        return self._masks.mask(filter_)

    def is_ready(self, filter_: Filter) -> bool:
        """Whether a search with the filter need not wait for its mask. Any thread may ask."""
        return self._masks.is_ready(filter_)

    def prepare(self, filter_: Filter) -> Iterator[None]:
        """Computes a mask in short steps, so that a search with a filter of many ids does not wait for it: see `MaskCache`."""
        return self._masks.prepare(filter_)

    def _recheck(
        self,
        slots: NDArray[np.int64],
        scores: NDArray[np.float32],
        exclude: NDArray[np.int64] | None,
        mask: SlotMask | None,
    ) -> Candidates:
        """Every candidate against the slot table itself, whatever the engine did: nothing ineligible passes."""
        # Each call here costs more than its work: a scan has just emptied the processor's cache.
        if len(slots) and slots[-1] < 0:
            found = slots >= 0
            slots, scores = slots[found], scores[found]
        permitted = self.slots.eligible(slots)
        permitted &= self.matrix.holds(slots)
        if exclude is not None and len(exclude):
            permitted &= ~np.isin(slots, exclude)
        if mask is not None:
            permitted &= mask.permits(slots)
        if not all(permitted.tolist()):  # of a hundred, Python's own `all` is quicker than NumPy's
            wrong = len(slots) - int(np.count_nonzero(permitted))
            self.violations += wrong
            _log.error("the engine %s returned %d candidates that are not permitted", self.engine.kind, wrong)
            slots, scores = slots[permitted], scores[permitted]
        return Candidates(self.slots.ids.take(slots).tolist(), slots, scores)
