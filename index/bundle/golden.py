"""golden.safetensors: raw inputs of the towers and the vectors they must give, on every machine, to 1e-5."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.bundle.errors import BundleInvalidError
from index.bundle.format import GOLDEN, GoldenItem, GoldenUser, Manifest
from index.bundle.tensors import check_array, check_unit_rows, load_tensors, tensor_bytes

LEAST_ROWS = 4
_CURE = "write golden rows that cover this, see index.bundle.GoldenUser and GoldenItem"


def golden_bytes(user: GoldenUser | None, item: GoldenItem) -> bytes:
    """Bytes of a safetensors file with `user_` and `item_` before the names of the fields."""
    arrays = {f"item_{name}": array for name, array in _arrays(item).items()}
    if user is not None:
        arrays |= {f"user_{name}": array for name, array in _arrays(user).items()}
    return tensor_bytes(arrays)


def load_golden(data: bytes, manifest: Manifest) -> tuple[GoldenUser | None, GoldenItem]:
    """The golden rows in the file, after checks of names, shapes, dtypes, values and of what they must cover."""
    arrays = load_tensors(data, GOLDEN)
    has_user = manifest.history_length is not None
    wanted = {f"item_{field.name}" for field in fields(GoldenItem)}
    wanted |= {f"user_{field.name}" for field in fields(GoldenUser)} if has_user else set()
    if set(arrays) != wanted:
        names = sorted(set(arrays) ^ wanted)
        raise BundleInvalidError(GOLDEN, f"has other arrays than its towers need ({', '.join(names)})", _CURE)
    item = GoldenItem(**{field.name: arrays[f"item_{field.name}"] for field in fields(GoldenItem)})
    _check_item(item, manifest)
    if not has_user:
        return None, item
    user = GoldenUser(**{field.name: arrays[f"user_{field.name}"] for field in fields(GoldenUser)})
    _check_user(user, manifest)
    return user, item


def _arrays(golden: GoldenUser | GoldenItem) -> dict[str, NDArray[Any]]:
    return {field.name: getattr(golden, field.name) for field in fields(golden)}


def _check_item(item: GoldenItem, manifest: Manifest) -> None:
    rows = len(item.vectors)
    check_array(item.text, GOLDEN, "item_text", (rows, manifest.text.dim), np.float32)
    check_array(item.categories, GOLDEN, "item_categories", (rows, manifest.category_slots), np.int64)
    check_array(item.residual, GOLDEN, "item_residual", (rows, manifest.dim), np.float32)
    check_array(item.vectors, GOLDEN, "item_vectors", (rows, manifest.dim), np.float32)
    check_unit_rows(item.vectors, GOLDEN, "item_vectors")
    _require(rows >= LEAST_ROWS, f"has {rows} item rows, needs {LEAST_ROWS}")
    _require(bool((item.categories == 0).all(axis=1).any()), "has no item without categories (codes all 0)")
    _require(bool((item.residual == 0).all(axis=1).any()), "has no item without a residual (all 0)")
    _require(bool((item.categories >= 0).all()), "has a negative category code")


def _check_user(user: GoldenUser, manifest: Manifest) -> None:
    longest = manifest.history_length or 0
    rows, width = len(user.vectors), int(user.event_type.shape[-1]) if user.event_type.ndim == 2 else -1
    check_array(user.history, GOLDEN, "user_history", (rows, width, manifest.dim), np.float32)
    check_array(user.event_type, GOLDEN, "user_event_type", (rows, width), np.int64)
    check_array(user.seconds_before_newest, GOLDEN, "user_seconds_before_newest", (rows, width), np.float32)
    check_array(user.length, GOLDEN, "user_length", (rows,), np.int64)
    check_array(user.vectors, GOLDEN, "user_vectors", (rows, manifest.dim), np.float32)
    check_unit_rows(user.vectors, GOLDEN, "user_vectors")
    _require(rows >= LEAST_ROWS, f"has {rows} user rows, needs {LEAST_ROWS}")
    _require(1 <= width <= longest, f"has histories of width {width}, not 1 to {longest}")
    _require(bool(((user.length >= 1) & (user.length <= width)).all()), f"has a user_length outside 1 to {width}")
    _require(bool((user.length == 1).any()), "has no user row of length 1")
    _require(bool((user.length == longest).any()), f"has no user row of length {longest}, the history_length")
    _check_events(user, manifest, np.arange(width)[None, :] < user.length[:, None])


def _check_events(user: GoldenUser, manifest: Manifest, real: NDArray[np.bool_]) -> None:
    """`real` (B, L) bool: which columns are events, the others being padding."""
    seconds, rows = user.seconds_before_newest, np.arange(len(user.length))
    known = [0, *manifest.event_types.values()]
    _require(bool(np.isin(user.event_type, known).all()), "has an event type that the manifest does not list")
    _require(bool((user.event_type[real] == 0).any()), "has no event of unknown type (0)")
    _require(bool((user.history[~real] == 0).all()), "has a history that is not padded with zeros")
    _require(bool((user.event_type[~real] == 0).all()), "has event types that are not padded with zeros")
    _require(bool((seconds[~real] == 0).all()), "has seconds_before_newest that are not padded with zeros")
    _require(bool((seconds >= 0).all()), "has negative seconds_before_newest")
    _require(bool((seconds[rows, user.length - 1] == 0).all()), "has a newest event that is not 0 seconds old")
    _require(manifest.time_features or not seconds.any(), "has seconds_before_newest although time_features is off")


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise BundleInvalidError(GOLDEN, problem, _CURE)
