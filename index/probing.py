"""How many lists a search must look into to reach a target recall, measured against exact search on sampled queries."""

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from index.lists import InvertedLists
from index.search import K_MAX
from index.topk import TILE, top_k

KS = (1, 10, 100, 1000)
SHARES = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
LEAST = 4
"""Lists that every search looks into. A row that lies between two lists may be put into either, by rounding; whoever searches
for just this row must find it nevertheless."""
_LOG_KS = np.log(KS)
_LOG_SHARES = -np.log(SHARES)  # ascending
SAMPLE = 1024
"""Queries that a calibration uses at most; half of them where a filter lets a part through."""
_CONFIDENCE = 2.0  # standard errors of the sample's mean recall between it and the target: one-sided 98 %
_FILTERED = 3.0  # the same under a filter: no filter is as random as those that are measured
_ROUNDING = 0.001  # recall that lists lose at most because their rows are float16
_QUERIES_AT_ONCE = 16
_ROWS_AT_ONCE = 16_384


@dataclass(frozen=True)
class ProbeTable:
    """Lists to look into, by k and by the share of rows that a filter lets through.

    The fewer pass, the farther away the k best of them are: with one row in ten, the best 100 are spread like the best 1,000.
    """

    target: float
    """Mean recall that was asked for, 0 to 1."""
    needed: NDArray[np.int32]  # (len(SHARES), len(KS)) int32
    _unfiltered: list[int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        grid = np.arange(K_MAX + 1)
        unfiltered = np.exp(np.interp(np.log(np.maximum(grid, 1)), _LOG_KS, np.log(self.needed[0])))
        object.__setattr__(self, "_unfiltered", np.maximum(np.ceil(unfiltered), LEAST).astype(np.int64).tolist())  # by k

    def unfiltered(self, k: int) -> int:
        """Lists for `k` hits, 1 to `K_MAX`, where every row passes; it may be more than there are."""
        return self._unfiltered[k]

    def probes(self, k: int, share: NDArray[np.float64] | float) -> NDArray[np.float64]:
        """Lists for `k` hits where each `share` (0 to 1) of the rows passes; interpolated between what was measured.

        Below the smallest measured share the number grows as the share falls.
        """
        place = min(max(float(np.interp(np.log(k), _LOG_KS, np.arange(len(KS)))), 0.0), len(KS) - 1.0)
        column = min(int(place), len(KS) - 2)
        logs = np.log(self.needed[:, column : column + 2])  # (shares, 2)
        by_share = logs[:, 0] + (place - column) * (logs[:, 1] - logs[:, 0])
        share = np.maximum(share, 1e-9)
        found = np.exp(np.interp(-np.log(share), _LOG_SHARES, by_share))
        return np.asarray(np.maximum(found * np.maximum(1.0, SHARES[-1] / share), LEAST))


def calibrate(
    lists: InvertedLists, slots: NDArray[np.int64], rows: torch.Tensor, queries: torch.Tensor, *, target: float, seed: int
) -> ProbeTable:
    """Measures the table: for random subsets of the rows, where the truly best of them lie in each query's order of lists.

    slots: (n,) int64, all in the lists; rows: their vectors, (n, D) float32 or float16; queries: (Q, D) float32, like those
    that will be asked. The work is torch's, which lets other threads run. A number of lists is enough if mean recall, less 2
    standard errors (3 under a filter), reaches the target.
    """
    queries = queries[:SAMPLE]
    ranks = lists.ranks(queries)  # (Q, L) int32
    list_of = torch.from_numpy(lists.list_of[slots]).to(torch.int64)  # (n,)
    order = torch.randperm(len(slots), generator=torch.Generator().manual_seed(seed))
    needed = np.ones((len(SHARES), len(KS)), dtype=np.int32)
    for place, share in enumerate(SHARES):
        subset = order[: max(1, int(share * len(slots)))].sort().values
        own = rows if share == 1.0 else rows.index_select(0, subset)
        some = len(queries) if share == 1.0 else -(-len(queries) // 2)
        best = best_rows(own, queries[:some], KS[-1])  # (some, <=1000) places
        rank = torch.gather(ranks[:some], 1, list_of[subset[best]])  # (some, <=1000): where each hit's list comes
        for column, k in enumerate(KS):
            needed[place, column] = _enough(rank[:, :k], lists.count, target, _CONFIDENCE if share == 1.0 else _FILTERED)
    # More never needs fewer: what little data says otherwise is chance.
    needed = np.maximum.accumulate(np.maximum.accumulate(needed, axis=0), axis=1)
    return ProbeTable(target, needed)


def _enough(rank: torch.Tensor, lists: int, target: float, confidence: float) -> int:
    """The fewest lists that reach the target: rank (Q, k) int64, the place of each true hit's list in its query's order."""
    queries, k = rank.shape
    found = torch.zeros(queries, lists).scatter_add_(1, rank, torch.full(rank.shape, 1.0 / k))
    recall = torch.cumsum(found, dim=1)  # (Q, L): after 1, 2, ... lists
    sure = recall.mean(dim=0) - confidence * recall.std(dim=0, correction=0) / queries**0.5
    reached = torch.nonzero(sure >= target + _ROUNDING)
    return int(reached[0]) + 1 if len(reached) else lists


def best_rows(rows: torch.Tensor, queries: torch.Tensor, k: int) -> torch.Tensor:
    """Places of the rows with the largest inner products, best first: (n, D), (Q, D) -> (Q, min(k, n)) int64."""
    k = min(k, len(rows))
    padded = -(-len(rows) // TILE) * TILE
    scores = torch.full((_QUERIES_AT_ONCE, padded), -torch.inf)
    parts = []
    for some in torch.split(queries, _QUERIES_AT_ONCE):
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            part = rows[start : start + _ROWS_AT_ONCE].to(torch.float32)
            torch.mm(some, part.T, out=scores[: len(some), start : start + len(part)])
        parts.append(top_k(scores[: len(some)], k)[1])
    return torch.cat(parts)
