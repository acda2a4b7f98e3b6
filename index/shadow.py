"""Exact search for a few answered queries in slices, and how many of the true hits each answer had."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from index.filters.masks import SlotMask
from index.items import ItemIndex
from index.topk import top_k

_COMPONENTS = 1 << 20  # of the rows that one slice compares on a CPU: 0.5 ms for one query, 1 ms for four
_COMPONENTS_GPU = 1 << 24
_SPARE = 32  # hits kept beyond k, to take the places of those whose slots change
_TIE = 1e-6  # difference of scores that rounding explains


@dataclass(frozen=True)
class Sample:
    """One answered query that is to be compared."""

    query: torch.Tensor  # (D,) float32
    k: int
    exclude: NDArray[np.int64] | None
    mask: SlotMask | None
    """As it is later: what has changed in it since belongs to slots that have changed."""
    slots: NDArray[np.int64]  # (<= k,) int64: the answer
    since: int
    """Position in the `Changes` up to which the answer knew them."""


class Changes:
    """Which slots changed, in order: the last ones, counted from the first."""

    def __init__(self, size: int) -> None:
        self._ring: NDArray[np.int64] = np.zeros(size, dtype=np.int64)
        self.count = 0

    def append(self, slots: NDArray[np.int64]) -> None:
        """Takes note of (n,) int64."""
        size, last = len(self._ring), slots[-len(self._ring) :]
        self._ring[(self.count + len(slots) - len(last) + np.arange(len(last))) % size] = last
        self.count += len(slots)

    def since(self, position: int) -> NDArray[np.int64] | None:
        """The slots of all changes but the first `position`: (n,) int64; None if they are not remembered any more."""
        if position < 0 or self.count - position > len(self._ring):
            return None
        found: NDArray[np.int64] = self._ring[np.arange(position, self.count) % len(self._ring)]
        return found


class ShadowScan:
    """Compares samples with every row that they may return, block by block. Changes may come between the blocks.

    What changed since an answer is left out of both sides, so that nothing counts as missed that could not have been found.
    """

    def __init__(self, index: ItemIndex, samples: Sequence[Sample]) -> None:
        """samples: at least one."""
        self.samples = samples
        self._index = index
        matrix = index.matrix
        components = _COMPONENTS if matrix.device.type == "cpu" else _COMPONENTS_GPU
        self._block_rows = max(64, components // matrix.dim // 64 * 64)
        self._at = 0
        self._end = min(index.slots.extent, matrix.capacity)
        self._queries = torch.stack([sample.query for sample in samples])  # (B, D) float32
        width = max(sample.k for sample in samples) + _SPARE
        self._scores = torch.full((len(samples), width), -torch.inf, device=matrix.device)  # (B, k + spare), best first
        self._slots = torch.full((len(samples), width), -1, dtype=torch.int64, device=matrix.device)

    def step(self) -> bool:
        """Compares the next block of rows; False if there is none left."""
        if self._at >= self._end:
            return False
        matrix, start = self._index.matrix, self._at
        number, inside = divmod(start, matrix.chunk_rows)
        count = min(self._block_rows, matrix.chunk_rows - inside, self._end - start)
        rows = matrix.chunks[number][inside : inside + count, : matrix.dim].to(torch.float32)  # (n, D)
        scores = self._queries @ rows.T  # (B, n) float32
        scores.masked_fill_(torch.from_numpy(~self._permitted(start, start + count)).to(scores.device), -torch.inf)
        best, places = top_k(scores, min(self._scores.shape[1], count))
        merged = torch.cat([self._scores, best], dim=1)
        self._scores, order = torch.topk(merged, self._scores.shape[1], dim=1)
        self._slots = torch.gather(torch.cat([self._slots, places + start], dim=1), 1, order)
        self._at += count
        return self._at < self._end

    def recall(self, number: int, changed: NDArray[np.int64]) -> float | None:
        """The part of the true hits that the answer of one sample had; None if nothing is left to compare.

        changed: slots since the answer, (n,) int64. Of k hits, c of which have changed, the other k - c should be the best
        k - c of what has not. A hit that scores as much as the last of those counts, whichever it is.
        """
        sample = self.samples[number]
        steady = np.ones(max(self._end, int(sample.slots.max(initial=0)) + 1), dtype=bool)
        steady[changed[changed < len(steady)]] = False
        scores = self._scores[number].cpu().numpy()  # (k + spare,) float32
        slots = self._slots[number].cpu().numpy()
        truth = scores[np.isfinite(scores) & steady[slots]]
        found = np.unique(sample.slots[steady[sample.slots]])
        wanted = min(sample.k - int(np.count_nonzero(~steady[sample.slots])), len(truth))
        if wanted <= 0:
            return None
        own = (self._index.matrix.read(found) @ sample.query).cpu().numpy()  # (m,) float32
        hits = int(np.count_nonzero(own >= truth[wanted - 1] - _TIE))
        return min(hits, wanted) / wanted

    def _permitted(self, start: int, end: int) -> NDArray[np.bool_]:
        """What each sample may return of the slots from `start` to `end`: (B, end - start) bool."""
        slots = np.arange(start, end)
        eligible = self._index.slots.eligible(slots) & self._index.matrix.holds(slots)
        permitted = np.tile(eligible, (len(self.samples), 1))
        for row, sample in enumerate(self.samples):
            if sample.mask is not None:
                permitted[row] &= sample.mask.permits(slots)
            if sample.exclude is not None:
                own = sample.exclude[(sample.exclude >= start) & (sample.exclude < end)]
                permitted[row, own - start] = False
        return permitted
