"""What any model must beat: popularity, transition kNN, item-to-item lookup, mean pooling; for cold items content kNN.

Counts come from all that lies before the test, the validation items too: a table of counts is not trained, and in
service it would be up to date. So the baselines have a little more than the towers' weights, which saw neither.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from training.data.interactions import IntArray, Interactions, first_interactions
from training.data.spill import ArrayBuilder
from training.evaluation.ranking import Questions

RECENT = 5  # how many last events vote
DECAY = 0.5  # weight of the m-th last one is DECAY ** m
WINDOW = 50  # items of one history that are so many new items apart do not count as seen together
EVENTS_AT_ONCE = 1 << 14  # whose neighbours are counted together: at most 98 each, 12 MiB of int64
MOST_NEIGHBOURS = 1 << 26  # of all items together: 512 MiB

BoolArray = npt.NDArray[np.bool_]


class Popularity:
    """Every user gets the items with the most events."""

    def __init__(self, counts: npt.NDArray[np.float64]) -> None:
        """`counts` (N,) float64. Their ranks are the scores: float32 could not tell great counts apart."""
        self.scores = torch.from_numpy(np.unique(counts, return_inverse=True)[1].astype(np.float32))

    def __call__(self, questions: Questions) -> Tensor:
        """(B, N) float32."""
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
    item: npt.NDArray[np.int32]  # (M,) int32
    weight: npt.NDArray[np.float32]  # (M,) float32


def transitions(data: Interactions, past: BoolArray) -> Neighbours:
    """weight(i -> j) = count(j right after i) / count(anything right after i), over events that `past` (E,) bool marks."""
    follows = (data.user[1:] == data.user[:-1]) & past[1:] & past[:-1]
    key, count = np.unique(data.item[:-1][follows] * data.items + data.item[1:][follows], return_counts=True)
    first = key // data.items
    weight = count / np.bincount(first, weights=count, minlength=data.items)[first]
    offsets = np.searchsorted(key, np.arange(data.items + 1) * data.items).astype(np.int64)
    return Neighbours(offsets, (key % data.items).astype(np.int32), weight.astype(np.float32))


def co_occurrences(data: Interactions, past: BoolArray) -> Neighbours:
    """weight(i, j) = users with both / sqrt(users with i · users with j): cosine of the items' users (Sarwar et al. 2001).

    Over first interactions that `past` (E,) bool marks; two items count as one user's if they are less than WINDOW of
    the user's new items apart. Of each item the MOST_NEIGHBOURS / N nearest are kept. Memory: the table, which lies on
    disk where it is large, and what EVENTS_AT_ONCE events have for neighbours.
    """
    rows = np.flatnonzero(first_interactions(data) & past)
    user, item = data.user[rows], data.item[rows]
    users_of = np.bincount(item, minlength=data.items).astype(np.float64)  # (N,)
    most = max(1, MOST_NEIGHBOURS // data.items)
    neighbour, weight, size = ArrayBuilder(np.int32), ArrayBuilder(np.float32), np.zeros(data.items, dtype=np.int64)
    for key, count in _counted_pairs(user, item, data.items):
        first, second = key // data.items, key % data.items
        cosine = count / np.sqrt(users_of[first] * users_of[second])
        nearest = _nearest(first, cosine, most)
        neighbour.append(second[nearest])
        weight.append(cosine[nearest])
        size += np.bincount(first[nearest], minlength=data.items)
    return Neighbours(np.append(0, np.cumsum(size)), neighbour.finish(), weight.finish())


def _counted_pairs(user: IntArray, item: IntArray, items: int) -> Iterator[tuple[IntArray, IntArray]]:
    """(pairs first · `items` + second, rising; users with both): all pairs of an item come together, items in order."""
    by_item = np.argsort(item, kind="stable")  # (n,) int64, the events of each item together
    key, count = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    for begin in range(0, len(by_item), EVENTS_AT_ONCE):
        events = by_item[begin : begin + EVENTS_AT_ONCE]
        pairs = [key]
        for apart in (*range(1 - WINDOW, 0), *range(1, WINDOW)):
            inside = events[(events + apart >= 0) & (events + apart < len(item))]
            inside = inside[user[inside] == user[inside + apart]]
            pairs.append(item[inside] * items + item[inside + apart])
        both, place, once = np.unique(np.concatenate(pairs), return_inverse=True, return_counts=True)
        once[place[: len(key)]] += count - 1  # what was counted before stands once for all its count
        end = begin + EVENTS_AT_ONCE
        whole = len(both) if end >= len(by_item) else int(np.searchsorted(both, item[by_item[end]] * items))
        yield both[:whole], once[:whole]
        key, count = both[whole:], once[whole:]  # of the item that goes on


def _nearest(first: IntArray, weight: npt.NDArray[np.float64], most: int) -> IntArray:
    """Places of the `most` greatest weights of each item; `first` (M,) int64 is rising, and so are the places in it."""
    size = np.bincount(first - first[0]) if len(first) else np.empty(0, dtype=np.int64)
    if not len(first) or size.max() <= most:
        return np.arange(len(first))
    order = np.lexsort((-weight, first))  # stable, so that of equal weights the lesser item stands
    rank = np.arange(len(first)) - np.repeat(np.cumsum(size) - size, size)
    return np.sort(order[rank < most])


class NeighbourKnn:
    """Scores an item by its weight as a neighbour of the user's last events, the newest counting most.

    score(j) = sum over the items i of the last RECENT events, newest m = 0, of DECAY ** m · weight(i -> j).
    """

    def __init__(self, table: Neighbours) -> None:
        self.table = table

    def __call__(self, questions: Questions) -> Tensor:
        """(B, N) float32."""
        table, batch = self.table, questions.history
        users, length = len(batch.length), batch.length.numpy()
        scores = np.zeros((users, len(table.offsets) - 1), dtype=np.float32)
        for back in range(RECENT):
            row = np.flatnonzero(length > back)
            last = batch.item.numpy()[row, length[row] - 1 - back]
            size = table.offsets[last + 1] - table.offsets[last]
            owner = np.repeat(row, size)
            within = np.arange(len(owner)) - np.repeat(np.cumsum(size) - size, size)
            place = np.repeat(table.offsets[last], size) + within
            scores[owner, table.item[place]] += (
                np.float32(DECAY**back) * table.weight[place]
            )  # a neighbour is in a row but once
        return torch.from_numpy(scores)
