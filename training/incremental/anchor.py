"""The pull that keeps known items near where a bundle had them, so that what was near each other stays so."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from training.data.interactions import IntArray
from training.towers.pair import TowerPair

SAMPLE = 4096  # items looked at in a step


@dataclass(frozen=True)
class Anchor:
    """weight · mean(1 - cosine) between some items' vectors and those they began with."""

    rows: Tensor  # (K,) int64, item rows
    vectors: Tensor  # (K, D) float32 unit rows
    weight: float

    def __call__(self, pair: TowerPair) -> Tensor:
        """() float32: over a random SAMPLE of the items, all if there are no more."""
        count = len(self.rows)
        chosen = torch.randint(count, (SAMPLE,)) if count > SAMPLE else torch.arange(count)
        rows = self.rows[chosen].to(pair.residual.device)
        residual = F.embedding(rows, pair.residual, sparse=True)  # a dense gradient would make a sampled loss's dense too
        vectors = pair.item(pair.text[rows], pair.codes[rows], residual * pair.residual_scale[rows])
        pull: Tensor = self.weight * (1.0 - (vectors * self.vectors[chosen].to(vectors.device)).sum(1)).mean()
        return pull


def drop_anchor(pair: TowerPair, known: IntArray, weight: float) -> Anchor | None:
    """Holds the items at rows `known` (K,) int64 where `pair` has them now; None where nothing is to be held."""
    if not weight or not len(known):
        return None
    rows = torch.from_numpy(np.ascontiguousarray(known))
    with torch.no_grad():
        return Anchor(rows, pair.item_vectors()[rows].clone(), weight)
