"""What every way of searching keeps to."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

K_MAX = 2048
"""The largest k of any engine (the limit of FAISS on GPUs)."""


class Hits(NamedTuple):
    """The best slots of each query, best first."""

    slots: NDArray[np.int64]  # (B, k) int64, -1 where fewer than k are eligible
    scores: NDArray[np.float32]  # (B, k) float32 inner products, -inf where the slot is -1


class Search(Protocol):
    """Finds the slots with the largest inner products among the eligible ones.

    An engine that cannot apply an exclusion raises; it never ignores one.
    """

    kind: str
    """The engine's name in configuration, metrics and answers, such as "exact"."""

    def search(self, queries: torch.Tensor, k: int, exclude: Sequence[NDArray[np.int64]] | None = None) -> Hits:
        """The best `k` eligible slots of each query.

        queries: (B, D) float32 on the matrix's device. k: 1 to `K_MAX`. exclude: for each query the slots that must not be
        returned, or None. Exactly min(k, eligible) hits each, best first. Raises ValueError on a wrong shape or k.
        """
        ...

    def update(self, slots: NDArray[np.int64]) -> None:
        """Takes note that the vectors, life or availability of these slots changed: (n,) int64."""
        ...
