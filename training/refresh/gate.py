"""The gate: a new bundle against the current one on the same held-out targets, before it may become live."""

import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from index.bundle import Bundle
from training.config import SplitConfig
from training.data.dataset import Dataset
from training.data.interactions import BoolArray, IntArray, Interactions, load_interactions, selected
from training.data.split import make_split
from training.data.text import encode_texts
from training.errors import ConfigError, DatasetError
from training.evaluation.models import Towers
from training.evaluation.ranking import ask, rank
from training.evaluation.trained_on import trained_with
from training.incremental.replay import taught_before, untaught
from training.incremental.warm_start import taught_until
from training.progress import Progress

METRICS = ("R@5", "R@10", "N@5", "N@10")
FEWEST = 100  # newer targets; with fewer all held-out ones are asked for
_REQUIREMENT = re.compile(r"\s*([RN]@\d+)\s*>=\s*([0-9.]+)\s*(\*\s*current)?\s*")


@dataclass(frozen=True)
class Requirement:
    """What a new bundle must reach: `number`, or `number` times what the current one reaches."""

    text: str
    metric: str
    number: float
    times_current: bool

    def least(self, current: dict[str, float]) -> float:
        return self.number * current[self.metric] if self.times_current else self.number


@dataclass(frozen=True)
class Comparison:
    """Filtered metrics of both bundles over the same targets."""

    targets: int
    newer: bool  # targets newer than all that the current bundle was taught; else all held-out ones
    new: dict[str, float]
    current: dict[str, float]

    def lines(self) -> list[str]:
        """The printed form."""
        which = (
            "newer than the current bundle" if self.newer else "held out, too few of which are newer than the current bundle"
        )
        head = f"{self.targets:,} targets {which}; filtered, full ranking"
        rows = [(name, " ".join(f"{figures[metric]:>8.4f}" for metric in METRICS)) for name, figures in self._models()]
        return [head, f"{'':<8}" + " ".join(f"{metric:>8}" for metric in METRICS), *(f"{name:<8}{row}" for name, row in rows)]

    def as_json(self) -> dict[str, Any]:
        return {"targets": self.targets, "newer_than_current": self.newer, **dict(self._models())}

    def _models(self) -> list[tuple[str, dict[str, float]]]:
        return [("current", self.current), ("new", self.new)]


def parse_requirement(text: str) -> Requirement:
    """Reads a rule such as N@10>=0.95*current or R@10>=0.08. Raises ConfigError."""
    found = _REQUIREMENT.fullmatch(text)
    try:
        if found is None or found[1] not in METRICS:
            raise ValueError
        return Requirement(text, found[1], float(found[2]), found[3] is not None)
    except ValueError:
        raise ConfigError(f"--require {text}: write {'|'.join(METRICS)}>=NUMBER, such as N@10>=0.95*current") from None


def unmet(requirements: list[Requirement], new: dict[str, float], current: dict[str, float]) -> list[str]:
    """Each requirement that the new bundle misses, with the figures."""
    return [
        f"{one.metric} {new[one.metric]:.4f} is below {one.least(current):.4f} ({one.text})"
        for one in requirements
        if new[one.metric] < one.least(current)
    ]


def compare(dataset: Dataset, new: Bundle, current: Bundle, progress: Progress) -> Comparison:
    """Both bundles on what neither was taught: the new one's test targets, or with split.kind all its validation ones.

    The current bundle answers as it is served: with new items placed by its own item tower. Targets are those of which
    both bundles can read something before. Raises DatasetError where nothing was held out.
    """
    served = with_new_items(current, dataset, progress)
    sides = [_Side(dataset, bundle) for bundle in (new, served)]
    rows, newer = held_out_rows(sides[0].data, new, current)
    able = np.logical_and(*(side.has_history(rows) for side in sides))
    if not able.any():
        raise DatasetError(f"{dataset.path}: nothing is held out that both bundles could be asked for; import more events")
    with torch.inference_mode():
        figures = [side.figures(rows[able]) for side in sides]
    return Comparison(int(able.sum()), newer, figures[0], figures[1])


def held_out_rows(data: Interactions, new: Bundle, current: Bundle) -> tuple[IntArray, bool]:
    """(n,) int64 event rows of what fit held out for `new`, which began with `current`; and whether all are newer than that.

    The split is fit's own, cold items and all. Where too few targets are newer, all of them count.
    """
    split, since = make_split(data, _split_of(new)), taught_until(current)
    if since is not None:
        split = untaught(split, taught_before(split.data, since, _split_of(current)))
    held_out = split.test if (split.test >= 0).any() else split.validation
    held_out = held_out[held_out >= 0]
    rows = np.flatnonzero(~np.append(split.cold, False)[data.item])[held_out]  # rows of `split.data` -> of `data`
    newer = rows[data.time_us[rows] > since] if since is not None else rows[:0]
    return (newer, True) if len(newer) >= FEWEST or len(newer) == len(rows) else (rows, False)


def _split_of(bundle: Bundle) -> SplitConfig:
    return trained_with(bundle.manifest.training) or SplitConfig()


def with_new_items(bundle: Bundle, dataset: Dataset, progress: Progress) -> Bundle:
    """The bundle with the data's other items, as a server places them: by text and known categories, residual 0."""
    fresh = dataset.items.filter(pc.invert(pc.is_in(dataset.items["item_id"], value_set=pa.array(bundle.item_ids))))
    if not fresh.num_rows:
        return bundle
    texts = fresh["text"].to_pylist()
    text = np.zeros((len(texts), bundle.manifest.text.dim), dtype=np.float32)  # (n, T) float32
    if bundle.text_encoder is not None:
        texts = [bundle.manifest.text.template.replace("{text}", one) if one else "" for one in texts]
        text = encode_texts(bundle.text_encoder, texts, batch_size=64, progress=progress)
    codes = np.array([bundle.category_codes(names or []) for names in fresh["categories"].to_pylist()], dtype=np.int64)
    vectors = bundle.encode_items(text, codes, np.zeros((len(texts), bundle.manifest.dim), dtype=np.float32))
    ids = pa.table({"item_id": [*bundle.item_ids, *fresh["item_id"].to_pylist()]})
    return replace(bundle, items=ids, item_vectors=np.concatenate([bundle.item_vectors, vectors]))


class _Side:
    """One bundle's view of the events. Rows of events are the same for both."""

    def __init__(self, dataset: Dataset, bundle: Bundle) -> None:
        self.bundle = bundle
        self.data = load_interactions(dataset.events, dataset.items["item_id"], dict(bundle.manifest.event_types))
        found = pc.fill_null(pc.index_in(dataset.items["item_id"], value_set=pa.array(bundle.item_ids)), -1)
        self.row_of = np.append(found.to_numpy().astype(np.int64), -1)  # data set's item rows -> the bundle's; -1 = unknown
        readable = selected(self.data, self._known)
        self.readable = replace(readable, item=self.row_of[readable.item], items=len(bundle.item_ids))
        whole = slice(0, len(self.data.item))
        self.before = np.append(0, np.cumsum(self._known(whole)))  # (E + 1,) readable events before each row

    def has_history(self, rows: IntArray) -> BoolArray:
        """(n,) bool: something readable lies before each target."""
        has: BoolArray = self.before[rows] > self._starts(rows)
        return has

    def figures(self, rows: IntArray) -> dict[str, float]:
        """Filtered metrics over the targets at event rows `rows` (n,) int64."""
        length = self.bundle.manifest.history_length or 1
        questions = ask(
            self.readable, self._starts(rows), self.before[rows], self.row_of[self.data.item[rows]], history_length=length
        )
        return rank(questions, Towers(self.bundle))["filtered"]

    def _known(self, rows: slice) -> BoolArray:
        """(n,) bool: events whose item and type the bundle has."""
        known: BoolArray = (self.row_of[self.data.item[rows]] >= 0) & (self.data.kind[rows] > 0)
        return known

    def _starts(self, rows: IntArray) -> IntArray:
        return self.before[self.data.offsets[self.data.user[rows]]]
