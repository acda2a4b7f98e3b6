"""The best of what a scan fetched, without what a query excludes."""

import numpy as np
import torch

from index.search import Exclusions


def best_permitted(
    scores: torch.Tensor, slots: torch.Tensor, k: int, exclude: Exclusions | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best of each row, best first, excluded slots last with -inf: (B, m) float32 and int64 -> (B, <=k) each.

    With m >= k + the longest exclusion nothing that may be returned is missing.
    """
    if exclude is not None and any(len(one) for one in exclude):
        scores = scores.masked_fill(_excluded(slots, exclude), -torch.inf)
    scores, best = torch.topk(scores, min(k, scores.shape[1]), dim=1)
    return scores, torch.gather(slots, 1, best)


def _excluded(slots: torch.Tensor, exclude: Exclusions) -> torch.Tensor:
    """Which of (B, m) slots the query of their row excludes: (B, m) bool."""
    stride = 1 << 40  # above any slot: query and slot in one number, so that one search in one list serves all rows
    keys = np.sort(np.concatenate([one[one >= 0] + row * stride for row, one in enumerate(exclude)]))  # (e,) int64
    known = torch.from_numpy(keys).to(slots.device)
    wanted = slots + torch.arange(len(slots), device=slots.device)[:, None] * stride
    places = torch.searchsorted(known, wanted).clamp_(max=max(0, len(keys) - 1))
    return known[places] == wanted
