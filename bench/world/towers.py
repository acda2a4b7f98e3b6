"""The towers that training makes by default, with weights that were set instead of trained.

What matters to a load is kept: the same operators on the same shapes, and a user vector that lies among the items. The item
tower's categories are the clusters' centres. The user tower passes on the newest event and the mean of the history, with noise
in every weight.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from bench.world.items import DEPARTMENTS, MadeItems, category_codes
from index.bundle import BundleSpec, write_bundle
from training.config import TowerConfig
from training.data.catalogue import Catalogue
from training.export.bundle import export_item_tower, export_user_tower, golden_items, golden_users
from training.towers.item import ItemTower
from training.towers.pair import TowerPair
from training.towers.user import UserTower

EVENT_TYPES = {"view": 1, "cart": 2, "purchase": 3}
_NOISE = 0.02  # standard deviation of what is added to every weight of the user tower
_ROWS_AT_ONCE = 65_536
_GOLDEN_ITEMS = 1_000


def write_world_bundle(path: Path, made: MadeItems, table: pa.Table, seed: int) -> str:
    """Writes the bundle and returns its release id. Raises BundleError."""
    dim = made.centres.shape[1]
    config = TowerConfig(dim=dim, heads=2 if dim % 2 == 0 else 1)
    vocabulary, codes = category_codes(made)
    padded = np.zeros((len(codes), config.category_slots), dtype=np.int64)  # (N, C) int64
    padded[:, : codes.shape[1]] = codes
    pair, residuals = _towers(made, config, vocabulary, padded, seed)
    spec = BundleSpec(
        dim=dim,
        history_length=config.history_length,
        event_types=EVENT_TYPES,
        time_features=True,
        category_slots=config.category_slots,
        training={"seed": seed, "dataset": "bench.world"},
    )
    return write_bundle(
        path,
        spec,
        items=table,
        item_vectors=_vectors(pair.item, padded, residuals),
        item_residuals=residuals,
        categories=vocabulary,
        user_tower=export_user_tower(pair.user, dim=dim, history_length=config.history_length),
        item_tower=export_item_tower(pair.item, dim=dim, text_dim=0, slots=config.category_slots),
        golden_user=golden_users(
            pair, history_length=config.history_length, event_types=len(EVENT_TYPES), time_features=True, seed=seed
        ),
        golden_item=golden_items(pair, seed=seed),
    )


def _towers(
    made: MadeItems, config: TowerConfig, vocabulary: dict[str, int], codes: NDArray[np.int64], seed: int
) -> tuple[TowerPair, NDArray[np.float32]]:
    """Both towers over the first items, which golden rows are taken from, and (N, D) float32 residuals of all."""
    some = min(_GOLDEN_ITEMS, len(codes))
    catalogue = Catalogue(np.zeros((some, 0), dtype=np.float32), codes[:some], vocabulary)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pair = TowerPair(
            catalogue,
            config,
            event_types=len(EVENT_TYPES),
            time_features=True,
            dropout=0.0,
            trained=np.ones(some, dtype=np.bool_),
        ).eval()
        with torch.no_grad():
            _set_item_tower(pair.item, made)
            _set_user_tower(pair.user)
            gate = torch.sigmoid(pair.item.gate).numpy()
            residuals: NDArray[np.float32] = made.noise / gate
            pair.residual.copy_(torch.from_numpy(residuals[:some]))
    return pair, residuals


def _set_item_tower(tower: ItemTower, made: MadeItems) -> None:
    """Department and shelf, added up and divided by sqrt(2), are the centre of the shelf."""
    tower.category.weight[1 + DEPARTMENTS :] = 2**0.5 * torch.from_numpy(made.centres)
    tower.category.weight[1 : 1 + DEPARTMENTS] *= 0.1


def _set_user_tower(tower: UserTower) -> None:
    dim = tower.out.in_features
    same = torch.eye(dim)
    for parameter in tower.parameters():
        parameter.add_(_NOISE * torch.randn_like(parameter))
    for module in tower.blocks:
        values = module.get_submodule("key_value").get_parameter("weight")
        mix = module.get_submodule("mix").get_parameter("weight")
        values[dim:] = same + _NOISE * torch.randn(dim, dim)
        mix.copy_(same + _NOISE * torch.randn(dim, dim))
        module.get_submodule("contract").get_parameter("weight").mul_(0.2)
    tower.out.weight.copy_(same + _NOISE * torch.randn(dim, dim))
    tower.event_type.weight[0] = 0.0


def _vectors(tower: ItemTower, codes: NDArray[np.int64], residuals: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, D) float32 unit rows, some at a time: the tower looks up (n, C, D) floats."""
    vectors = np.empty_like(residuals)
    with torch.inference_mode():
        for start in range(0, len(codes), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            parts = torch.from_numpy(codes[rows]), torch.from_numpy(residuals[rows])
            vectors[rows] = tower(torch.zeros(len(parts[0]), 0), *parts).numpy()
    return vectors
