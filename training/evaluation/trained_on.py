"""Which split a bundle was trained with: the test asks for what that split held out, and for nothing else."""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from index.bundle import Bundle
from training.config import SplitConfig
from training.data.dataset import Dataset, dataset_sha256
from training.errors import DatasetError
from training.evaluation.exam import Exam
from training.progress import Progress


def check_items(dataset: Dataset, bundle: Bundle, progress: Progress) -> None:
    """Raises DatasetError for a bundle of other items, and says how many it does not know."""
    used = dataset.events.unique("item_id")
    unknown = pc.sum(pc.invert(pc.is_in(used, value_set=pa.array(bundle.item_ids)))).as_py()
    if unknown * 2 > len(used):
        raise DatasetError(
            f"{bundle.path}: knows {len(used) - unknown:,} of the {len(used):,} items in {dataset.path}; "
            "it was trained on other data: give the data that fit was given"
        )
    if unknown:
        progress.say(f"warning: the bundle does not know {unknown:,} of {len(used):,} items; as targets they are missed")


def same_events(dataset: Dataset, bundle: Bundle) -> bool:
    """Whether the bundle was trained on these very events."""
    trained_on = bundle.manifest.training.get("dataset")
    return isinstance(trained_on, dict) and trained_on.get("events_sha256") == dataset_sha256(dataset.path)


def split_to_test(bundle: Bundle, asked: str | None, progress: Progress) -> SplitConfig:
    """The split that the bundle was trained with; for a bundle that does not say, the one `asked` for.

    Raises DatasetError where another one is asked for, whose test the weights may have seen, or where nothing was held
    out.
    """
    trained = trained_with(bundle.manifest.training)
    if trained is None:
        progress.say("warning: the bundle does not say what it was trained on; it may have seen held-out items")
        return SplitConfig.model_validate({"kind": asked or "leave-one-out"})
    if trained.kind == "all":
        raise DatasetError(
            f"{bundle.path}: was trained on everything (split.kind: all), so nothing is left to test it on; "
            "evaluate a bundle of the same settings with split.kind=leave-one-out or temporal"
        )
    if asked is not None and asked != trained.kind:
        raise DatasetError(
            f"{bundle.path}: was trained with the split {trained.kind}, its weights have seen what {asked} would test; "
            f"leave --split out, or train with --set split.kind={asked}"
        )
    return trained


def check_split(exam: Exam, bundle: Bundle, *, same: bool, progress: Progress) -> None:
    """Says where the events are not those of the fit; raises DatasetError if they are and yet split in another way."""
    if not same:
        progress.say("warning: the bundle was not trained on these very events; it may have seen held-out items")
        return
    account = bundle.manifest.training.get("split")
    if isinstance(account, dict) and account != exam.split.describe():
        raise DatasetError(
            f"{bundle.path}: the same events and settings give another split than its manifest tells of; train it again"
        )


def check_cold(exam: Exam, bundle: Bundle) -> None:
    """Raises DatasetError unless the split's cold items have no trace of events in the bundle."""
    if not len(exam.cold_rows):
        raise DatasetError(
            f"{bundle.path}: was trained without cold items, so --cold has none to test; "
            "train a bundle with --set split.cold_items=0.1"
        )
    account = bundle.manifest.training.get("split")
    held = account.get("cold_items_sha256") if isinstance(account, dict) else None
    residuals = bundle.item_residuals
    if held != exam.split.describe()["cold_items_sha256"] or residuals is None or residuals[exam.cold_rows].any():
        raise DatasetError(
            f"{bundle.path}: these events' cold items are not those that it was trained without; "
            "give the data that fit was given, or train again without --warm-start"
        )


def trained_with(training: dict[str, Any]) -> SplitConfig | None:
    """None if the manifest has no word of it. Moments are the fit's own: shares of other events would be others."""
    account, config = training.get("split"), training.get("config")
    if isinstance(account, str) and account.startswith("leave-one-out"):  # bundles of before there were other splits
        return SplitConfig()
    settings = config.get("split") if isinstance(config, dict) else None
    if not isinstance(settings, dict) or not isinstance(account, dict):
        return None
    moments = {name: account[name] for name in ("validation_from", "test_from") if account.get(name)}
    try:
        return SplitConfig.model_validate(settings | moments)
    except ValueError:
        return None
