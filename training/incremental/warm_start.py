"""Warm start: a pair of towers that begins where a bundle ended.

The weights are read back from the bundle's exported towers, the residuals by item id. Vocabularies only grow: what the
bundle knows keeps its code, what is new gets a row of zeros, which is how the live release treats it until now.
"""

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from index.bundle import Bundle, read_bundle, text_encoder_sha256
from training.config import Config, SplitConfig, TextConfig, TrainingConfig
from training.data.catalogue import extended
from training.data.dataset import Dataset
from training.data.interactions import BoolArray, IntArray, Interactions, pieces
from training.data.spill import ArrayBuilder
from training.data.split import Split
from training.data.text import find_encoder, stage_encoder
from training.errors import ConfigError, NothingNewError
from training.evaluation.trained_on import trained_with
from training.incremental.anchor import Anchor, drop_anchor
from training.incremental.drift import measure_drift
from training.incremental.replay import replayed, taught_before, untaught
from training.towers.pair import TowerPair

AFRESH = "fit without --warm-start"
# Settings of `training` that a warm start replaces -> theirs in `warm_start`.
REPLACED = {"epochs": "epochs", "positions": "positions", "learning_rate": "learning_rate", "residual_rate": "new_item_rate"}


@dataclass(frozen=True)
class WarmStart:
    """A bundle with both towers, to begin from. `since_us`: the newest event it was taught, microseconds since 1970."""

    bundle: Bundle
    item_program: ExportedProgram
    user_program: ExportedProgram
    since_us: int

    def time_features(self, dataset: Dataset) -> bool:
        """As the bundle has it. Raises ConfigError where it reads times that this data does not have."""
        if self.bundle.manifest.time_features and not dataset.has_real_times:
            raise ConfigError(f"{self.bundle.path}: reads times, but this data has only an order; {AFRESH}")
        return self.bundle.manifest.time_features

    def encoder(self, config: TextConfig, texts: list[str]) -> Path | None:
        """The bundle's own text encoder, unless another one is asked for, which must be the same. Raises ConfigError."""
        saved = settings_of(self.bundle).get("text", {}).get("encoder")
        if config.encoder == saved:
            return self.bundle.text_encoder
        found = find_encoder(config.encoder, texts)
        with tempfile.TemporaryDirectory() as folder:
            digest = None if found is None else text_encoder_sha256(stage_encoder(found, Path(folder)))
        theirs = self.bundle.manifest.text.encoder_sha256
        if digest != theirs:
            names = [f"text encoder {one[:16]}" if one else "no text encoder" for one in (digest, theirs)]
            raise ConfigError(
                f"{names[0]} is asked for, but {self.bundle.path} was trained with {names[1]}; "
                f"leave --text-encoder out, or {AFRESH}"
            )
        return found

    def event_types(self, names: Iterable[str]) -> dict[str, int]:
        """The bundle's codes, then those of other names."""
        return extended(self.bundle.manifest.event_types, names)

    def rows(self, item_ids: pa.ChunkedArray) -> IntArray:
        """(N,) int64: each item's row in the bundle, -1 = new."""
        found = pc.fill_null(pc.index_in(item_ids, value_set=self.bundle.items["item_id"].combine_chunks()), -1)
        return found.to_numpy().astype(np.int64)  # type: ignore[no-any-return]

    def load_into(self, pair: TowerPair, rows: IntArray, *, new_item_rate: float = 1.0) -> None:
        """Gives `pair` the bundle's weights; `rows` (N,) int64 are its items' rows in the bundle, -1 = new: residual 0.

        Residuals that the bundle has are kept divided by `new_item_rate` and multiplied where they are read, so that at a
        learning rate that is so many times as high they learn as fast as all else, and new items' that much faster.
        """
        _load(pair.item, self.item_program, self.bundle.path, grows="category.weight")
        _load(pair.user, self.user_program, self.bundle.path, grows="event_type.weight")
        known = rows >= 0
        residual = np.zeros(tuple(pair.residual.shape), dtype=np.float32)  # (N, D) float32
        if self.bundle.item_residuals is not None:
            residual[known] = self.bundle.item_residuals[rows[known]]
        scale = torch.from_numpy(np.where(self.learnt(rows), 1.0 / new_item_rate, 1.0).astype(np.float32)[:, None])  # (N, 1)
        with torch.no_grad():
            pair.residual.copy_(torch.from_numpy(residual) / scale)
            pair.residual_scale.mul_(scale)

    def learnt(self, rows: IntArray) -> BoolArray:
        """(N,) bool: items to which the bundle gives a residual, which stays theirs without any further event."""
        residuals = self.bundle.item_residuals
        if residuals is None:
            return np.zeros(len(rows), dtype=np.bool_)
        learnt: BoolArray = (rows >= 0) & np.any(residuals[rows], axis=1)
        return learnt


def read_start(path: Path, since: str | None = None) -> WarmStart:
    """Reads a bundle that `fit` wrote; `since` is a time in ISO 8601 instead of the bundle's own.

    Raises BundleError, and ConfigError for a bundle that is no beginning.
    """
    bundle = read_bundle(path)
    if bundle.user_program is None or bundle.item_program is None:
        raise ConfigError(f"{path}: has no towers to start from; {AFRESH}")
    for name, codes in (("event types", bundle.manifest.event_types), ("categories", bundle.categories)):
        if sorted(codes.values()) != list(range(1, len(codes) + 1)):
            raise ConfigError(f"{path}: the codes of its {name} have gaps, so fit did not write it; {AFRESH}")
    return WarmStart(bundle, bundle.item_program, bundle.user_program, _since(bundle, since))


def settings_of(bundle: Bundle) -> dict[str, dict[str, Any]]:
    """The settings that the bundle was trained with, as far as they still exist: what a warm start begins from."""
    saved = bundle.manifest.training.get("config")
    kept: dict[str, dict[str, Any]] = {}
    for section, field in Config.model_fields.items():
        values = saved.get(section) if isinstance(saved, dict) else None
        known = getattr(field.annotation, "model_fields", {})
        if isinstance(values, dict):
            kept[section] = {name: value for name, value in values.items() if name in known}
    return kept


def check_settings(start: WarmStart, config: Config) -> None:
    """Refuses what a warm start cannot change, naming the setting: sizes, what is held out, and what it has of its own.

    Raises ConfigError.
    """
    manifest, saved = start.bundle.manifest, settings_of(start.bundle)
    sizes = {"dim": manifest.dim, "history_length": manifest.history_length}
    sizes |= {name: value for name, value in saved.get("towers", {}).items() if name != "time_features"}
    for name, value in sizes.items():
        if getattr(config.towers, name) != value:
            raise ConfigError(
                f"towers.{name}: {getattr(config.towers, name)}, but the towers in {start.bundle.path} have {value}; "
                f"leave it out, or {AFRESH}"
            )
    for name, value in saved.get("split", {}).items():
        if getattr(config.split, name) != value:
            raise ConfigError(
                f"split.{name}: {getattr(config.split, name)}, but {start.bundle.path} was trained with {value} and has been "
                f"taught what another split holds out; leave it out, or {AFRESH}"
            )
    before = TrainingConfig().model_dump() | saved.get("training", {})
    for name, replacing in REPLACED.items():
        if getattr(config.training, name) != before[name]:
            raise ConfigError(f"training.{name}: a warm start has its own; set warm_start.{replacing}")


@dataclass(frozen=True)
class Lesson:
    """What a warm start is trained on, and what it holds on to."""

    start: WarmStart
    rows: IntArray  # (N,) int64, the items' rows in the bundle, -1 = new
    chosen: BoolArray  # (E,) bool, events that may be targets
    split: Split  # without the targets that the bundle was taught
    counts: dict[str, int]
    anchor: Anchor | None

    def describe(self, pair: TowerPair, data: Interactions, seed: int) -> dict[str, Any]:
        """The manifest's account: where it began, and how far `pair` is from there now."""
        since = _iso(self.start.since_us)
        return {
            "warm_start": {"release_id": self.start.bundle.release_id, "new_since": since, **self.counts},
            "drift": measure_drift(self.start.bundle, pair, data, self.rows, self.start.learnt(self.rows), seed=seed),
        }


def begin(start: WarmStart, pair: TowerPair, rows: IntArray, split: Split, config: Config) -> Lesson:
    """Puts `pair` where the bundle ended and chooses the targets: all that are new to it, and a sample of the others.

    Raises NothingNewError where nothing is new.
    """
    data = split.data
    taught_end = _taught_end(start, data)
    again = replayed(data, start.since_us, share=config.warm_start.replay, seed=config.training.seed)
    kept = untaught(split, taught_end)
    counts = {
        "new_events": int(np.maximum(split.train_end - taught_end, 0).sum()),
        "replayed_events": int((np.minimum(split.train_end, taught_end) - data.offsets[:-1])[again].sum()),
        "taught_validation_users": int((split.validation != kept.validation).sum()),
        "taught_test_users": int((split.test != kept.test).sum()),
    }
    if not counts["new_events"]:
        raise NothingNewError(f"nothing to learn that {start.bundle.path} was not taught; export and import newer events")
    chosen = ArrayBuilder(np.bool_)
    for part in pieces(data.offsets):
        rows_here = np.arange(part.rows.start, part.rows.stop)
        chosen.append((rows_here >= taught_end[part.user]) | again[part.user])
    start.load_into(pair, rows, new_item_rate=config.warm_start.new_item_rate)
    anchor = drop_anchor(pair, np.flatnonzero(start.learnt(rows)), config.warm_start.anchor)
    return Lesson(start, rows, chosen.finish(), kept, counts, anchor)


def _taught_end(start: WarmStart, data: Interactions) -> IntArray:
    """(U,) int64: see `taught_before`. Raises ConfigError for a moment at which the bundle's split cannot have been."""
    try:
        return taught_before(data, start.since_us, trained_with(start.bundle.manifest.training) or SplitConfig())
    except ConfigError as error:
        raise ConfigError(
            f"--new-since {_iso(start.since_us)}: {start.bundle.path} cannot have been trained up to there "
            f"({error}); leave it out, or give a later time"
        ) from error


def shortened(config: Config) -> TrainingConfig:
    """The optimisation of a warm start: fewer epochs, from a lower learning rate."""
    new = config.warm_start.model_dump(include={"epochs", "positions", "learning_rate"})
    new["final_learning_rate"] = min(config.warm_start.learning_rate, config.training.final_learning_rate)
    new["residual_rate"] = config.warm_start.new_item_rate
    return config.training.model_copy(update=new)


def taught_until(bundle: Bundle) -> int | None:
    """Up to when `fit` was taught, microseconds since 1970, as the manifest says; None if it does not."""
    text = bundle.manifest.training.get("taught_until")
    return None if text is None else round(datetime.fromisoformat(str(text)).timestamp() * 1e6)


def newest_event(dataset: Dataset) -> str | None:
    """ISO 8601: what a bundle that is fitted now is taught up to.

    Not later than the import: one event from a clock that is ahead must not make those that come in before it look old.
    """
    text = dataset.info.get("last_past_event") or dataset.info.get("last_event")  # null where all are later
    if text is None or not dataset.has_real_times:
        return None
    return min(datetime.fromisoformat(text), datetime.now(UTC)).isoformat()


def _iso(time_us: int) -> str:
    return datetime.fromtimestamp(time_us / 1e6, UTC).isoformat()


def _since(bundle: Bundle, given: str | None) -> int:
    if given is None:
        since = taught_until(bundle)
        if since is None:
            raise ConfigError(f"{bundle.path}: does not say up to when it was trained; give --new-since TIME, or {AFRESH}")
        return since
    try:
        moment = datetime.fromisoformat(given)
    except ValueError:
        raise ConfigError(f"--new-since {given}: write a day or a time, such as 2026-11-26 or 2026-11-26T08:00:00Z") from None
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1e6)


def _load(tower: nn.Module, program: ExportedProgram, path: Path, *, grows: str) -> None:
    """Copies the program's weights by name; only the table `grows` may have more rows here, which become zeros."""
    ours, theirs = tower.state_dict(), program.state_dict
    different = sorted(ours.keys() ^ theirs.keys()) or [
        name for name in ours if not _fits(ours[name], theirs[name], name == grows)
    ]
    if different:
        raise ConfigError(f"{path}: its towers are built otherwise ({different[0]}), so nothing can start from them; {AFRESH}")
    with torch.no_grad():
        for name, weight in ours.items():
            weight[: len(theirs[name])] = theirs[name]
            weight[len(theirs[name]) :] = 0.0


def _fits(ours: Tensor, theirs: Tensor, may_grow: bool) -> bool:
    rows = len(ours) >= len(theirs) if may_grow else len(ours) == len(theirs)
    return rows and ours.shape[1:] == theirs.shape[1:] and ours.dtype == theirs.dtype
