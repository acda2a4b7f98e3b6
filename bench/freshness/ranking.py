"""At which rank a target stands among all items that its user had not seen."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from bench.freshness.histories import Histories
from bench.freshness.policies import IntArray
from training.progress import Progress

CUTOFF = 10
NEVER = np.iinfo(np.int64).max
"""The rank of what cannot be found: no hit, however few the items are."""

_MOST_SCORES = 1 << 24  # at once: 64 MiB of float32
_MOST_ROWS = 512


class Questions:
    """Who is asked for, when, and which item is looked for: the same for every policy.

    The seen filter is a part of the question: what the user met before the target's stamp is not a candidate, however
    little of it a late vector was made of. So every policy has the same candidates.
    """

    def __init__(self, histories: Histories, users: IntArray, times_us: IntArray, items: IntArray) -> None:
        """users, times_us, items: (T,) int64; an item is a row of the bundle or -1, which nothing finds."""
        self.histories = histories
        self.users = users
        self.times_us = times_us
        self.items = items
        self.seen_ends = histories.ends(users, times_us)

    def __len__(self) -> int:
        return len(self.users)

    def seen(self, some: IntArray) -> tuple[IntArray, IntArray]:
        """Of some of the questions, the pairs (place in `some`, item row) that are no candidates: (m,) int64 each."""
        return self.histories.seen(self.users[some], self.seen_ends[some])


def popularity_ranks(questions: Questions, popularity: NDArray[np.float64]) -> IntArray:
    """(T,) int64, 0 = best: where popularity (N,) puts each target. Equal counts stand in row order, as in the service.

    NEVER for an unknown item.
    """
    places = np.empty(len(popularity), dtype=np.int64)
    places[np.argsort(-popularity, kind="stable")] = np.arange(len(popularity))
    ranks = np.where(questions.items >= 0, places[questions.items], len(places))
    for some in _parts(len(questions), _MOST_ROWS):
        owners, items = questions.seen(some)
        better = places[items] < ranks[some][owners]
        ranks[some] -= np.bincount(owners[better], minlength=len(some))
    ranks[questions.items < 0] = NEVER
    return ranks


def ranks(
    questions: Questions,
    chosen: IntArray,
    vectors: NDArray[np.float32],
    which: IntArray,
    item_vectors: NDArray[np.float32],
    progress: Progress,
) -> IntArray:
    """(m,) int64, 0 = best: where the vector vectors[which[i]] puts the target of question chosen[i].

    Equal scores stand in row order. NEVER for an unknown item.
    """
    found = np.empty(len(chosen), dtype=np.int64)
    matrix = torch.from_numpy(item_vectors).T  # (D, N)
    with torch.inference_mode(), progress.bar("rank", len(chosen)) as bar:
        for part in _parts(len(chosen), min(_MOST_ROWS, max(1, _MOST_SCORES // len(item_vectors)))):
            some = chosen[part]
            scores = torch.from_numpy(vectors[which[part]]) @ matrix  # (B, N)
            owners, items = questions.seen(some)
            scores[torch.from_numpy(owners), torch.from_numpy(items)] = -torch.inf
            found[part] = score_ranks(scores, questions.items[some])
            bar.update(len(part))
    return found


def score_ranks(scores: torch.Tensor, items: IntArray) -> IntArray:
    """(B,) int64, 0 = best, from scores (B, N) and the row looked for of each, or -1. Equal scores stand in row order.

    NEVER for -1, and where the score looked for is -inf: it is no candidate.
    """
    rows = torch.from_numpy(items)
    own = scores[torch.arange(len(rows)), rows.clamp(min=0)][:, None]
    above = (scores > own).sum(1)
    for place in torch.nonzero((scores >= own).sum(1) > above + 1)[:, 0].tolist():  # few rows have ties
        above[place] += (scores[place, : int(rows[place])] == own[place]).sum()
    above[(rows < 0) | (own[:, 0] == -torch.inf)] = NEVER
    ranked: IntArray = above.numpy()
    return ranked


def _parts(count: int, size: int) -> Iterator[IntArray]:
    for begin in range(0, count, size):
        yield np.arange(begin, min(begin + size, count))


def gains(ranks: IntArray) -> NDArray[np.float64]:
    """(…, 2) float64 from ranks (…): whether the target is among the first ten, and what that adds to NDCG@10."""
    hit = ranks < CUTOFF
    return np.stack([hit, hit / np.log2(np.minimum(ranks, CUTOFF) + 2)], axis=-1)
