"""`python -m training evaluate`: what the split held out, asked of the towers that the bundle ships, beside baselines."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from index.bundle import Bundle, read_bundle
from training.data.dataset import Dataset, read_dataset
from training.errors import DatasetError
from training.evaluation.exam import Asked, Exam, set_exam
from training.evaluation.intervals import Bootstrap, interval
from training.evaluation.metrics import SHOWN, coverage, gini, per_user
from training.evaluation.models import OURS, cold_scorers, scorers
from training.evaluation.profiles import groups, read_profiles, warn_of_strangers
from training.evaluation.ranking import Answers, Scorer, answer, ask
from training.evaluation.slices import group_rows, group_slices, slice_rows, slices
from training.evaluation.trained_on import check_cold, check_items, check_split, same_events, split_to_test
from training.progress import Progress

KINDS = ("filtered", "unfiltered")
SLICED = ("R@10", "N@10")  # of slices and groups, filtered


@dataclass(frozen=True)
class Wanted:
    """What is asked beyond the main test."""

    split: str | None = None  # None = the one the bundle was trained with
    profiles: Path | None = None
    attributes: list[str] | None = None  # None = all that the profiles have
    cold: bool = False


def evaluate(data: Path, path: Path, progress: Progress, wanted: Wanted | None = None) -> dict[str, Any]:
    """The result that `--json` writes; docs/evaluation.md tells of every field.

    Candidates are all items of the bundle. An item that the bundle does not know counts as missed. Raises DatasetError
    where the bundle was trained on other items or with another split.
    """
    wanted = wanted or Wanted()
    dataset, bundle = read_dataset(data), read_bundle(path)
    if bundle.user_tower is None or bundle.manifest.history_length is None:
        raise DatasetError(f"{path}: has no user tower, so there is nothing to evaluate; give a bundle that fit wrote")
    check_items(dataset, bundle, progress)
    profiles = _profiles(dataset, wanted)
    config, same = split_to_test(bundle, wanted.split, progress), same_events(dataset, bundle)
    exam = set_exam(dataset, bundle, config)
    check_split(exam, bundle, same=same, progress=progress)
    _warn_of_warm_start(bundle, progress)
    if wanted.cold:
        check_cold(exam, bundle)
    if not len(exam.test.user):
        raise DatasetError(f"{data}: the split {config.kind} holds nobody's item out for the test; give more events")
    result = _main_test(exam, bundle, progress)
    head = {
        "split": config.kind,
        "users": len(exam.test.user),
        "items": len(bundle.item_ids),
        "release_id": bundle.release_id,
        "same_events": same,
        "split_details": exam.split.describe(),
    }
    ours = result.pop("figures")[OURS]["filtered"]
    if profiles is not None:
        result["groups"] = _groups(exam, dataset, profiles, ours, progress)
    if wanted.cold:
        result["cold"] = _cold_test(exam, bundle, progress)
    return head | result


def _warn_of_warm_start(bundle: Bundle, progress: Progress) -> None:
    began = bundle.manifest.training.get("warm_start")
    if isinstance(began, dict) and began.get("taught_test_users") != 0:
        progress.say(
            f"warning: the bundle began with release {began.get('release_id')}, which was taught "
            f"{began.get('taught_test_users', 'perhaps some')} of the test targets; train from scratch for a clean test"
        )


def _main_test(exam: Exam, bundle: Bundle, progress: Progress) -> dict[str, Any]:
    """Models, intervals, differences, exposure and slices; "figures" are each user's, for what comes after."""
    answers = _answers(exam, exam.test, scorers(exam, bundle), bundle, progress, "evaluate")
    figures = {name: {kind: per_user(one.counts[kind]) for kind in KINDS} for name, one in answers.items()}
    result = _compare(figures, len(exam.test.user))
    result["exposure"] = {name: _exposure(one) for name, one in answers.items()}
    filtered = {name: kinds["filtered"] for name, kinds in figures.items()}
    result["slices"] = {by: slice_rows(parts, filtered, SLICED) for by, parts in slices(exam).items()}
    return result | {"figures": figures}


def _cold_test(exam: Exam, bundle: Bundle, progress: Progress) -> dict[str, Any]:
    """Held-out items in the full catalogue: what content alone is worth."""
    if not len(exam.cold.user):
        raise DatasetError("nobody has an event on a cold item after the training; raise split.cold_items and train again")
    answers = _answers(exam, exam.cold, cold_scorers(exam, bundle, progress), bundle, progress, "cold items")
    figures = {name: {kind: per_user(one.counts[kind]) for kind in KINDS} for name, one in answers.items()}
    return {"items": len(exam.cold_rows), "users": len(exam.cold.user), **_compare(figures, len(exam.cold.user))}


def _answers(
    exam: Exam, asked: Asked, models: dict[str, Scorer], bundle: Bundle, progress: Progress, title: str
) -> dict[str, Answers]:
    length = bundle.manifest.history_length or 1
    answers = {}
    with torch.inference_mode(), progress.bar(title, len(models)) as bar:
        for name, scorer in models.items():
            questions = ask(exam.data, asked.starts, asked.ends, asked.target, history_length=length)
            answers[name] = answer(questions, scorer, items=exam.data.items)
            bar.update()
    return answers


Figures = dict[str, dict[str, dict[str, npt.NDArray[np.float64]]]]  # model -> kind -> metric -> (Q,) float64


def _compare(figures: Figures, people: int) -> dict[str, Any]:
    """{"models": means, "intervals": of them, "differences": ours - baseline, with paired intervals}."""
    bootstrap = Bootstrap(people)
    models: dict[str, Any] = {name: {} for name in figures}
    intervals: dict[str, Any] = {name: {} for name in figures}
    differences: dict[str, Any] = {name: {} for name in figures if name != OURS}
    for kind in KINDS:
        names = list(figures[OURS][kind])
        tables = {name: np.stack([figures[name][kind][metric] for metric in names], 1) for name in figures}  # (Q, M)
        draws = np.split(bootstrap.means(np.concatenate(list(tables.values()), 1)), len(tables), axis=1)
        sampled = dict(zip(tables, draws, strict=True))  # (R, M) each
        for name, table in tables.items():
            models[name][kind] = dict(zip(names, table.mean(0).tolist(), strict=True))
            intervals[name][kind] = dict(zip(names, interval(sampled[name]).T.tolist(), strict=True))
        for name in differences:
            gaps, bounds = (tables[OURS] - tables[name]).mean(0), interval(sampled[OURS] - sampled[name])
            differences[name][kind] = {
                metric: {"difference": float(gaps[column]), "interval": bounds[:, column].tolist()}
                for column, metric in enumerate(names)
            }
    return {"models": models, "intervals": intervals, "differences": differences}


def _exposure(answers: Answers) -> dict[str, float | None]:
    unequal = gini(answers.exposure)
    return {
        f"coverage@{SHOWN}": coverage(answers.exposure),
        f"gini@{SHOWN}": None if math.isnan(unequal) else unequal,
    }


def _profiles(dataset: Dataset, wanted: Wanted) -> pa.Table | None:
    """The attributes that are asked for, from the file that is named or from the data set's own."""
    if wanted.profiles is None and wanted.attributes is None:
        return None
    own = dataset.path / "profiles.parquet"
    if wanted.profiles is None and not own.is_file():
        raise DatasetError(f"{dataset.path}: has no profiles.parquet; give --profiles FILE with user_id and attributes")
    return read_profiles(wanted.profiles or own, wanted.attributes)


def _groups(
    exam: Exam, dataset: Dataset, profiles: pa.Table, ours: dict[str, npt.NDArray[np.float64]], progress: Progress
) -> dict[str, list[dict[str, Any]]]:
    users = dataset.events.unique("user_id").take(pa.array(exam.test.user))  # in the order of their numbers
    warn_of_strangers(profiles, users, progress)
    names = [name for name in profiles.column_names if name != "user_id"]
    bootstrap = Bootstrap(len(exam.test.user))
    return {name: group_rows(group_slices(groups(profiles, name, users)), ours, SLICED, bootstrap) for name in names}
