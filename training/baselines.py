"""What any model must beat: popularity, transition kNN, item-to-item lookup, mean pooling; for cold items content kNN.

Counts come from all that lies before the test, the validation items too: a table of counts is not trained, and in
service it would be up to date. So the baselines have a little more than the towers' weights, which saw neither.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from training.interactions import IntArray, Interactions, first_interactions
from training.ranking import Questions

RECENT = 5  # how many last items vote
DECAY = 0.5  # weight of the m-th last item is DECAY ** m
PAIRS_WAITING = 1 << 22  # pairs that are put aside before they are counted
WINDOW = 50  # items of one history that are so many new items apart do not count as seen together

BoolArray = npt.NDArray[np.bool_]


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


class TextKnn(MeanPooling):
    """The mean of the history's text embeddings, by cosine to the items' own: what text alone gives, untrained."""

    def __init__(self, text: npt.NDArray[np.float32]) -> None:
        """`text` (N, T) float32; rows are brought to length 1, those of items without text stay zero."""
        super().__init__(F.normalize(torch.from_numpy(text), dim=1).numpy())


class CategoryKnn:
    """The same over category indicators: items that share categories with those of the history."""

    def __init__(self, codes: IntArray, categories: int) -> None:
        """`codes` (N, C) int64, category codes 1 … `categories`, padded with 0."""
        self.codes = torch.from_numpy(codes)
        self.length = (self.codes > 0).sum(1).clamp(min=1).float().rsqrt()  # (N,) makes indicator rows unit
        item, slot = torch.nonzero(self.codes, as_tuple=True)
        where, size = torch.stack([item, self.codes[item, slot]]), (len(codes), categories + 1)
        self.items = torch.sparse_coo_tensor(where, self.length[item], size, check_invariants=False).coalesce()

    def __call__(self, questions: Questions) -> Tensor:
        """(B, N) float32."""
        batch = questions.history
        real = torch.arange(batch.item.shape[1]) < batch.length[:, None]
        weight = (self.length[batch.item] * real)[..., None].expand(-1, -1, self.codes.shape[1])
        users = torch.zeros(len(batch.item), self.items.shape[1])  # (B, categories + 1)
        users.scatter_add_(1, self.codes[batch.item].flatten(1), weight.flatten(1))
        users[:, 0] = 0.0  # padding
        scores: Tensor = torch.sparse.mm(self.items, users.T)
        return scores.T


@dataclass(frozen=True)
class Neighbours:
    """Weights of item -> item as compressed rows: from item i to `item[offsets[i]:offsets[i + 1]]`."""

    offsets: IntArray  # (N + 1,) int64
    item: IntArray  # (M,) int64
    weight: npt.NDArray[np.float64]  # (M,) float64


def transitions(data: Interactions, past: BoolArray) -> Neighbours:
    """weight(i -> j) = count(j right after i) / count(anything right after i), over events that `past` (E,) bool marks."""
    follows = (data.user[1:] == data.user[:-1]) & past[1:] & past[:-1]
    key, count = np.unique(data.item[:-1][follows] * data.items + data.item[1:][follows], return_counts=True)
    first = key // data.items
    return _rows(key, count / np.bincount(first, weights=count, minlength=data.items)[first], data.items)


def co_occurrences(data: Interactions, past: BoolArray) -> Neighbours:
    """weight(i, j) = users with both / sqrt(users with i · users with j): cosine of the items' users (Sarwar et al. 2001).

    Over first interactions that `past` (E,) bool marks; two items count as one user's if fewer than WINDOW of the
    user's other new items lie between them.
    """
    rows = np.flatnonzero(first_interactions(data) & past)
    user, item = data.user[rows], data.item[rows]
    users_of = np.bincount(item, minlength=data.items).astype(np.float64)  # (N,)
    key, count = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)  # of pairs so far, the lesser item first
    waiting: list[IntArray] = []
    for apart in range(1, min(WINDOW, len(item))):
        together = user[apart:] == user[:-apart]
        first, second = item[:-apart][together], item[apart:][together]
        waiting.append(np.minimum(first, second) * data.items + np.maximum(first, second))
        if sum(map(len, waiting)) > max(PAIRS_WAITING, len(key)):
            key, count = _add(key, count, waiting)
            waiting = []
    key, count = _add(key, count, waiting)
    first, second = key // data.items, key % data.items
    weight = count / np.sqrt(users_of[first] * users_of[second])
    return _rows(np.concatenate([key, second * data.items + first]), np.concatenate([weight, weight]), data.items)


def _add(key: IntArray, count: IntArray, more: list[IntArray]) -> tuple[IntArray, IntArray]:
    """Counts of keys with those of `more` added, keys rising."""
    both, place, once = np.unique(np.concatenate([key, *more]), return_inverse=True, return_counts=True)
    once[place[: len(key)]] += count - 1  # an old key stands once for all its count
    return both, once


def _rows(key: IntArray, weight: npt.NDArray[np.float64], items: int) -> Neighbours:
    """Neighbours from keys first · N + second, each there once."""
    order = np.argsort(key, kind="stable")
    key = key[order]
    return Neighbours(np.searchsorted(key, np.arange(items + 1) * items).astype(np.int64), key % items, weight[order])


class NeighbourKnn:
    """Scores an item by its weight as a neighbour of the user's last items, the newest counting most.

    score(j) = sum over the last RECENT items i, newest m = 0, of DECAY ** m · weight(i -> j).
    """

    def __init__(self, table: Neighbours) -> None:
        self.table = table

    def __call__(self, questions: Questions) -> Tensor:
        """(B, N) float64."""
        table, batch = self.table, questions.history
        users, length = len(batch.length), batch.length.numpy()
        scores = np.zeros((users, len(table.offsets) - 1))
        for back in range(RECENT):
            row = np.flatnonzero(length > back)
            last = batch.item.numpy()[row, length[row] - 1 - back]
            size = table.offsets[last + 1] - table.offsets[last]
            owner = np.repeat(row, size)
            within = np.arange(len(owner)) - np.repeat(np.cumsum(size) - size, size)
            place = np.repeat(table.offsets[last], size) + within
            scores[owner, table.item[place]] += DECAY**back * table.weight[place]  # a neighbour is in a row but once
        return torch.from_numpy(scores)
