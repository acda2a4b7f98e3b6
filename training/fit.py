"""`python -m training fit`: read -> split -> encode text -> train -> export -> bundle."""

import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from index.bundle import BundleSpec, Watermark, write_bundle
from training.catalogue import Catalogue, build_catalogue
from training.config import Config
from training.dataset import Dataset, dataset_sha256, read_dataset
from training.errors import ConfigError, DatasetError
from training.export import export_item_tower, export_user_tower, golden_items, golden_users
from training.interactions import Interactions, LeaveOneOut, leave_one_out, load_interactions
from training.progress import Progress
from training.text import encode_texts, find_encoder, stage_encoder
from training.towers.pair import TowerPair
from training.trainer import History, train


@dataclass(frozen=True)
class Fitted:
    """What came of a fit."""

    release_id: str
    history: History


def fit(data: Path, out: Path, config: Config, progress: Progress) -> Fitted:
    """Trains on the training part of the leave-one-out split and writes the bundle at `out`.

    Same data, config, machine and torch threads (set by the caller) give the same vectors.
    """
    if out.exists() and not (out / "manifest.json").is_file():  # before the hours, not after them
        raise ConfigError(f"{out}: exists and is not a bundle; remove it or give another path")
    dataset = read_dataset(data)
    time_features = _time_features(config, dataset)
    interactions = load_interactions(dataset.events, dataset.items["item_id"])
    split = leave_one_out(interactions)
    encoder = find_encoder(config.text.encoder, dataset.items["text"].to_pylist())
    with tempfile.TemporaryDirectory() as folder:
        staged = None if encoder is None else stage_encoder(encoder, Path(folder))
        catalogue = _catalogue(dataset, config, staged, progress)
        counts = training_counts(interactions, split)
        torch.manual_seed(config.training.seed)
        pair = TowerPair(
            catalogue,
            config.towers,
            event_types=len(interactions.event_types),
            time_features=time_features,
            dropout=config.training.dropout,
            trained=counts > 0,
        )
        length = config.towers.history_length
        history = train(pair, interactions, split, config.training, history_length=length, progress=progress)
        progress.say("export the towers and write the bundle")
        spec = BundleSpec(
            dim=config.towers.dim,
            history_length=length,
            event_types=interactions.event_types,
            time_features=time_features,
            text_dim=catalogue.text.shape[1],
            category_slots=catalogue.codes.shape[1],
            watermark=_watermark(dataset),
            offline_metrics={f"validation/filtered/{name}": value for name, value in history.best.items()},
            training=_describe(dataset, config, history),
        )
        release = _write(out, spec, pair, dataset, catalogue, counts, staged)
    return Fitted(release, history)


def training_counts(data: Interactions, split: LeaveOneOut) -> npt.NDArray[np.float64]:
    """(N,) float64: events of each item in the training part; what the bundle calls popularity."""
    trained = np.arange(len(data.item)) < split.train_end[data.user]
    return np.bincount(data.item[trained], minlength=data.items).astype(np.float64)


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


def _catalogue(dataset: Dataset, config: Config, encoder: Path | None, progress: Progress) -> Catalogue:
    texts = dataset.items["text"].to_pylist()
    if encoder is None:
        vectors = np.zeros((len(texts), 0), dtype=np.float32)  # (N, 0) float32
    else:
        progress.say(f"encode the text of {sum(map(bool, texts)):,} items")
        vectors = encode_texts(encoder, texts, batch_size=config.text.batch_size, progress=progress)
    return build_catalogue(dataset.items, vectors, category_slots=config.towers.category_slots)


def _write(
    out: Path,
    spec: BundleSpec,
    pair: TowerPair,
    dataset: Dataset,
    catalogue: Catalogue,
    popularity: npt.NDArray[np.float64],
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
        items=dataset.items.append_column("popularity", pa.array(popularity)),
        item_vectors=vectors,
        item_residuals=residuals,
        categories=catalogue.vocabulary,
        user_tower=export_user_tower(pair.user, dim=spec.dim, history_length=history_length),
        item_tower=export_item_tower(pair.item, dim=spec.dim, text_dim=spec.text_dim, slots=spec.category_slots),
        golden_user=golden_user,
        golden_item=golden_items(pair, seed=seed),
        text_encoder=encoder,
    )


def _describe(dataset: Dataset, config: Config, history: History) -> dict[str, Any]:
    return {
        "seed": config.training.seed,
        "config": config.model_dump(),
        "dataset": {
            **{name: dataset.info.get(name) for name in ("kind", "source", "times", "counts")},
            "events_sha256": dataset_sha256(dataset.path),
        },
        "split": "leave-one-out: validation and test targets were not trained on",
        "epochs": history.epochs,
        "best_epoch": history.best_epoch,
        "seconds": round(history.seconds, 1),
        "versions": {name: version(name) for name in ("torch", "numpy", "pyarrow")},
    }
