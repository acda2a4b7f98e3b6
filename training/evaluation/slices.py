"""The people of a test in parts: by how popular their target is, how long their history is, what group they are in."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from training.evaluation.exam import Exam
from training.evaluation.intervals import Bootstrap, interval

FEWEST = 20  # people in a group that is reported on its own
TOO_FEW = "too few"
HISTORY = ((1, 1), (2, 4), (5, 9), (10, None))  # events, from and to

BoolArray = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Slice:
    """Some of the people, by a name that says who they are."""

    name: str
    member: BoolArray  # (Q,) bool


def slices(exam: Exam) -> dict[str, list[Slice]]:
    """Every way of cutting that the exam itself gives: {what by: slices}, those without people left out."""
    size = exam.test.ends - exam.test.starts
    history = [
        Slice(
            str(low) if low == high else f"{low}-{high}" if high else f"{low}+", (size >= low) & (size <= (high or size.max()))
        )
        for low, high in HISTORY
    ]
    found = {"events in the history": history, "popularity decile of the target": _deciles(exam)}
    if not exam.trained.all():
        found["people"] = [Slice("in the training", exam.trained), Slice("new since", ~exam.trained)]
    return {name: [part for part in parts if part.member.any()] for name, parts in found.items()}


def _deciles(exam: Exam) -> list[Slice]:
    """Tenths of the catalogue by events before the test, 1 = the least popular; items with as many events are together."""
    counts = exam.popularity()
    values, inverse, size = np.unique(counts, return_inverse=True, return_counts=True)
    middle = np.cumsum(size) - size / 2  # of the places that items with as many events share
    decile = 1 + (10 * middle / len(counts)).astype(np.int64)[inverse]  # (N,) int64, 1 … 10
    known = exam.test.target >= 0
    own = np.where(known, decile[exam.test.target], 0)
    parts = []
    for number in np.unique(decile):
        inside = values[np.unique(inverse[decile == number])]
        low, high = f"{int(inside[0]):,}", f"{int(inside[-1]):,}"
        parts.append(Slice(f"{number} ({low if low == high else f'{low}-{high}'} events)", own == number))
    return [*parts, Slice("not in the bundle", ~known)]


def slice_rows(parts: list[Slice], figures: dict[str, dict[str, Floats]], metrics: tuple[str, ...]) -> list[dict[str, Any]]:
    """One row a slice: {"slice", "users", "models": {name: {metric: mean}}}."""
    return [
        {
            "slice": part.name,
            "users": int(part.member.sum()),
            "models": {
                model: {metric: float(values[metric][part.member].mean()) for metric in metrics}
                for model, values in figures.items()
            },
        }
        for part in parts
    ]


def group_slices(group: npt.NDArray[np.object_]) -> list[Slice]:
    """Groups by size, the largest first; those of fewer than FEWEST people are one, named "too few"."""
    names, counts = np.unique(group.astype(str), return_counts=True)
    order = np.argsort(-counts, kind="stable")
    large = [str(names[place]) for place in order if counts[place] >= FEWEST]
    parts = [Slice(name, group == name) for name in large]
    rest = ~np.isin(group.astype(str), large)
    return [*parts, Slice(TOO_FEW, rest)] if rest.any() else parts


def group_rows(
    parts: list[Slice], values: dict[str, Floats], metrics: tuple[str, ...], bootstrap: Bootstrap
) -> list[dict[str, Any]]:
    """One row a group: {"group", "users", metric: {"mean", "interval", "gap", "gap_interval"}}; gap = group - everyone.

    A rest of fewer than FEWEST people has no figures.
    """
    table = np.stack([values[metric] for metric in metrics], 1)  # (Q, M)
    everyone, draws = table.mean(0), bootstrap.means(table)
    rows: list[dict[str, Any]] = []
    for part in parts:
        row: dict[str, Any] = {"group": part.name, "users": int(part.member.sum())}
        if row["users"] >= FEWEST:
            mean, own = table[part.member].mean(0), bootstrap.means(table, part.member)
            bounds, gaps = interval(own), interval(own - draws)
            for column, metric in enumerate(metrics):
                row[metric] = {
                    "mean": float(mean[column]),
                    "interval": bounds[:, column].tolist(),
                    "gap": float(mean[column] - everyone[column]),
                    "gap_interval": gaps[:, column].tolist(),
                }
        rows.append(row)
    return rows
