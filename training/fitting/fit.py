"""`python -m training fit`: read -> split -> encode text -> train -> export -> bundle."""

import hashlib
import json
import tempfile
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from index.bundle import BundleSpec, Watermark, check_target, write_bundle, write_card
from index.bundle.manifest import read_manifest
from training.config import Config
from training.data.catalogue import Catalogue, build_catalogue
from training.data.dataset import Dataset, dataset_sha256, read_dataset
from training.data.interactions import Interactions, load_interactions
from training.data.split import Split, make_split
from training.data.text import encode_texts, find_encoder, stage_encoder
from training.errors import ConfigError, DatasetError, Interrupted
from training.evaluation.card import card
from training.export.bundle import export_item_tower, export_user_tower, golden_items, golden_users
from training.fitting.checkpoint import Checkpoint, checkpoint_folder
from training.fitting.distributed import Ranks
from training.fitting.reporting import check_tensorboard
from training.fitting.trainer import History, train
from training.incremental.warm_start import Lesson, WarmStart, begin, check_settings, newest_event, shortened
from training.progress import Progress
from training.towers.pair import TowerPair


@dataclass(frozen=True)
class Running:
    """How a fit runs, beside what it trains."""

    ranks: Ranks = field(default_factory=Ranks)
    tensorboard: Path | None = None  # folder for curves
    restart: bool = False  # leave a checkpoint out of account and begin anew


@dataclass(frozen=True)
class Fitted:
    """What came of a fit; in a process that is not the first, which writes nothing, the release is ""."""

    release_id: str
    history: History
    drift: dict[str, Any] | None = None  # of a warm start: see training/incremental/drift.py


def fit(
    data: Path,
    out: Path,
    config: Config,
    progress: Progress,
    start: WarmStart | None = None,
    *,
    running: Running | None = None,
) -> Fitted:
    """Trains on the training part of the split (config.split) and writes the bundle at `out`.

    With `start` training goes on from there with what is new, a sample of what is not, and the same codes.
    Same data, config, machine and torch threads (set by the caller) give the same vectors, interrupted or not.
    """
    running = running or Running()
    if running.tensorboard is not None:
        check_tensorboard()
    check_target(out)  # before the hours, not after them
    given = _read(data, config, start)
    with tempfile.TemporaryDirectory() as folder:
        staged = None if given.encoder is None else stage_encoder(given.encoder, Path(folder))
        catalogue = _catalogue(given, config, staged, progress, running.ranks)
        pair, lesson = _build(given, catalogue, config)
        checkpoint = _checkpoint(out, given, catalogue, config, running)
        try:
            history = train(
                pair,
                given.split.data,
                given.split if lesson is None else lesson.split,
                config.training if lesson is None else shortened(config),
                history_length=config.towers.history_length,
                progress=progress,
                chosen=None if lesson is None else lesson.chosen,
                anchor=None if lesson is None else lesson.anchor,
                ranks=running.ranks,
                checkpoint=checkpoint,
                tensorboard=running.tensorboard,
            )
        except KeyboardInterrupt:
            if not checkpoint.folder.exists():
                raise
            raise Interrupted(f"the same command goes on from {checkpoint.folder}") from None
        if not running.ranks.first:
            return Fitted("", history)
        warm = {} if lesson is None else lesson.describe(pair, given.split.data, config.training.seed)
        progress.say("export the towers and write the bundle")
        training = _describe(given, config, history) | warm
        release = _write(out, _spec(given, catalogue, config, history, training), pair, given, catalogue, staged)
        write_card(out, card(*read_manifest(out)))
    checkpoint.remove()
    return Fitted(release, history, warm.get("drift"))


@dataclass(frozen=True)
class _Given:
    """What a fit reads before it trains."""

    dataset: Dataset
    events_sha256: str
    start: WarmStart | None
    taught_until: str | None
    interactions: Interactions
    split: Split
    time_features: bool
    encoder: Path | None  # of text
    counts: npt.NDArray[np.float64]  # (N,) training events of each item


def _read(data: Path, config: Config, start: WarmStart | None) -> _Given:
    dataset = read_dataset(data)
    until = newest_event(dataset)
    types = None
    if start is not None:
        check_settings(start, config)
        types = start.event_types(dataset.events.unique("event_type").to_pylist())
    time_features = _time_features(config, dataset) if start is None else start.time_features(dataset)
    interactions = load_interactions(dataset.events, dataset.items["item_id"], types)
    split = make_split(interactions, config.split, real_times=dataset.has_real_times)
    texts = dataset.items["text"].to_pylist()
    encoder = find_encoder(config.text.encoder, texts) if start is None else start.encoder(config.text, texts)
    events_sha256 = dataset_sha256(dataset.path)
    return _Given(dataset, events_sha256, start, until, interactions, split, time_features, encoder, split.counts())


def _build(given: _Given, catalogue: Catalogue, config: Config) -> tuple[TowerPair, Lesson | None]:
    """The towers as training begins with them, and for a warm start what it is taught."""
    start, trained = given.start, given.counts > 0
    rows = None if start is None else start.rows(given.dataset.items["item_id"])
    if start is not None and rows is not None:
        trained |= start.learnt(rows)
    torch.manual_seed(config.training.seed)
    pair = TowerPair(
        catalogue,
        config.towers,
        event_types=len(given.interactions.event_types),
        time_features=given.time_features,
        dropout=config.training.dropout,
        trained=trained,
    )
    return pair, None if start is None or rows is None else begin(start, pair, rows, given.split, config)


def _checkpoint(out: Path, given: _Given, catalogue: Catalogue, config: Config, running: Running) -> Checkpoint:
    """Beside the bundle; of this run alone: the same settings, events, items as the towers read them, and beginning."""
    items = hashlib.sha256(json.dumps(given.dataset.items["item_id"].to_pylist()).encode())
    items.update(np.ascontiguousarray(catalogue.text).data)
    items.update(np.ascontiguousarray(catalogue.codes).data)
    settings = config.model_dump()
    minutes = settings["training"].pop("checkpoint_minutes")
    run = {
        "events_sha256": given.events_sha256,
        "items_sha256": items.hexdigest(),
        "warm_start": None if given.start is None else [given.start.bundle.release_id, given.start.since_us],
        **settings,
    }
    checkpoint = Checkpoint(checkpoint_folder(out), run, minutes=minutes, ranks=running.ranks)
    if running.restart:
        checkpoint.remove()
    return checkpoint


def _watermark(dataset: Dataset) -> Watermark | None:
    """Up to where in a server's journal training saw, so that an erasure can name the bundle."""
    found = dataset.info.get("watermark")
    try:
        return None if found is None else Watermark.model_validate(found)
    except ValueError:
        raise DatasetError(
            f"{dataset.path / 'dataset.json'}: watermark is not an epoch and a position; run `python -m training import` again"
        ) from None


def _time_features(config: Config, dataset: Dataset) -> bool:
    if config.towers.time_features == "on" and not dataset.has_real_times:
        raise ConfigError("towers.time_features: on, but this data has only an order and no times; use auto or off")
    return config.towers.time_features != "off" and dataset.has_real_times


def _catalogue(given: _Given, config: Config, encoder: Path | None, progress: Progress, ranks: Ranks) -> Catalogue:
    items = given.dataset.items
    texts = items["text"].to_pylist()
    if encoder is None:
        vectors = np.zeros((len(texts), 0), dtype=np.float32)  # (N, 0) float32
    else:
        progress.say(f"encode the text of {sum(map(bool, texts)):,} items")
        encode = partial(encode_texts, encoder, texts, batch_size=config.text.batch_size, progress=progress)
        vectors = ranks.array_from_first(encode)  # (N, T) float32
    known = None if given.start is None else given.start.bundle.categories
    return build_catalogue(items, vectors, category_slots=config.towers.category_slots, known=known)


def _spec(given: _Given, catalogue: Catalogue, config: Config, history: History, training: dict[str, Any]) -> BundleSpec:
    return BundleSpec(
        dim=config.towers.dim,
        history_length=config.towers.history_length,
        event_types=given.interactions.event_types,
        time_features=given.time_features,
        text_dim=catalogue.text.shape[1],
        category_slots=catalogue.codes.shape[1],
        watermark=_watermark(given.dataset),
        offline_metrics={f"validation/filtered/{name}": value for name, value in history.best.items()},
        training=training,
    )


def _write(
    out: Path,
    spec: BundleSpec,
    pair: TowerPair,
    given: _Given,
    catalogue: Catalogue,
    encoder: Path | None,
) -> str:
    history_length = spec.history_length or 1
    seed = int(spec.training["seed"])
    with torch.inference_mode():
        vectors, residuals = pair.item_vectors().numpy(), pair.residuals().numpy()
    golden_user = golden_users(
        pair,
        history_length=history_length,
        event_types=len(spec.event_types),
        time_features=spec.time_features,
        seed=seed,
    )
    return write_bundle(
        out,
        spec,
        items=given.dataset.items.append_column("popularity", pa.array(given.counts)),
        item_vectors=vectors,
        item_residuals=residuals,
        categories=catalogue.vocabulary,
        user_tower=export_user_tower(pair.user, dim=spec.dim, history_length=history_length),
        item_tower=export_item_tower(pair.item, dim=spec.dim, text_dim=spec.text_dim, slots=spec.category_slots),
        golden_user=golden_user,
        golden_item=golden_items(pair, seed=seed),
        text_encoder=encoder,
    )


def _describe(given: _Given, config: Config, history: History) -> dict[str, Any]:
    info = given.dataset.info
    return {
        "seed": config.training.seed,
        "config": config.model_dump(),
        "dataset": {
            **{name: info.get(name) for name in ("kind", "source", "times", "counts")},
            "last_event": info.get("last_event") if given.dataset.has_real_times else None,
            "events_sha256": given.events_sha256,
        },
        "split": given.split.describe(),
        "epochs": history.epochs,
        "best_epoch": history.best_epoch,
        "seconds": round(history.seconds, 1),
        "versions": {name: version(name) for name in ("torch", "numpy", "pyarrow")},
        "taught_until": given.taught_until,
    }
