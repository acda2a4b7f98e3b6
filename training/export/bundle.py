"""Trained towers -> exported programs and golden rows, as the bundle holds them."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from index.bundle import GoldenItem, GoldenUser
from training.towers.item import ItemTower
from training.towers.pair import TowerPair
from training.towers.user import UserTower

GOLDEN_ITEMS = 16


def export_user_tower(tower: UserTower, *, dim: int, history_length: int) -> ExportedProgram:
    """(B, L, D), (B, L), (B, L), (B,) -> (B, D); B and L are free, 1 <= L <= history_length."""
    rows, width = Dim("rows", min=1, max=1 << 20), Dim("width", min=1, max=history_length)
    length = torch.tensor([min(3, history_length), 1])
    size = (2, max(2, min(3, history_length)))
    example = (torch.zeros(*size, dim), torch.zeros(size, dtype=torch.int64), torch.zeros(size), length)
    shapes = ({0: rows, 1: width}, {0: rows, 1: width}, {0: rows, 1: width}, {0: rows})
    return torch.export.export(tower.eval(), example, dynamic_shapes=shapes, strict=False)


def export_item_tower(tower: ItemTower, *, dim: int, text_dim: int, slots: int) -> ExportedProgram:
    """(N, T), (N, C), (N, D) -> (N, D); N is free."""
    rows = Dim("rows", min=1, max=1 << 24)
    example = (torch.zeros(2, text_dim), torch.zeros(2, slots, dtype=torch.int64), torch.zeros(2, dim))
    return torch.export.export(tower.eval(), example, dynamic_shapes=({0: rows},) * 3, strict=False)


def golden_users(pair: TowerPair, *, history_length: int, event_types: int, time_features: bool, seed: int) -> GoldenUser:
    """One row of every length 1 … L_max over random items; every event type occurs, the unknown one (0) too."""
    random = np.random.default_rng(seed)
    length = np.arange(1, history_length + 1)
    real = np.arange(history_length) < length[:, None]  # (B, L) bool, B = L = L_max
    with torch.inference_mode():
        items = pair.item_vectors().numpy()
    history = items[random.integers(0, len(items), real.shape)] * real[:, :, None]  # (B, L, D) float32
    kind = np.where(real, random.integers(0, event_types + 1, real.shape), 0)
    kind[-1, : event_types + 1] = np.arange(min(event_types + 1, history_length))
    gaps = np.where(real, 10 ** random.uniform(-1, 6, real.shape), 0.0)  # seconds, from moments to days
    gaps[np.arange(len(length)), length - 1] = 0
    seconds = np.cumsum(gaps[:, ::-1], axis=1)[:, ::-1] * real if time_features else np.zeros(real.shape)
    inputs = GoldenUser(
        history=np.ascontiguousarray(history, dtype=np.float32),
        event_type=np.ascontiguousarray(kind, dtype=np.int64),
        seconds_before_newest=np.ascontiguousarray(seconds, dtype=np.float32),
        length=length.astype(np.int64),
        vectors=np.empty((0, items.shape[1]), dtype=np.float32),
    )
    with torch.inference_mode():
        vectors = pair.user(
            torch.from_numpy(inputs.history),
            torch.from_numpy(inputs.event_type),
            torch.from_numpy(inputs.seconds_before_newest),
            torch.from_numpy(inputs.length),
        )
    return replace(inputs, vectors=vectors.numpy())


def golden_items(pair: TowerPair, *, seed: int) -> GoldenItem:
    """Some items as they are, then the same as new items (residual 0), without categories, and with nothing at all."""
    count = len(pair.codes)
    rows = np.sort(np.random.default_rng(seed).choice(count, size=min(GOLDEN_ITEMS, count), replace=False))
    chosen = torch.from_numpy(rows)
    with torch.inference_mode():
        text, codes, residual = pair.text[chosen], pair.codes[chosen], pair.residuals()[chosen]
        variants: list[tuple[Tensor, Tensor, Tensor]] = [
            (text, codes, residual),
            (text, codes, torch.zeros_like(residual)),
            (text, torch.zeros_like(codes), residual),
            (torch.zeros_like(text), torch.zeros_like(codes), torch.zeros_like(residual)),
        ]
        texts, categories, residuals = (torch.cat(parts) for parts in zip(*variants, strict=True))
        vectors = pair.item(texts, categories, residuals)
    return GoldenItem(texts.numpy(), categories.numpy(), residuals.numpy(), vectors.numpy())
