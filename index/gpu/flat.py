"""Brute force by FAISS over the matrix's own rows, with a bias column that keeps out what may not be returned."""

import numpy as np
import torch
from numpy.typing import NDArray

from index.exact import ExactSearch
from index.gpu.best import best_permitted
from index.gpu.knn import Knn
from index.matrix import VectorMatrix
from index.search import K_MAX, Exclusions, Hits, Masks, check_search, no_hits
from index.slots import SlotTable

DEAD = -3e4
"""Bias of a row that may not be returned: far below any inner product of unit rows, and a float16."""
_COLUMNS = 8  # a row's columns are a multiple: 16 bytes in float16, as tensor cores want them


def padding(dim: int) -> int:
    """Columns behind `dim` components: the bias, and zeros up to a multiple of 8. `VectorMatrix(dim, padded=padding(dim))`."""
    return -(dim + 1) % _COLUMNS + 1


class FaissFlatSearch:
    """FAISS compares each query with every row; column `dim` of a row is its bias, and the query has 1 there.

    FAISS's GPU code takes no filters (it accepts and ignores them, faiss #3114) and no exclusions. So excluded slots are
    fetched in addition and dropped, and queries with a mask, or with more exclusions than that allows, go to the oracle, an
    exact search over the same matrix that its owner keeps up to date. Queries are unit rows.
    """

    kind = "faiss-gpu"
    gains_from_batches = True

    def __init__(self, slots: SlotTable, matrix: VectorMatrix, *, oracle: ExactSearch, knn: Knn) -> None:
        """Raises ValueError if the matrix has not the columns that `padding` says: the bias is kept in them."""
        if matrix.padded != padding(matrix.dim):
            raise ValueError(f"the matrix needs {padding(matrix.dim)} columns behind its {matrix.dim}, got {matrix.padded}")
        self._slots = slots
        self._matrix = matrix
        self._oracle = oracle
        self._knn = knn
        self._known = 0  # slots whose bias is written; those above are not searched
        self.update(np.arange(slots.extent))

    def update(self, slots: NDArray[np.int64]) -> None:
        """See `Search.update`. Everything is settled at once."""
        reach = min(self._slots.extent, self._matrix.capacity)
        if reach > self._known:  # new rows are zeros, which would be a bias for rows that may be returned
            self._write_bias(np.arange(self._known, reach), np.zeros(reach - self._known, dtype=bool))
            self._known = reach
        slots = slots[slots < reach]
        self._write_bias(slots, self._slots.eligible(slots) & self._matrix.holds(slots))

    def settle(self) -> int:
        """See `Search.settle`."""
        return 0

    def search(self, queries: torch.Tensor, k: int, exclude: Exclusions | None = None, masks: Masks | None = None) -> Hits:
        """See `Search.search`. Ties are broken arbitrarily."""
        check_search(self._matrix.dim, queries, k, exclude, masks)
        direct = [row for row in range(len(queries)) if self._is_direct(row, k, exclude, masks)]
        if len(direct) == len(queries):
            return self._scan(queries, k, exclude)
        others = sorted(set(range(len(queries))).difference(direct))
        found = no_hits(len(queries), k)
        if direct:
            own = [exclude[row] for row in direct] if exclude is not None else None
            found.slots[direct], found.scores[direct] = self._scan(queries[direct], k, own)
        own = [exclude[row] for row in others] if exclude is not None else None
        own_masks = [masks[row] for row in others] if masks is not None else None
        found.slots[others], found.scores[others] = self._oracle.search(queries[others], k, own, own_masks)
        return found

    @staticmethod
    def _is_direct(row: int, k: int, exclude: Exclusions | None, masks: Masks | None) -> bool:
        if masks is not None and masks[row] is not None:
            return False
        return exclude is None or k + len(exclude[row]) <= K_MAX

    def _scan(self, queries: torch.Tensor, k: int, exclude: Exclusions | None) -> Hits:
        found = no_hits(len(queries), k)
        fetch = k + max((len(one) for one in exclude or ()), default=0)
        if not self._known:
            return found
        scores, slots = self._nearest(queries, fetch)  # (B, m) each
        scores = scores.masked_fill(scores < DEAD / 2, -torch.inf)  # by score: FAISS's places for "none" are arbitrary
        scores, slots = best_permitted(scores, slots, k, exclude)
        slots = slots.masked_fill(torch.isneginf(scores), -1)
        found.slots[:, : slots.shape[1]] = slots.cpu().numpy()
        found.scores[:, : slots.shape[1]] = scores.cpu().numpy()
        return found

    def _nearest(self, queries: torch.Tensor, fetch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The best `fetch` of each chunk, dead rows last: scores (B, m) float32, slots (B, m) int64."""
        matrix = self._matrix
        wide = queries.new_zeros(len(queries), matrix.dim + matrix.padded)  # (B, W) float32
        wide[:, : matrix.dim] = queries
        wide[:, matrix.dim] = 1
        scores: list[torch.Tensor] = []
        slots: list[torch.Tensor] = []
        for number, chunk in enumerate(matrix.chunks):
            start = number * matrix.chunk_rows
            used = min(matrix.chunk_rows, self._known - start)
            if used <= 0:
                break
            best, places = self._knn(wide, chunk[:used], min(fetch, used))
            scores.append(best)
            slots.append(places + start)
        return torch.cat(scores, dim=1), torch.cat(slots, dim=1)

    def _write_bias(self, slots: NDArray[np.int64], permitted: NDArray[np.bool_]) -> None:
        matrix = self._matrix
        bias = torch.from_numpy(np.where(permitted, np.float32(0), np.float32(DEAD))).to(matrix.device, matrix.dtype)  # (n,)
        for number, inside, where in matrix.by_chunk(slots):
            matrix.chunks[number][inside, matrix.dim] = bias if where is None else bias[where]
