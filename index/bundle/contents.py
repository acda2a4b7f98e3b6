"""A bundle in memory, and the two things it can compute: user vectors and item vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch.export import ExportedProgram

from index.bundle.catalogue import category_codes
from index.bundle.format import Manifest


@dataclass(frozen=True)
class Bundle:
    """What `read_bundle` returns: all of a bundle on the CPU, row i of every array being row i of `items`.

    The modules are callables on tensors as design and manifest name them; `tower_module(program, device)` gives one for
    another device. `text_encoder` is a path for `load_text_encoder`, loaded only by those who need it.
    """

    path: Path
    manifest: Manifest
    release_id: str
    items: pa.Table
    item_vectors: NDArray[np.float32]  # (N, D) float32, unit rows
    item_residuals: NDArray[np.float32] | None  # (N, D) float32
    categories: dict[str, int]
    user_tower: torch.nn.Module | None
    item_tower: torch.nn.Module | None
    user_program: ExportedProgram | None
    item_program: ExportedProgram | None
    text_encoder: Path | None

    @cached_property
    def item_ids(self) -> list[str]:
        """The ids in row order. Made when it is first asked for: a million ids take a tenth of a second."""
        ids: list[str] = self.items.column("item_id").to_pylist()
        return ids

    def category_codes(self, values: Sequence[str]) -> list[int]:
        """Codes of an item's categories: unknown ones dropped, the first C kept, padded with 0 to exactly C."""
        return category_codes(self.categories, values, self.manifest.category_slots)

    def encode_users(
        self,
        history: NDArray[np.float32],
        event_type: NDArray[np.int64],
        seconds_before_newest: NDArray[np.float32],
        length: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        """(B, D) float32 unit rows from (B, L, D) f32, (B, L) i64, (B, L) f32 and (B,) i64.

        History oldest first, right-padded with zeros, 1 <= length <= L <= L_max. Raises ValueError for other shapes or
        a bundle without a user tower.
        """
        if self.user_tower is None or self.manifest.history_length is None:
            raise ValueError("this bundle has no user tower")
        rows, width = np.shape(event_type) if np.ndim(event_type) == 2 else (-1, -1)
        if not 1 <= width <= self.manifest.history_length:
            raise ValueError(f"history length {width} is not between 1 and {self.manifest.history_length}")
        inputs = (
            _tensor(history, (rows, width, self.manifest.dim), np.float32),
            _tensor(event_type, (rows, width), np.int64),
            _tensor(seconds_before_newest, (rows, width), np.float32),
            _tensor(length, (rows,), np.int64),
        )
        if rows and not (inputs[3].min() >= 1 and inputs[3].max() <= width):
            raise ValueError(f"every length must be between 1 and {width}")
        return _run(self.user_tower, inputs, rows, self.manifest.dim)

    def encode_items(
        self, text: NDArray[np.float32], categories: NDArray[np.int64], residual: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """(N, D) float32 unit rows from (N, T) f32, (N, C) i64 and (N, D) f32; a new item's residual is zeros.

        Raises ValueError for other shapes or a bundle without an item tower.
        """
        if self.item_tower is None:
            raise ValueError("this bundle has no item tower")
        rows = len(categories)
        inputs = (
            _tensor(text, (rows, self.manifest.text.dim), np.float32),
            _tensor(categories, (rows, self.manifest.category_slots), np.int64),
            _tensor(residual, (rows, self.manifest.dim), np.float32),
        )
        return _run(self.item_tower, inputs, rows, self.manifest.dim)


def _tensor(array: NDArray[Any], shape: tuple[int, ...], dtype: type) -> torch.Tensor:
    if np.shape(array) != shape:
        raise ValueError(f"expected an array of shape {shape}, not {np.shape(array)}")
    return torch.from_numpy(np.array(array, dtype=dtype, order="C"))  # a copy: torch refuses read-only memory


def _run(tower: torch.nn.Module, inputs: tuple[torch.Tensor, ...], rows: int, dim: int) -> NDArray[np.float32]:
    if rows == 0:
        return np.zeros((0, dim), dtype=np.float32)
    with torch.inference_mode():
        vectors: torch.Tensor = tower(*inputs)  # (rows, D) float32
    return vectors.cpu().numpy()
