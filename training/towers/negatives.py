"""Which items a sampled softmax compares with: the targets of the whole step and a uniform sample, shared by its positions."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from training.data.interactions import IntArray, pieces


@dataclass(frozen=True)
class Candidates:
    """Of one optimiser step, the same for all its parts and processes."""

    item: Tensor  # (C,) int64, item rows in rising order
    weight: Tensor  # (C,) float32, 1 / probability of being among them

    def to(self, device: torch.device) -> "Candidates":
        return Candidates(self.item.to(device), self.weight.to(device))


class NegativeSampler:
    """Draws the candidates of each step.

    An item is a candidate if the uniform sample holds it, with probability U / N, or if it is a target in the step. A
    step holds a share s of all targets, in random order, so an item that is a target of n users is among the step's
    with probability 1 - (1 - s)^n: by users, because one user's targets that are the same item lie side by side and
    come and go together. What a position's own piece of history holds is there with certainty (see `loss`).
    """

    def __init__(
        self, target: IntArray, offsets: IntArray, *, items: int, uniform: int, seed: int, among: IntArray | None = None
    ) -> None:
        """`target` (E,) int64 item row of each event, -1 = none; `offsets` (U + 1,) int64 of each user's events.

        `uniform` is the size of the uniform sample, at most N; it is drawn from the rows `among` (N,), by default all
        `items`. Every target must be among them.
        """
        self._users = np.zeros(items, dtype=np.int64)  # (N,) int64, users with this target
        for part in pieces(offsets):
            found = target[part.rows]
            pairs = np.unique(part.user[found >= 0] * items + found[found >= 0])
            self._users += np.bincount(pairs % items, minlength=items)
        self._total = int((target >= 0).sum())
        self._among = np.arange(items) if among is None else among
        self._uniform, self._seed = min(uniform, len(self._among)), seed

    def draw(self, target: IntArray, *, epoch: int, step: int) -> Candidates:
        """`target` (P,) int64: the item rows of all targets of the step. The same for the same seed, epoch and step."""
        generator = np.random.default_rng((self._seed, epoch, step))
        sample = self._among[generator.choice(len(self._among), self._uniform, replace=False, shuffle=False)]
        item = np.unique(np.concatenate([target, sample]))
        return Candidates(torch.from_numpy(item), torch.from_numpy(1 / self.inclusion(item, len(target) / self._total)))

    def inclusion(self, item: IntArray, share: float) -> npt.NDArray[np.float32]:
        """(C,) item rows -> (C,) float32 probability of being a candidate in a step that holds `share` of all targets."""
        absent = (1 - self._uniform / len(self._among)) * (1 - share) ** self._users[item]
        return (1 - absent).astype(np.float32)
