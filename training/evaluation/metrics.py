"""Recall, NDCG and reciprocal rank of one held-out item a user, over a full ranking of all items; and what is shown.

Ties are fair and deterministic: a target that shares its score with e other items gets the expected value over all
orders of those e + 1 items. So a model that gives every item one score gets what chance gives, not all or nothing.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

CUTOFFS = (5, 10)  # of the summary that training validates by
ALL_CUTOFFS = (5, 10, 50, 100)
SHOWN = 10  # coverage and exposure look at the first ten
MISSED = 1 << 40  # "above" of a target that the model cannot name

Floats = npt.NDArray[np.float64]


def tally(scores: Tensor, target: Tensor, seen: Tensor) -> dict[str, npt.NDArray[np.int64]]:
    """Counts what stands above each target and level with it.

    scores (B, N) float; target (B,) int64, -1 = unknown to the model; seen (B, S) int64, item rows of the history in
    any order with repeats, padded with -1. Returns (B, 2) int64 rows of (above, level) for "unfiltered" (all items
    compete) and "filtered" (seen items do not, save the target itself). An unknown target, and one whose score is not a
    number, is missed: (MISSED, 0). Other scores that are not numbers stand above.
    """
    target, seen = target.to(scores.device), seen.to(scores.device)
    rows = torch.arange(len(target), device=scores.device)
    scores = torch.nan_to_num(scores, nan=torch.inf)
    own = scores[rows, target.clamp(min=0)]
    missed = (target < 0) | ~torch.isfinite(own)
    own = own[:, None]
    above = (scores > own).sum(1)
    level = (scores == own).sum(1) - 1
    once = _without_repeats(seen, target)
    known = once >= 0
    theirs = scores.gather(1, once.clamp(min=0))
    seen_above = ((theirs > own) & known).sum(1)
    seen_level = ((theirs == own) & known).sum(1)
    pairs = {"unfiltered": (above, level), "filtered": (above - seen_above, level - seen_level)}
    return {
        name: torch.stack([torch.where(missed, MISSED, a), torch.where(missed, 0, b)], 1).cpu().numpy()
        for name, (a, b) in pairs.items()
    }


def _without_repeats(seen: Tensor, target: Tensor) -> Tensor:
    """Each row's item rows once, without the target; the rest is -1."""
    ordered = seen.sort(1).values
    repeat = torch.zeros_like(ordered, dtype=torch.bool)
    repeat[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return torch.where(repeat | (ordered == target[:, None]), -1, ordered)


def per_user(counts: npt.NDArray[np.int64], cutoffs: tuple[int, ...] = ALL_CUTOFFS) -> dict[str, Floats]:
    """(U, 2) int64 rows of (above, level) -> {"R@k" …, "N@k" …, "MRR"}, each (U,) float64, expected over ties.

    With rank r of the single relevant item: R@k = [r <= k], N@k = [r <= k] / log2(r + 1) (its ideal is 1), MRR = 1 / r.
    """
    above, level = counts[:, 0], counts[:, 1]
    missed = above >= MISSED
    best = np.where(missed, 0, above)  # ranks best + 1 … best + ties are equally likely
    ties = level + 1
    result = {}
    for cutoff in cutoffs:
        inside = np.clip(cutoff - best, 0, ties)  # how many of the target's possible ranks are within the cutoff
        result[f"R@{cutoff}"] = np.where(missed, 0.0, inside / ties)
    for cutoff in cutoffs:
        gains = _sums(1 / np.log2(np.arange(2, cutoff + 2)))
        gained = gains[np.minimum(best + ties, cutoff)] - gains[np.minimum(best, cutoff)]
        result[f"N@{cutoff}"] = np.where(missed, 0.0, gained / ties)
    harmonic = _sums(1 / np.arange(1, 1 + int((best + ties).max(initial=0))))
    result["MRR"] = np.where(missed, 0.0, (harmonic[best + ties] - harmonic[best]) / ties)
    return result


def _sums(values: Floats) -> Floats:
    """[0, v1, v1 + v2, …]: sums over ranks 1 … n."""
    return np.concatenate([[0.0], np.cumsum(values)])


def summarise(counts: npt.NDArray[np.int64]) -> dict[str, float]:
    """(U, 2) int64 rows of (above, level) -> means over users, {"R@5", "R@10", "N@5", "N@10"}."""
    figures = per_user(counts, CUTOFFS)
    return {name: float(np.mean(values)) for name, values in figures.items() if name != "MRR"}


def shown(scores: Tensor, seen: Tensor, cutoff: int = SHOWN) -> npt.NDArray[np.int64]:
    """(M,) int64: the items among the first `cutoff` of each row of scores (B, N), seen ones (B, S) left out; repeats count.

    An item whose score is the row's least is not shown: to a table of counts that is every item it knows nothing of,
    and which of them would come first is chance.
    """
    seen = seen.to(scores.device)
    scores = torch.nan_to_num(scores, nan=-torch.inf)  # a copy
    least = scores.amin(1, keepdim=True)
    row, place = torch.nonzero(seen >= 0, as_tuple=True)
    scores[row, seen[row, place]] = -torch.inf
    best = scores.topk(min(cutoff, scores.shape[1]), dim=1)
    return best.indices[best.values > least].cpu().numpy()


def coverage(exposure: npt.NDArray[np.int64]) -> float:
    """Share of the catalogue that is shown to anyone; exposure (N,) int64 counts how often each item is."""
    return float(np.mean(exposure > 0))


def gini(exposure: npt.NDArray[np.int64]) -> float:
    """Gini coefficient of exposure (N,) int64: 0 = all items alike, near 1 = one item has all; nan where nothing is shown.

    G = sum_i (2 i - N - 1) x_i / (N sum_i x_i), x ascending, i from 1 (Dixon et al. 1987).
    """
    ordered, count = np.sort(exposure).astype(np.float64), len(exposure)
    if not ordered.sum():
        return float("nan")
    return float((2 * np.arange(1, count + 1) - count - 1) @ ordered / (count * ordered.sum()))
