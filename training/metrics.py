"""Recall and NDCG of one held-out item a user, over a full ranking of all items.

Ties are fair and deterministic: a target that shares its score with e other items gets the expected value over all
orders of those e + 1 items. So a model that gives every item one score gets what chance gives, not all or nothing.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

CUTOFFS = (5, 10)


def tally(scores: Tensor, target: Tensor, seen: Tensor) -> dict[str, npt.NDArray[np.int64]]:
    """Counts what stands above each target and level with it.

    scores (B, N) float; target (B,) int64, -1 = unknown to the model; seen (B, S) int64, item rows of the history in
    any order with repeats, padded with -1. Returns (B, 2) int64 rows of (above, level) for "unfiltered" (all items
    compete) and "filtered" (seen items do not, save the target itself). An unknown target is below everything; so is
    one whose score is not a number, and other scores that are not numbers stand above.
    """
    rows = torch.arange(len(target))
    scores = torch.nan_to_num(scores, nan=torch.inf)
    own = scores[rows, target.clamp(min=0)]
    lost = (target < 0) | ~torch.isfinite(own)
    own = torch.where(lost, -torch.inf, own)[:, None]
    above = (scores > own).sum(1)
    level = (scores == own).sum(1) - (~lost).long()
    once = _without_repeats(seen, target)
    known = once >= 0
    theirs = scores.gather(1, once.clamp(min=0))
    seen_above = ((theirs > own) & known).sum(1)
    seen_level = ((theirs == own) & known).sum(1)
    return {
        "unfiltered": torch.stack([above, level], 1).numpy(),
        "filtered": torch.stack([above - seen_above, level - seen_level], 1).numpy(),
    }


def _without_repeats(seen: Tensor, target: Tensor) -> Tensor:
    """Each row's item rows once, without the target; the rest is -1."""
    ordered = seen.sort(1).values
    repeat = torch.zeros_like(ordered, dtype=torch.bool)
    repeat[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return torch.where(repeat | (ordered == target[:, None]), -1, ordered)


def summarise(counts: npt.NDArray[np.int64]) -> dict[str, float]:
    """(U, 2) int64 rows of (above, level) -> means over users, {"R@5", "R@10", "N@5", "N@10"}."""
    above, level = counts[:, 0].astype(np.float64), counts[:, 1].astype(np.float64)
    result = {}
    for cutoff in CUTOFFS:
        inside = np.clip(cutoff - above, 0, level + 1)  # how many of the target's possible ranks are within the cutoff
        result[f"R@{cutoff}"] = float(np.mean(inside / (level + 1)))
    for cutoff in CUTOFFS:
        gains = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(2, cutoff + 2)))])  # sums over ranks 1 … n
        low = np.minimum(above, cutoff).astype(np.int64)
        high = np.minimum(above + level + 1, cutoff).astype(np.int64)
        result[f"N@{cutoff}"] = float(np.mean((gains[high] - gains[low]) / (level + 1)))
    return result
