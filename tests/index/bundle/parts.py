"""The arguments of write_bundle for two small bundles: bare vectors, and both towers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from index.bundle import BundleSpec
from tests.tiny import CATEGORIES, CATEGORY_SLOTS, EVENT_TYPES, tiny_items, tiny_towers

SPEC = BundleSpec(dim=8, history_length=10, event_types=EVENT_TYPES, time_features=True, category_slots=CATEGORY_SLOTS)
BARE = BundleSpec(dim=4, history_length=None, event_types={}, time_features=False)


def bare_parts(n_items: int = 3) -> dict[str, Any]:
    vectors = np.eye(4, dtype=np.float32)[np.arange(n_items) % 4]  # (N, 4) float32, unit rows
    return {"items": tiny_items(n_items), "item_vectors": vectors}


def tower_parts(n_items: int = 6) -> dict[str, Any]:
    """The arguments of a bundle with both towers, whose catalogue vectors come from the item tower."""
    towers = tiny_towers()
    items = tiny_items(n_items)
    residuals = np.zeros((n_items, 8), dtype=np.float32)
    codes = [[*(CATEGORIES[value] for value in row), 0] for row in items.column("categories").to_pylist()]
    inputs = (np.zeros((n_items, 0), dtype=np.float32), np.array(codes, dtype=np.int64), residuals)
    with torch.inference_mode():
        vectors = towers.item_tower.module()(*(torch.from_numpy(array) for array in inputs)).numpy()
    return {
        "items": items,
        "item_vectors": vectors,
        "item_residuals": residuals,
        "categories": CATEGORIES,
        "user_tower": towers.user_tower,
        "item_tower": towers.item_tower,
        "golden_user": towers.golden_user,
        "golden_item": towers.golden_item,
    }
