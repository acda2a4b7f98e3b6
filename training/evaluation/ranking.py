"""Questions of an evaluation: a history, what was seen, and the item that came next; and a scorer's answers to them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from training.data.interactions import IntArray, Interactions
from training.data.windows import Batch, gather
from training.evaluation.metrics import shown, summarise, tally

MOST_USERS, MOST_SCORES = 512, 1 << 25  # ranked at once: 2^25 float32 scores are 128 MiB
MOST_SEEN = 1 << 21  # events of whole histories at once, padding counted: 16 MiB of int64; one longer history comes alone
Scorer = Callable[["Questions"], Tensor]


@dataclass(frozen=True)
class Questions:
    """Some users' histories just before their targets."""

    history: Batch  # the last L_max events, right-padded
    seen: Tensor  # (B, S) int64, item rows of the whole history, padded with -1
    target: Tensor  # (B,) int64, item row or -1 where the candidates do not hold it
    place: IntArray  # (B,) int64, which of the histories asked about these are


@dataclass(frozen=True)
class Answers:
    """Where a scorer ranks each target, in the order in which the histories were given, and what it shows."""

    counts: dict[str, npt.NDArray[np.int64]]  # "filtered" | "unfiltered": (Q, 2) int64 of (above, level), see `tally`
    exposure: npt.NDArray[np.int64]  # (N,) int64, in how many users' first ten each item is, seen items left out


def ask(data: Interactions, starts: IntArray, ends: IntArray, target: IntArray, *, history_length: int) -> Iterator[Questions]:
    """Histories are the event rows starts[i] … ends[i] - 1, none of them empty; those of like length come together.

    Memory is bounded by users times items and by users times the longest history among them.
    """
    for part in _parts(ends - starts, data.items):
        first, last = starts[part], ends[part]
        yield Questions(
            history=gather(data, np.maximum(first, last - history_length), last),
            seen=_seen(data.item, first, last),
            target=torch.from_numpy(target[part]),
            place=part,
        )


def _parts(size: IntArray, items: int) -> Iterator[IntArray]:
    """The places of histories of `size` (Q,) int64 events, the shortest first, as many together as may be."""
    order = np.argsort(size, kind="stable")
    most = max(1, min(MOST_USERS, MOST_SCORES // items))
    while len(order):
        padded = size[order[:most]] * np.arange(1, 1 + len(order[:most]))  # events of the first 1, 2, … histories; rising
        count = max(1, int(np.searchsorted(padded, MOST_SEEN, side="right")))
        yield order[:count]
        order = order[count:]


def _seen(item: IntArray, starts: IntArray, ends: IntArray) -> Tensor:
    """(B, S) int64: the item rows of whole histories, padded with -1."""
    size = ends - starts
    seen = np.full((len(size), int(size.max())), -1, dtype=np.int64)
    for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
        seen[row, : end - start] = item[start:end]
    return torch.from_numpy(seen)


def rank(questions: Iterator[Questions], scorer: Scorer) -> dict[str, dict[str, float]]:
    """{"filtered" | "unfiltered": {"R@5", "R@10", "N@5", "N@10"}} of a scorer giving (B, N) float scores."""
    parts = [tally(scorer(part), part.target, part.seen) for part in questions]
    return {name: summarise(np.concatenate([part[name] for part in parts])) for name in ("filtered", "unfiltered")}


def answer(questions: Iterator[Questions], scorer: Scorer, *, items: int) -> Answers:
    """The same, kept apart for each user, with what is shown."""
    places, parts = [], []
    exposure = np.zeros(items, dtype=np.int64)  # (N,)
    for part in questions:
        scores = scorer(part)
        places.append(part.place)
        parts.append(tally(scores, part.target, part.seen))
        exposure += np.bincount(shown(scores, part.seen), minlength=items)
    order = np.argsort(np.concatenate(places))
    return Answers(
        {name: np.concatenate([part[name] for part in parts])[order] for name in ("filtered", "unfiltered")}, exposure
    )
