"""`python -m training evaluate`: the leave-one-out test with the towers that the bundle ships, beside baselines."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from index.bundle import Bundle, read_bundle
from training.baselines import MeanPooling, Popularity, TransitionKnn, count_transitions
from training.config import SplitConfig
from training.dataset import Dataset, dataset_sha256, read_dataset
from training.errors import DatasetError
from training.interactions import IntArray, Interactions, load_interactions
from training.progress import Progress
from training.ranking import Questions, Scorer, ask, rank
from training.split import make_split

MODELS = ("towerbridge", "popularity", "transition-knn", "mean-pooling")


@dataclass(frozen=True)
class Exam:
    """The test in the bundle's item rows: what each user's history is and what came next."""

    data: Interactions  # events whose item and type the bundle knows
    starts: IntArray  # (U,) int64, event row at which each evaluated user's history begins
    ends: IntArray  # (U,) int64, and ends
    target: IntArray  # (U,) int64, item row or -1
    past: npt.NDArray[np.bool_]  # (E,) bool, before the user's test target: what baselines count


def evaluate(data: Path, path: Path, progress: Progress) -> dict[str, Any]:
    """{"split", "users", "models": {name: {"filtered" | "unfiltered": {"R@5", "R@10", "N@5", "N@10"}}}}.

    Candidates are all items of the bundle. An item that the bundle does not know counts as missed. Raises DatasetError
    where the bundle was trained on other items.
    """
    dataset, bundle = read_dataset(data), read_bundle(path)
    if bundle.user_tower is None or bundle.manifest.history_length is None:
        raise DatasetError(f"{path}: has no user tower, so there is nothing to evaluate; give a bundle that fit wrote")
    _warn(dataset, bundle, path, progress)
    exam = set_exam(dataset, bundle)
    if not len(exam.ends):
        raise DatasetError(f"{data}: no user has three different items, so leave-one-out has no test; give more events")
    items = len(bundle.item_ids)
    counts = np.bincount(exam.data.item[exam.past], minlength=items).astype(np.float64)
    scorers: dict[str, Scorer] = {
        "towerbridge": _Towers(bundle),
        "popularity": Popularity(counts),
        "transition-knn": TransitionKnn(count_transitions(exam.data.item, _follows(exam), items)),
        "mean-pooling": MeanPooling(bundle.item_vectors),
    }
    models = {}
    with torch.inference_mode(), progress.bar("evaluate", len(MODELS)) as bar:
        for name in MODELS:
            questions = ask(exam.data, exam.starts, exam.ends, exam.target, history_length=bundle.manifest.history_length)
            models[name] = rank(questions, scorers[name])
            bar.update()
    return {"split": "leave-one-out", "users": len(exam.ends), "models": models}


def table(result: dict[str, Any]) -> str:
    """The printed form of a result."""
    names = [f"{metric}@{cutoff}" for metric in "RN" for cutoff in (5, 10)]
    head = "".join(f"{name:>9}" for name in names)
    lines = [
        f"{result['split']} test, {result['users']:,} users, full ranking; filtered = seen items left out",
        f"{'':<16}{'filtered':^36}  {'unfiltered':^36}",
        f"{'model':<16}{head}  {head}",
    ]
    for model, kinds in result["models"].items():
        cells = ["".join(f"{kinds[kind][name]:>9.4f}" for name in names) for kind in ("filtered", "unfiltered")]
        lines.append(f"{model:<16}{cells[0]}  {cells[1]}")
    return "\n".join(lines)


def set_exam(dataset: Dataset, bundle: Bundle) -> Exam:
    """Splits on all events first, then leaves out of histories what the bundle does not know, as the service does."""
    types = dict(bundle.manifest.event_types)
    data = load_interactions(dataset.events, dataset.items["item_id"], types)
    split = make_split(data, SplitConfig())
    rows = pc.fill_null(pc.index_in(dataset.items["item_id"], value_set=pa.array(bundle.item_ids)), -1)
    item = rows.to_numpy().astype(np.int64)[data.item]  # (E,) int64, the bundle's item rows
    known = (item >= 0) & (data.kind > 0)
    before = np.append(0, np.cumsum(known))  # known events before each event row
    past = np.arange(len(item)) < np.where(split.test >= 0, split.test, data.offsets[1:])[data.user]
    kept = replace(
        data,
        item=item[known],
        kind=data.kind[known],
        time_us=data.time_us[known],
        offsets=before[data.offsets],
        items=len(bundle.item_ids),
    )
    users = np.flatnonzero(split.test >= 0)
    starts, ends = kept.offsets[users], before[split.test[users]]
    answerable = ends > starts  # a history of unknown items alone has no vector
    return Exam(kept, starts[answerable], ends[answerable], item[split.test[users]][answerable], past[known])


class _Towers:
    """The served model: the bundle's exported user tower over its item vectors."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.items = torch.from_numpy(bundle.item_vectors)

    def __call__(self, questions: Questions) -> Tensor:
        batch = questions.history
        real = torch.arange(batch.item.shape[1]) < batch.length[:, None]
        history = self.items[batch.item] * real[..., None]
        seconds = batch.seconds_before_newest if self.bundle.manifest.time_features else torch.zeros(real.shape)
        arrays = (history.numpy(), batch.kind.numpy(), seconds.numpy(), batch.length.numpy())
        return torch.from_numpy(self.bundle.encode_users(*arrays)) @ self.items.T


def _follows(exam: Exam) -> npt.NDArray[np.bool_]:
    """(E - 1,) bool: events e and e + 1 are one user's and both before the test target."""
    user = exam.data.user
    follows: npt.NDArray[np.bool_] = (user[1:] == user[:-1]) & exam.past[1:] & exam.past[:-1]
    return follows


def _warn(dataset: Dataset, bundle: Bundle, path: Path, progress: Progress) -> None:
    """Refuses a bundle of other items, and says when it was not trained on these very events."""
    used = pc.unique(dataset.events["item_id"])
    unknown = pc.sum(pc.invert(pc.is_in(used, value_set=pa.array(bundle.item_ids)))).as_py()
    if unknown * 2 > len(used):
        raise DatasetError(
            f"{path}: knows {len(used) - unknown:,} of the {len(used):,} items in {dataset.path}; "
            "it was trained on other data: give the data that fit was given"
        )
    if unknown:
        progress.say(f"warning: the bundle does not know {unknown:,} of {len(used):,} items; as targets they are missed")
    trained_on = bundle.manifest.training.get("dataset", {})
    if not isinstance(trained_on, dict) or trained_on.get("events_sha256") != dataset_sha256(dataset.path):
        progress.say("warning: the bundle was not trained on these very events; it may have seen held-out items")
