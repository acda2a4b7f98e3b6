"""What is trained on and what is held out: leave-one-out, by time, or nothing; and items that no training sees.

Targets are first interactions: with repeated items (view, cart, buy of one thing) a target that was already in the
history would be trivial. Weights, residuals and `popularity` see only the events before `train_end`.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from training.config import SplitConfig
from training.data.interactions import BoolArray, IntArray, Interactions, first_interactions, pieces, selected
from training.errors import ConfigError


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
        counts = np.zeros(self.data.items)
        for part in pieces(self.data.offsets):
            item = self.data.item[part.rows]
            trained = np.arange(part.rows.start, part.rows.stop) < self.train_end[part.user]
            counts += np.bincount(item[trained & (item >= 0)], minlength=self.data.items)
        return counts

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
        moments = _moments(data, config)
        return Split("temporal", warm, *_by_user(warm, lambda part: _temporal(part, *moments)), cold, *moments)
    if config.kind == "all":
        return _all(warm, cold, config)
    return Split("leave-one-out", warm, *_by_user(warm, _leave_one_out), cold)


def without_items(data: Interactions, gone: BoolArray) -> Interactions:
    """The same users without the events of the items that `gone` (N,) bool marks; a user may be left with none."""
    if not gone.any():
        return data
    kept = ~np.append(gone, False)  # row -1, unknown, is the appended one
    return selected(data, lambda rows: kept[data.item[rows]])


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


HeldOut = tuple[IntArray, IntArray, IntArray]  # (U,) train_end, validation, test: see Split


def _by_user(data: Interactions, rule: Callable[[Interactions], HeldOut]) -> HeldOut:
    """`rule` on some users after others, since the events may be more than fit into memory; its rows count from 0."""
    found: list[HeldOut] = []
    for part in pieces(data.offsets):
        first = part.rows.start
        offsets = data.offsets[part.users.start : part.users.stop + 1] - first
        item, kind, time_us = (column[part.rows] for column in (data.item, data.kind, data.time_us))
        end, validation, test = rule(replace(data, item=item, kind=kind, time_us=time_us, offsets=offsets))
        found.append((end + first, *(np.where(rows >= 0, rows + first, -1) for rows in (validation, test))))
    end, validation, test = (np.concatenate(rows) for rows in zip(*found, strict=True))
    return end, validation, test


def _leave_one_out(data: Interactions) -> HeldOut:
    """Each user's last item is the test target, the second last the validation target.

    What follows the test target is dropped, what lies between the two targets serves as history for the test only. A
    user with fewer than three different items is trained on whole and not evaluated.
    """
    rows, ends, counts = _new_items(data)
    evaluated = counts >= 3
    validation = np.where(evaluated, _at(rows, ends - 2), -1)
    return np.where(evaluated, validation, data.offsets[1:]), validation, np.where(evaluated, _at(rows, ends - 1), -1)


def _temporal(data: Interactions, validation_from_us: int, test_from_us: int) -> HeldOut:
    """Trains on what was before one moment; targets are each user's first new item after it, and after a later one.

    A target has at least one event of its user before it, since without a history there is no vector to ask with.
    """
    user = data.user
    new = first_interactions(data)
    new[data.offsets[:-1][np.diff(data.offsets) > 0]] = False  # nothing before it
    training, late = data.time_us < validation_from_us, data.time_us >= test_from_us
    train_end = data.offsets[:-1] + np.bincount(user[training], minlength=data.users)
    validation = _first_row(new & ~training & ~late, user, data.users)
    return train_end, validation, _first_row(new & late, user, data.users)


def _last_new(data: Interactions) -> HeldOut:
    """As validation target each user's last item, if there is another one before it."""
    rows, ends, counts = _new_items(data)
    return data.offsets[1:], np.where(counts >= 2, _at(rows, ends - 1), -1), np.full(data.users, -1, dtype=np.int64)


def _all(data: Interactions, cold: BoolArray, config: SplitConfig) -> Split:
    """Everything is trained on, save the last new item, and what follows it, of a seeded few, for early stopping.

    Who they are does not change as other people come: what a bundle held out, the next one that goes on from it may ask for.
    """
    end, validation, none = _by_user(data, _last_new)
    able = validation >= 0
    drawn = np.where(able, _uniform(data, config.seed), 1.0)  # (U,) float64
    chosen = drawn < config.validation_users
    if config.validation_users and able.any() and not chosen.any():
        chosen[drawn.argmin()] = True
    validation = np.where(chosen, validation, -1)
    return Split("all", data, np.where(chosen, validation, end), validation, none, cold)


def _moments(data: Interactions, config: SplitConfig) -> tuple[int, int]:
    """The two moments in microseconds since 1970; shares are of all events, cold items' too."""
    least, greatest = int(data.time_us.min()), int(data.time_us.max())
    first, second = (_moment(data.time_us, value) for value in (config.validation_from, config.test_from))
    if not least < first < second <= greatest:
        raise ConfigError(
            f"split.validation_from {_iso(first)} and split.test_from {_iso(second)}: must follow each other within "
            f"the events' time, {_iso(least)} to {_iso(greatest)}"
        )
    return first, second


def _moment(time_us: IntArray, value: float | str) -> int:
    """A time, or for a share s the time before which s of the events lie, found by bisection: no sorted copy."""
    if isinstance(value, str):
        return round(datetime.fromisoformat(value).timestamp() * 1e6)
    low, high, wanted = int(time_us.min()), int(time_us.max()), int(value * len(time_us))
    while low < high:
        middle = (low + high) // 2
        if np.count_nonzero(time_us <= middle) > wanted:
            high = middle
        else:
            low = middle + 1
    return low


def _cold_items(data: Interactions, config: SplitConfig) -> BoolArray:
    """(N,) bool: a seeded share of the items that have events."""
    used, cold = np.zeros(data.items + 1, dtype=np.bool_), np.zeros(data.items, dtype=np.bool_)
    if config.cold_items:
        for part in pieces(data.offsets):
            used[data.item[part.rows]] = True  # row -1, unknown, is the last one
        cold[_draw(np.flatnonzero(used[:-1]), config.cold_items, config.seed)] = True
    return cold


def _draw(among: IntArray, share: float, seed: int) -> IntArray:
    """`share` of the values, at least one where the share is not 0, drawn without replacement."""
    count = min(len(among), max(1, round(share * len(among)))) if share else 0
    return np.random.default_rng(seed).permutation(among)[:count]


def _uniform(data: Interactions, seed: int) -> npt.NDArray[np.float64]:
    """(U,) float64 in [0, 1): a hash of each user's id and the seed (the finaliser of SplitMix64, Steele et al. 2014)."""
    ids = np.arange(data.users, dtype=np.uint64) if data.user_digest is None else data.user_digest
    mixed = ids + np.uint64(((seed + 1) * 0x9E3779B97F4A7C15) % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


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
