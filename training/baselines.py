"""What any model must beat: popularity, transition-count kNN, mean pooling.

Counts come from all that lies before the test targets, the validation items too: a table of counts is not trained, and
in service it would be up to date. So the baselines have a little more than the towers' weights, which saw neither.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from training.interactions import IntArray
from training.ranking import Questions

RECENT = 5  # how many last items vote
DECAY = 0.5  # weight of the m-th last item is DECAY ** m


class Popularity:
    """Every user gets the items with the most events."""

    def __init__(self, counts: npt.NDArray[np.float64]) -> None:
        """`counts` (N,) float64."""
        self.scores = torch.from_numpy(counts)

    def __call__(self, questions: Questions) -> Tensor:
        """(B, N) float64."""
        return self.scores.expand(len(questions.target), -1)


class MeanPooling:
    """The mean of the history's item vectors as the user vector: the same vectors without a user tower."""

    def __init__(self, items: npt.NDArray[np.float32]) -> None:
        """`items` (N, D) float32 unit rows."""
        self.items = torch.from_numpy(items)

    def __call__(self, questions: Questions) -> Tensor:
        """(B, N) float32. Sums rank like means."""
        batch = questions.history
        real = torch.arange(batch.item.shape[1]) < batch.length[:, None]
        users = (self.items[batch.item] * real[..., None]).sum(1)  # (B, D)
        return users @ self.items.T


@dataclass(frozen=True)
class Transitions:
    """Counts of item -> next item as compressed rows: from item i to `item[offsets[i]:offsets[i + 1]]`."""

    offsets: IntArray  # (N + 1,) int64
    item: IntArray  # (M,) int64
    count: npt.NDArray[np.float64]  # (M,) float64


def count_transitions(item: IntArray, follows: npt.NDArray[np.bool_], items: int) -> Transitions:
    """Counts consecutive pairs: item[e] -> item[e + 1] wherever follows[e] (E - 1,) bool says they belong together."""
    pairs, counts = np.unique(item[:-1][follows] * items + item[1:][follows], return_counts=True)
    offsets = np.searchsorted(pairs // items, np.arange(items + 1))
    return Transitions(offsets.astype(np.int64), pairs % items, counts.astype(np.float64))


class TransitionKnn:
    """Scores an item by how often it came right after the user's last items, the newest counting most.

    score(j) = sum over the last RECENT items i, newest m = 0, of DECAY ** m · count(i -> j) / count(i -> any).
    """

    def __init__(self, transitions: Transitions) -> None:
        self.transitions = transitions

    def __call__(self, questions: Questions) -> Tensor:
        """(B, N) float64."""
        table, batch = self.transitions, questions.history
        users, length = len(batch.length), batch.length.numpy()
        scores = np.zeros((users, len(table.offsets) - 1))
        for back in range(RECENT):
            row = np.flatnonzero(length > back)
            last = batch.item.numpy()[row, length[row] - 1 - back]
            size = table.offsets[last + 1] - table.offsets[last]
            owner = np.repeat(row, size)
            within = np.arange(len(owner)) - np.repeat(np.cumsum(size) - size, size)
            place = np.repeat(table.offsets[last], size) + within
            total = np.bincount(owner, weights=table.count[place], minlength=users)
            np.add.at(scores, (owner, table.item[place]), DECAY**back * table.count[place] / total[owner])
        return torch.from_numpy(scores)
