"""The facade: items with vectors, searched by any engine, checked once more before they are handed out."""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from index.matrix import VectorMatrix
from index.search import Search
from index.slots import SlotTable

_log = logging.getLogger(__name__)


class Candidates(NamedTuple):
    """Items for one query, best first; parallel."""

    item_ids: list[str]
    slots: NDArray[np.int64]  # (n,) int64
    scores: NDArray[np.float32]  # (n,) float32, higher is better


class ItemIndex:
    """The slot table of a tenant and the vectors and the search engine of one release, kept in step.

    One thread calls it. `violations` counts candidates that an engine returned although they were not eligible or were
    excluded; it stays 0, and a candidate that counts is never handed out.
    """

    def __init__(self, slots: SlotTable, matrix: VectorMatrix, search: Search) -> None:
        self.slots = slots
        self.matrix = matrix
        self.engine = search
        self.violations = 0

    def set_vectors(self, slots: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        """Writes the vectors of slots: (n,) int64, (n, D) float32 unit rows. Visible to the next search."""
        self.matrix.write(slots, vectors)
        self.engine.update(slots)

    def clear_vectors(self, slots: NDArray[np.int64]) -> None:
        """Forgets the vectors of slots: (n,) int64."""
        self.matrix.clear(slots)
        self.engine.update(slots)

    def eligibility_changed(self, slots: NDArray[np.int64]) -> None:
        """Takes note that the slot table says something new of these slots: (n,) int64. Visible to the next search."""
        self.engine.update(slots)

    def search(
        self, queries: torch.Tensor, ks: Sequence[int], exclude: Sequence[NDArray[np.int64]] | None = None
    ) -> list[Candidates]:
        """The best items for each query: (B, D) float32, k for each, and slots to leave out for each.

        Exactly min(k, eligible) items each, best first.
        """
        hits = self.engine.search(queries, max(ks), exclude)
        found = []
        for row, k in enumerate(ks):
            excluded = exclude[row] if exclude is not None else None
            found.append(self._recheck(hits.slots[row, :k], hits.scores[row, :k], excluded))
        return found

    def _recheck(self, slots: NDArray[np.int64], scores: NDArray[np.float32], exclude: NDArray[np.int64] | None) -> Candidates:
        """Every candidate against the slot table itself, whatever the engine did: nothing ineligible passes."""
        found = slots >= 0
        slots, scores = slots[found], scores[found]
        permitted = self.slots.eligible(slots) & self.matrix.holds(slots)
        if exclude is not None and len(exclude):
            permitted &= ~np.isin(slots, exclude)
        wrong = len(slots) - int(permitted.sum())
        if wrong:
            self.violations += wrong
            _log.error("the engine %s returned %d candidates that are not permitted", self.engine.kind, wrong)
            slots, scores = slots[permitted], scores[permitted]
        return Candidates(self.slots.ids[slots].tolist(), slots, scores)
