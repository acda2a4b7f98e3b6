"""Exact search with torch: the oracle for every other engine, and the default up to about 10^5 items on a CPU."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from index.matrix import VectorMatrix
from index.search import K_MAX, Hits
from index.slots import SlotTable

TILE = 64
"""Scores whose maximum stands for them in the first round of top-k."""


class ExactSearch:
    """Compares each query with every row, chunk by chunk: one matmul, a bias that rules out rows, and a top-k.

    Every slot has a bias of 0 (eligible and with a vector) or -inf, which the matmul adds at no cost of its own.
    """

    kind = "exact"

    def __init__(self, slots: SlotTable, matrix: VectorMatrix) -> None:
        self._slots = slots
        self._matrix = matrix
        self._bias: list[torch.Tensor] = []  # each (chunk_rows,) float32
        self.update(np.arange(slots.extent))

    def update(self, slots: NDArray[np.int64]) -> None:
        """See `Search.update`."""
        matrix = self._matrix
        while len(self._bias) < len(matrix.chunks):
            self._bias.append(torch.full((matrix.chunk_rows,), -torch.inf, device=matrix.device))
        slots = slots[slots < matrix.capacity]
        open_ = self._slots.eligible(slots) & matrix.holds(slots)
        bias = torch.from_numpy(np.where(open_, np.float32(0), np.float32(-np.inf)))
        chunk_of = slots // matrix.chunk_rows
        for number in np.unique(chunk_of):
            where = np.nonzero(chunk_of == number)[0]
            inside = torch.from_numpy(slots[where] - number * matrix.chunk_rows)
            self._bias[number][inside.to(matrix.device)] = bias[where].to(matrix.device)

    def search(self, queries: torch.Tensor, k: int, exclude: Sequence[NDArray[np.int64]] | None = None) -> Hits:
        """See `Search.search`. Ties are broken arbitrarily."""
        if queries.ndim != 2 or queries.shape[1] != self._matrix.dim:
            raise ValueError(f"expected queries of shape (B, {self._matrix.dim}), got {tuple(queries.shape)}")
        if not 1 <= k <= K_MAX:
            raise ValueError(f"k must be 1 to {K_MAX}, got {k}")
        if exclude is not None and len(exclude) != len(queries):
            raise ValueError(f"expected an exclusion for each of {len(queries)} queries, got {len(exclude)}")
        parts = [self._search_chunk(number, queries, k, exclude) for number in range(self._used_chunks())]
        if not parts:
            return _pad(np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32), k)
        scores = torch.cat([scores for scores, _ in parts], dim=1)  # (B, chunks * <=k) float32
        slots = torch.cat([slots for _, slots in parts], dim=1)  # (B, chunks * <=k) int64
        if len(parts) > 1:
            scores, best = torch.topk(scores, min(k, scores.shape[1]), dim=1)
            slots = torch.gather(slots, 1, best)
        return _pad(slots.cpu().numpy(), scores.cpu().numpy(), k)

    def _used_chunks(self) -> int:
        return min(len(self._bias), -(-self._slots.extent // self._matrix.chunk_rows))

    def _search_chunk(
        self, number: int, queries: torch.Tensor, k: int, exclude: Sequence[NDArray[np.int64]] | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The chunk's best: scores (B, <=k) float32, best first, and slots (B, <=k) int64."""
        start = number * self._matrix.chunk_rows
        used = min(self._matrix.chunk_rows, self._slots.extent - start)
        rows = min(self._matrix.chunk_rows, -(-used // TILE) * TILE)  # whole tiles; unused rows have a bias of -inf
        chunk = self._matrix.chunks[number][:rows]  # (n, D) float32
        scores = torch.addmm(self._bias[number][:rows], queries, chunk.T)  # (B, n) float32
        if exclude is not None:
            _rule_out(scores, exclude, start)
        values, inside = top_k(scores, min(k, rows))
        return values, inside + start


def top_k(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest of each row, largest first: (B, n) -> values (B, k), places (B, k) int64. Exact.

    The k best scores lie in the k tiles with the largest maxima: were one in another tile, then k tiles would each hold a score
    at least as large. So one cheap pass over all scores finds the tiles, and only theirs are sorted.
    """
    rows, n = scores.shape
    if n % TILE or n // TILE <= 2 * k:
        return torch.topk(scores, k, dim=1)
    tiles = scores.view(rows, n // TILE, TILE)
    best_tiles = torch.topk(tiles.amax(dim=2), k, dim=1, sorted=False).indices  # (B, k) int64
    candidates = torch.gather(tiles, 1, best_tiles[:, :, None].expand(rows, k, TILE)).view(rows, k * TILE)
    values, places = torch.topk(candidates, k, dim=1)
    return values, torch.gather(best_tiles, 1, places // TILE) * TILE + places % TILE


def _rule_out(scores: torch.Tensor, exclude: Sequence[NDArray[np.int64]], start: int) -> None:
    n = scores.shape[1]
    flat = []
    for row, slots in enumerate(exclude):
        if len(slots):
            inside = slots[(slots >= start) & (slots < start + n)] - start
            flat.append(inside + row * n)
    if flat:
        places = torch.from_numpy(np.concatenate(flat)).to(scores.device)
        scores.view(-1)[places] = -torch.inf


def _pad(slots: NDArray[np.int64], scores: NDArray[np.float32], k: int) -> Hits:
    slots = np.where(np.isneginf(scores), -1, slots)
    missing = k - slots.shape[1]
    if missing:
        slots = np.pad(slots, ((0, 0), (0, missing)), constant_values=-1)
        scores = np.pad(scores, ((0, 0), (0, missing)), constant_values=-np.inf)
    return Hits(slots, scores)
