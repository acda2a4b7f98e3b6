"""From ranks to figures: means over targets and over users, how sure they are, and by how long the user had paused."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.freshness.policies import IntArray
from bench.freshness.ranking import gains

METRICS = ("R@10", "N@10")
GAPS = (("under 10 s", 10), ("10 s to 2 min", 120), ("2 to 10 min", 600), ("10 min to 1 h", 3600), ("1 h to 1 d", 86_400))
LONGEST, NOTHING = "1 d and longer", "no event before"
_AT_ONCE = 256


@dataclass(frozen=True)
class Resampler:
    """Paired bootstrap over users: every figure of one resample is of the same users, each with all their targets."""

    owner: IntArray  # (T,) int64, 0 … U - 1, the user of each target
    resamples: int
    seed: int

    def means(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """(T, F) float64 -> (R, F): the mean over targets of each resample; NaN in one that drew no target."""
        users = int(self.owner.max()) + 1
        sums = np.zeros((users, values.shape[1]))
        np.add.at(sums, self.owner, values)
        sizes = np.bincount(self.owner, minlength=users)
        random = np.random.default_rng(self.seed)
        parts = []
        for begin in range(0, self.resamples, _AT_ONCE):
            count = min(_AT_ONCE, self.resamples - begin)
            drawn = random.multinomial(users, np.full(users, 1 / users), size=count)  # (r, U) how often each user
            parts.append((drawn @ sums) / (drawn @ sizes)[:, None])
        return np.concatenate(parts)


def interval(means: NDArray[np.float64]) -> tuple[float, float]:
    """The middle 95 % of resampled means (R,)."""
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def summarise(ranks: Mapping[str, IntArray], users: IntArray, *, resamples: int, seed: int) -> list[dict[str, Any]]:
    """One row a policy, in the order given, each compared with the first one and with the one before it.

    ranks: by policy, (T,) int64. users: (T,) int64.
    """
    names = list(ranks)
    values = np.stack([gains(ranks[name]) for name in names])  # (P, T, 2) float64
    owner = np.unique(users, return_inverse=True)[1]
    drawn = Resampler(owner, resamples, seed).means(values.transpose(1, 0, 2).reshape(len(owner), -1))
    drawn = drawn.reshape(resamples, len(names), len(METRICS))  # (R, P, 2)
    means = values.mean(axis=1)  # (P, 2)
    sizes = np.bincount(owner)
    rows = []
    for place, name in enumerate(names):
        row: dict[str, Any] = {"policy": name, **dict(zip(METRICS, means[place].tolist(), strict=True))}
        row["low"], row["high"] = interval(drawn[:, place, 0])
        row["N@10_low"], row["N@10_high"] = interval(drawn[:, place, 1])
        row["user_macro"] = {
            metric: float((np.bincount(owner, values[place, :, column]) / sizes).mean())
            for column, metric in enumerate(METRICS)
        }
        row[f"minus_{names[0]}"] = _difference(means, drawn, place, 0)
        if place:
            row["minus_previous"] = _difference(means, drawn, place, place - 1)
        rows.append(row)
    return rows


def _difference(means: NDArray[np.float64], drawn: NDArray[np.float64], one: int, other: int) -> dict[str, float]:
    """Of R@10, paired: both policies on the same resampled users."""
    low, high = interval(drawn[:, one, 0] - drawn[:, other, 0])
    return {"R@10": float(means[one, 0] - means[other, 0]), "low": low, "high": high}


def by_gap(ranks: Mapping[str, IntArray], gaps_us: IntArray) -> list[dict[str, Any]]:
    """R@10 of each policy by the time since the user's previous event: (T,) int64 microseconds, -1 for none."""
    edges = np.array([seconds * 1_000_000 for _, seconds in GAPS])
    stratum = np.where(gaps_us < 0, len(GAPS) + 1, np.searchsorted(edges, gaps_us, side="right"))
    rows = []
    for number, name in enumerate([name for name, _ in GAPS] + [LONGEST, NOTHING]):
        inside = stratum == number
        recall = {policy: float(gains(found[inside])[:, 0].mean()) if inside.any() else None for policy, found in ranks.items()}
        rows.append({"gap": name, "targets": int(inside.sum()), "R@10": recall})
    return rows
