"""From ranks to figures: means over targets and over users, how sure they are, and by how long the user had paused."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.freshness.policies import IntArray
from bench.freshness.ranking import gains
from training.evaluation.intervals import Bootstrap, interval

METRICS = ("R@10", "N@10")
GAPS = (("under 10 s", 10), ("10 s to 2 min", 120), ("2 to 10 min", 600), ("10 min to 1 h", 3600), ("1 h to 1 d", 86_400))
LONGEST, NOTHING = "1 d and longer", "no event before"


def resampled_means(values: NDArray[np.float64], owner: IntArray, *, resamples: int, seed: int) -> NDArray[np.float64]:
    """(T, F) float64 -> (R, F): the mean over targets in each draw of the users, who bring all of their targets.

    owner: (T,) int64, 0 … U - 1, the user of each target, each user at least once. Draws depend on U and the seed alone, so
    all figures of one draw are of the same users: differences are paired.
    """
    sizes = np.bincount(owner)
    sums = np.zeros((len(sizes), values.shape[1]))
    np.add.at(sums, owner, values)
    drawn = Bootstrap(len(sizes), resamples=resamples, seed=seed).means(np.column_stack([sums, sizes]))  # (R, F + 1)
    return drawn[:, :-1] / drawn[:, -1:]


def summarise(
    ranks: Mapping[str, IntArray], users: IntArray, *, resamples: int, seed: int, against: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """One row a policy, in the order given, each compared with the first one, the one before it, and those of `against`.

    ranks: by policy, (T,) int64. users: (T,) int64.
    """
    names = list(ranks)
    values = np.stack([gains(ranks[name]) for name in names])  # (P, T, 2) float64
    owner = np.unique(users, return_inverse=True)[1]
    flat = values.transpose(1, 0, 2).reshape(len(owner), -1)  # (T, P · 2)
    drawn = resampled_means(flat, owner, resamples=resamples, seed=seed).reshape(resamples, len(names), len(METRICS))
    means = values.mean(axis=1)  # (P, 2)
    sizes = np.bincount(owner)
    rows = []
    for place, name in enumerate(names):
        row: dict[str, Any] = {"policy": name, **dict(zip(METRICS, means[place].tolist(), strict=True))}
        (row["low"], row["N@10_low"]), (row["high"], row["N@10_high"]) = interval(drawn[:, place]).tolist()
        row["user_macro"] = {
            metric: float((np.bincount(owner, values[place, :, column]) / sizes).mean())
            for column, metric in enumerate(METRICS)
        }
        for other in (names[0], *against):
            row[f"minus_{other}"] = _difference(means, drawn, place, names.index(other))
        if place:
            row["minus_previous"] = _difference(means, drawn, place, place - 1)
        rows.append(row)
    return rows


def _difference(means: NDArray[np.float64], drawn: NDArray[np.float64], one: int, other: int) -> dict[str, float]:
    """Of R@10, paired: both policies on the same resampled users."""
    low, high = interval(drawn[:, one, 0] - drawn[:, other, 0]).tolist()
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
