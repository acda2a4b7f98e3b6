"""Training windows: cuts histories into pieces of at most `length` events and packs pieces of like length together."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from training.data.interactions import IntArray, Interactions, pieces


@dataclass(frozen=True)
class Batch:
    """Right-padded pieces of histories, oldest first; padding is 0 and target -1."""

    item: Tensor  # (B, L) int64, item rows
    kind: Tensor  # (B, L) int64, event type codes
    seconds_before_newest: Tensor  # (B, L) float32
    length: Tensor  # (B,) int64
    target: Tensor  # (B, L) int64, item row or -1 where there is no target

    def parts(self, numbers: Iterable[int], of: int) -> Iterator["Batch"]:
        """The parts of those numbers, of `of` parts with rows dealt in turn: alike in size. An empty one is left out."""
        for number in numbers:
            rows = slice(number, None, of)
            width = int(self.length[rows].max()) if number < len(self.length) else 0
            if of == 1:
                yield self
            elif width:
                whole = [getattr(self, each.name)[rows] for each in fields(self)]
                yield Batch(*(each if each.ndim == 1 else each[:, :width].contiguous() for each in whole))

    def to(self, device: torch.device) -> "Batch":
        if self.item.device == device:
            return self
        return Batch(*(getattr(self, each.name).to(device, non_blocking=True) for each in fields(self)))


def cut(starts: IntArray, ends: IntArray, length: int, generator: np.random.Generator | None) -> tuple[IntArray, IntArray]:
    """Cuts ranges [starts, ends) of event rows into pieces of at most `length` -> (piece starts, piece ends).

    With a generator the cuts of each long range lie at a random phase, so that over the epochs every event is seen
    with every amount of context; without one they are counted from the end. Empty ranges give no piece.
    """
    size = ends - starts
    phase = np.zeros_like(size)
    if generator is not None:
        phase = np.where(size > length, generator.integers(0, length, size=len(size)), 0)
    pieces = np.where(size > 0, -(-(size + phase) // length), 0)
    owner = np.repeat(np.arange(len(size)), pieces)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    last = ends[owner] + phase[owner] - number * length
    return np.maximum(last - length, starts[owner]), np.minimum(last, ends[owner])


def gather(data: Interactions, starts: IntArray, ends: IntArray, target: IntArray | None = None) -> Batch:
    """Event ranges as one padded batch; `target` (E,) gives each event's target row, -1 for none.

    Seconds are float32, as serving gives them to the tower: a year before the newest event they are exact to 2 s. In
    training the gaps at an event in the middle of a piece come from seconds before the piece's newest one, so they are
    rounded a little more coarsely than they will be when that event is the newest.
    """
    size = ends - starts
    width = int(size.max())
    valid = np.arange(width) < size[:, None]  # (B, L) bool
    rows = np.where(valid, starts[:, None] + np.arange(width), 0)
    newest = data.time_us[ends - 1][:, None]
    seconds = np.where(valid, (newest - data.time_us[rows]) / 1e6, 0.0).astype(np.float32)
    wanted = np.full(rows.shape, -1) if target is None else np.where(valid, target[rows], -1)
    return Batch(
        item=torch.from_numpy(np.where(valid, data.item[rows], 0)),
        kind=torch.from_numpy(np.where(valid, data.kind[rows], 0)),
        seconds_before_newest=torch.from_numpy(seconds),
        length=torch.from_numpy(size.astype(np.int64)),
        target=torch.from_numpy(wanted),
    )


def training_steps(
    data: Interactions, train_end: IntArray, target: IntArray, *, length: int, positions: int, generator: np.random.Generator
) -> list[tuple[IntArray, IntArray]]:
    """One epoch in random order, as event ranges: every training event with a target is in exactly one step.

    A step is (starts, ends) of pieces of histories that hold about `positions` events together. Pieces are shuffled,
    then sorted by length within groups of some steps: little padding, yet steps that mix users.
    """
    starts, ends = cut(data.offsets[:-1], _last_with_target(data, train_end, target) + 1, length, generator)
    wanted = np.append(target >= 0, False)  # (E + 1,) bool, so that a piece may end with the events
    asked = np.logical_or.reduceat(wanted, np.stack([starts, ends], 1).ravel())[::2]
    starts, ends = starts[asked], ends[asked]  # a warm start has pieces without a target
    order = generator.permutation(len(starts))
    starts, ends = starts[order], ends[order]
    steps = []
    group = 16 * max(1, int(positions / max(1.0, float(np.mean(ends - starts)))))
    for begin in range(0, len(starts), group):
        part = slice(begin, begin + group)
        by_length = np.argsort(ends[part] - starts[part], kind="stable")
        first, last = starts[part][by_length], ends[part][by_length]
        cuts = np.flatnonzero(np.diff(np.cumsum(last - first) // positions)) + 1
        steps += list(zip(np.split(first, cuts), np.split(last, cuts), strict=True))
    return [steps[number] for number in generator.permutation(len(steps))]


def _last_with_target(data: Interactions, train_end: IntArray, target: IntArray) -> IntArray:
    """(U,) int64: row of each user's last training event that has a target; offsets - 1 where there is none."""
    last = data.offsets[:-1] - 1
    for part in pieces(data.offsets):
        rows = np.flatnonzero(target[part.rows] >= 0)
        last[part.user[rows]] = part.rows.start + rows  # of several assignments the last one stands
    return last
