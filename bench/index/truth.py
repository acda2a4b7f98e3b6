"""What the right answers are, by brute force, and how many of them were found."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from bench.index.engines import Labels

_ROWS_AT_ONCE = 32_768
_QUERIES_AT_ONCE = 256
_TIE = 1e-6  # engines add up in different orders


class Truth(NamedTuple):
    """The right answers of some queries among the items that count."""

    worst: NDArray[np.float32]  # (Q,) float32: the score of the last right answer
    wanted: int  # right answers a query: min(k, eligible)
    eligible: NDArray[np.bool_]  # (N,) by label


def find_truth(
    vectors: NDArray[np.float32], queries: NDArray[np.float32], k: int, eligible: NDArray[np.bool_] | None = None
) -> Truth:
    """Compares (Q, D) float32 queries with (N, D) float32 vectors; eligible: (N,) bool, None for all."""
    if eligible is None:
        eligible, rows = np.ones(len(vectors), dtype=bool), vectors
    else:
        rows = vectors[eligible]
    wanted = min(k, len(rows))
    if not wanted:
        return Truth(np.full(len(queries), np.inf, dtype=np.float32), 0, eligible)
    parts = [_worst(rows, part, wanted) for part in torch.split(torch.from_numpy(queries), _QUERIES_AT_ONCE)]
    return Truth(torch.cat(parts).numpy(), wanted, eligible)


def _worst(rows: NDArray[np.float32], queries: torch.Tensor, wanted: int) -> torch.Tensor:
    best = torch.empty(len(queries), 0)
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        scores = queries @ torch.from_numpy(rows[start : start + _ROWS_AT_ONCE]).T
        best = torch.cat([best, torch.topk(scores, min(wanted, scores.shape[1]), dim=1).values], dim=1)
        best = torch.topk(best, min(wanted, best.shape[1]), dim=1).values
    return best[:, -1]


def recall(vectors: NDArray[np.float32], queries: NDArray[np.float32], found: Labels, truth: Truth) -> float:
    """Mean share of right answers among (Q, k) labels. One as good as the last right answer counts: duplicates tie.

    A label counts once, and not at all if it is not eligible.
    """
    if not truth.wanted:
        return 1.0
    scores = np.empty(found.shape, dtype=np.float32)
    for row, labels in enumerate(found):
        scores[row] = vectors[np.maximum(labels, 0)] @ queries[row]
    right = (found >= 0) & truth.eligible[np.maximum(found, 0)] & (scores >= truth.worst[:, None] - _TIE)
    right &= ~_repeated(found)
    return float(np.minimum(right.sum(axis=1) / truth.wanted, 1.0).mean())


def complete(found: Labels, truth: Truth) -> bool:
    """Whether every query got exactly min(k, eligible) different items, all of them eligible."""
    held = found >= 0
    eligible = truth.eligible[np.maximum(found, 0)] | ~held
    return bool((held.sum(axis=1) == truth.wanted).all() and eligible.all() and not (_repeated(found) & held).any())


def _repeated(found: Labels) -> NDArray[np.bool_]:
    """Which labels occurred before in their row: (Q, k) bool."""
    order = np.argsort(found, axis=1, kind="stable")
    ordered = np.take_along_axis(found, order, axis=1)
    again = np.zeros(found.shape, dtype=bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    repeated = np.zeros(found.shape, dtype=bool)
    np.put_along_axis(repeated, order, again, axis=1)
    return repeated
