"""What is trained on and what is held out: leave-one-out, by time, or nothing; and items that no training sees.

Targets are first interactions: with repeated items (view, cart, buy of one thing) a target that was already in the
history would be trivial. Weights, residuals and `popularity` see only the events before `train_end`.
"""

import hashlib
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from training.config import SplitConfig
from training.errors import ConfigError
from training.interactions import IntArray, Interactions, first_interactions

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Split:
    """Which events are trained on and which are held out, as rows of `data`. Users are all users, empty ones too."""

    name: str  # leave-one-out | temporal | all
    data: Interactions  # all events but those of cold items
    train_end: IntArray  # (U,) int64: training events of u are data.offsets[u] … train_end[u] - 1
    validation: IntArray  # (U,) int64: row of the validation target, -1 = user is not validated on
    test: IntArray  # (U,) int64: row of the test target, -1 = user is not tested on
    cold: BoolArray  # (N,) bool: items whose events are in no training history and no target
    validation_from_us: int | None = None  # temporal: microseconds since 1970; training is strictly before
    test_from_us: int | None = None

    def counts(self) -> npt.NDArray[np.float64]:
        """(N,) float64: training events of each item; what the bundle calls popularity. A cold item has 0."""
        trained = (np.arange(len(self.data.item)) < self.train_end[self.data.user]) & (self.data.item >= 0)
        return np.bincount(self.data.item[trained], minlength=self.data.items).astype(np.float64)

    def describe(self) -> dict[str, Any]:
        """The manifest's account of the split: two splits with the same account hold out the same, on the same events."""
        return {
            "kind": self.name,
            "validation_from": _iso(self.validation_from_us),
            "test_from": _iso(self.test_from_us),
            "training_events": int((self.train_end - self.data.offsets[:-1]).sum()),
            "validation_users": int((self.validation >= 0).sum()),
            "test_users": int((self.test >= 0).sum()),
            "cold_items": int(self.cold.sum()),
            "cold_items_sha256": hashlib.sha256(np.flatnonzero(self.cold).astype("<i8").tobytes()).hexdigest(),
        }


def make_split(data: Interactions, config: SplitConfig, *, real_times: bool = True) -> Split:
    """The split that `config` asks for; the same events and config give the same split. Raises ConfigError.

    Items of `data` may be -1 (unknown): such events stay, as history and as targets, and are never cold.
    """
    cold = _cold_items(data, config)
    warm = without_items(data, cold)
    if config.kind == "temporal":
        if not real_times:
            raise ConfigError("split.kind: temporal, but this data has only an order and no times; use leave-one-out")
        return _temporal(warm, cold, *_times(data, config))
    return _all(warm, cold, config) if config.kind == "all" else _leave_one_out(warm, cold)


def without_items(data: Interactions, gone: BoolArray) -> Interactions:
    """The same users without the events of the items that `gone` (N,) bool marks; a user may be left with none."""
    if not gone.any():
        return data
    kept = ~np.append(gone, False)[data.item]  # row -1, unknown, is the appended one
    before = np.append(0, np.cumsum(kept))  # kept events before each row
    return replace(data, item=data.item[kept], kind=data.kind[kept], time_us=data.time_us[kept], offsets=before[data.offsets])


def cold_targets(data: Interactions, split: Split) -> tuple[IntArray, IntArray]:
    """(U,) rows of `data`, the events that `split` was made of: each user's last new cold item, -1 = none; and (U,) rows
    of `split.data` at which that user's history ends then.

    Only cold items after all that the user was trained on, and with a split by time after the test's moment, so that
    the weights know nothing of what came later. There is at least one event in the history.
    """
    kept = ~np.append(split.cold, False)[data.item]
    before = np.append(0, np.cumsum(kept))  # (E + 1,) events of split.data before each row of `data`
    user, end = data.user, before[:-1]
    wanted = first_interactions(data) & ~kept & (end >= split.train_end[user]) & (end > split.data.offsets[:-1][user])
    if split.test_from_us is not None:
        wanted &= data.time_us >= split.test_from_us
    found = np.full(data.users, -1, dtype=np.int64)
    rows = np.flatnonzero(wanted)
    found[user[rows]] = rows  # of several assignments the last one stands
    return found, before[np.maximum(found, 0)]


def _leave_one_out(data: Interactions, cold: BoolArray) -> Split:
    """Each user's last item is the test target, the second last the validation target.

    What follows the test target is dropped, what lies between the two targets serves as history for the test only. A
    user with fewer than three different items is trained on whole and not evaluated.
    """
    rows, ends, counts = _new_items(data)
    evaluated = counts >= 3
    test = np.where(evaluated, _at(rows, ends - 1), -1)
    validation = np.where(evaluated, _at(rows, ends - 2), -1)
    return Split("leave-one-out", data, np.where(evaluated, validation, data.offsets[1:]), validation, test, cold)


def _temporal(data: Interactions, cold: BoolArray, validation_from_us: int, test_from_us: int) -> Split:
    """Trains on what was before one moment; targets are each user's first new item after it, and after a later one.

    A target has at least one event of its user before it, since without a history there is no vector to ask with.
    """
    user = data.user
    new = first_interactions(data)
    new[data.offsets[:-1][np.diff(data.offsets) > 0]] = False  # nothing before it
    training = data.time_us < validation_from_us
    train_end = data.offsets[:-1] + np.bincount(user[training], minlength=data.users)
    late = data.time_us >= test_from_us
    validation = _first_row(new & ~training & ~late, user, data.users)
    test = _first_row(new & late, user, data.users)
    return Split("temporal", data, train_end, validation, test, cold, validation_from_us, test_from_us)


def _all(data: Interactions, cold: BoolArray, config: SplitConfig) -> Split:
    """Everything is trained on, save the last new item, and what follows it, of a seeded few, for early stopping."""
    rows, ends, counts = _new_items(data)
    able = np.flatnonzero(counts >= 2)
    chosen = np.zeros(data.users, dtype=np.bool_)
    chosen[_draw(able, config.validation_users, config.seed)] = True
    validation = np.where(chosen, _at(rows, ends - 1), -1)
    none = np.full(data.users, -1, dtype=np.int64)
    return Split("all", data, np.where(chosen, validation, data.offsets[1:]), validation, none, cold)


def _times(data: Interactions, config: SplitConfig) -> tuple[int, int]:
    """The two moments in microseconds since 1970; shares are of all events, cold items' too."""
    ordered = np.sort(data.time_us)
    first, second = (_moment(ordered, value) for value in (config.validation_from, config.test_from))
    if not ordered[0] < first < second <= ordered[-1]:
        raise ConfigError(
            f"split.validation_from {_iso(first)} and split.test_from {_iso(second)}: must follow each other within "
            f"the events' time, {_iso(int(ordered[0]))} to {_iso(int(ordered[-1]))}"
        )
    return first, second


def _moment(ordered: IntArray, value: float | str) -> int:
    if isinstance(value, str):
        return round(datetime.fromisoformat(value).timestamp() * 1e6)
    return int(ordered[int(value * len(ordered))])


def _cold_items(data: Interactions, config: SplitConfig) -> BoolArray:
    """(N,) bool: a seeded share of the items that have events."""
    used = np.unique(data.item[data.item >= 0])
    cold = np.zeros(data.items, dtype=np.bool_)
    cold[_draw(used, config.cold_items, config.seed)] = True
    return cold


def _draw(among: IntArray, share: float, seed: int) -> IntArray:
    """`share` of the values, at least one where the share is not 0, drawn without replacement."""
    count = min(len(among), max(1, round(share * len(among)))) if share else 0
    return np.random.default_rng(seed).permutation(among)[:count]


def _new_items(data: Interactions) -> tuple[IntArray, IntArray, IntArray]:
    """Rows of all first interactions; (U,) where each user's end among them; (U,) how many each user has."""
    rows = np.flatnonzero(first_interactions(data))
    counts = np.bincount(data.user[rows], minlength=data.users)
    return rows, np.cumsum(counts), counts


def _at(rows: IntArray, places: IntArray) -> IntArray:
    """rows[places], whatever for a place below 0."""
    return rows[np.maximum(places, 0)] if len(rows) else np.full(len(places), -1, dtype=np.int64)


def _first_row(wanted: BoolArray, user: IntArray, users: int) -> IntArray:
    """(U,) int64: each user's first wanted row, -1 = none."""
    found = np.full(users, -1, dtype=np.int64)
    rows = np.flatnonzero(wanted)[::-1]
    found[user[rows]] = rows  # of several assignments the last one stands, which is the first row
    return found


def _iso(time_us: int | None) -> str | None:
    return None if time_us is None else datetime.fromtimestamp(time_us / 1e6, UTC).isoformat()
