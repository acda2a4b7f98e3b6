"""What every way of searching keeps to."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from index.filters.masks import SlotMask

K_MAX = 2048
"""The largest k of any engine (the limit of FAISS on GPUs)."""

Exclusions = Sequence[NDArray[np.int64]]
"""For each query the slots that must not be returned."""
Masks = Sequence[SlotMask | None]
"""For each query the slots that alone may be returned; None for everything that is eligible."""


class Hits(NamedTuple):
    """The best slots of each query, best first."""

    slots: NDArray[np.int64]  # (B, k) int64, -1 where fewer than k are eligible
    scores: NDArray[np.float32]  # (B, k) float32 inner products, -inf where the slot is -1


class Search(Protocol):
    """Finds the slots with the largest inner products among the eligible ones.

    An engine that cannot apply an exclusion or a mask raises; it never ignores one.
    """

    kind: str
    """The engine's name in configuration, metrics and answers, such as "exact"."""

    @property
    def gains_from_batches(self) -> bool:
        """Whether queries that are searched together take much less time than one after the other."""
        ...

    def search(self, queries: torch.Tensor, k: int, exclude: Exclusions | None = None, masks: Masks | None = None) -> Hits:
        """The best `k` eligible slots of each query.

        queries: (B, D) float32 on the matrix's device. k: 1 to `K_MAX`. Exactly min(k, eligible) hits each, best first. Raises
        ValueError on a wrong shape or k.
        """
        ...

    def update(self, slots: NDArray[np.int64]) -> None:
        """Takes note that the vectors, life or availability of these slots changed: (n,) int64.

        A slot that may not be returned any more is not returned from now on; a new or changed vector is found once it is
        settled.
        """
        ...

    def settle(self) -> int:
        """Does one short slice of what updates left to do, in their order; returns how many slots are left."""
        ...


def check_search(
    dim: int, queries: torch.Tensor, k: int, exclude: Exclusions | None = None, masks: Masks | None = None
) -> None:
    """Raises ValueError if a search for these makes no sense over vectors of `dim` components."""
    if queries.ndim != 2 or queries.shape[1] != dim:
        raise ValueError(f"expected queries of shape (B, {dim}), got {tuple(queries.shape)}")
    if not 1 <= k <= K_MAX:
        raise ValueError(f"k must be 1 to {K_MAX}, got {k}")
    if exclude is not None and len(exclude) != len(queries):
        raise ValueError(f"expected an exclusion for each of {len(queries)} queries, got {len(exclude)}")
    if masks is not None and len(masks) != len(queries):
        raise ValueError(f"expected a mask for each of {len(queries)} queries, got {len(masks)}")


def no_hits(count: int, k: int) -> Hits:
    """Hits of `count` queries that are all padding, to be filled in: (B, k)."""
    return Hits(np.full((count, k), -1, dtype=np.int64), np.full((count, k), -np.inf, dtype=np.float32))
