"""The checks that run a bundle: its towers on golden rows, on padding, on every code its vocabularies hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.bundle.contents import Bundle
from index.bundle.errors import BundleInvalidError
from index.bundle.format import (
    GOLDEN,
    GOLDEN_TOLERANCE,
    ITEM_TOWER,
    ITEM_VECTORS,
    USER_TOWER,
    GoldenItem,
    GoldenUser,
    Manifest,
)
from index.bundle.tensors import check_array, check_unit_rows

REENCODED_TOLERANCE = 1e-3  # catalogue vectors may come from another device than the one that checks
REENCODED_ROWS = 256
ALONE_ROWS = 16
_CURE = "export the towers again and write golden rows from them"


@dataclass(frozen=True)
class BundleReport:
    """What `check_bundle` found in order: (check, detail) pairs, all passed. `str()` is for a terminal."""

    release_id: str
    manifest: Manifest
    checks: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        kept, text = self.manifest, self.manifest.text
        types = ", ".join(sorted(kept.event_types, key=lambda name: kept.event_types[name])) or "none"
        encoder = " with encoder" if text.encoder else ""
        lines = [
            f"release {self.release_id}, format {kept.format_version}, created {kept.created_at.isoformat()}",
            f"dim {kept.dim}, history {kept.history_length or 'none'}, event types {types}",
            f"text {text.dim or 'none'}{encoder}, categories up to {kept.category_slots}",
        ]
        lines += [f"ok  {name}: {detail}" for name, detail in self.checks]
        return "\n".join(lines)


def check_golden_item(bundle: Bundle, golden: GoldenItem) -> str:
    """The item tower on its golden rows, together and one by one, and on the greatest category code."""
    inputs = (golden.text, golden.categories, golden.residual)
    vectors = _run(ITEM_TOWER, bundle.encode_items, *inputs)
    worst = _compare(golden.vectors, vectors, ITEM_TOWER, "golden item rows", GOLDEN_TOLERANCE)
    for row in range(min(len(vectors), ALONE_ROWS)):
        alone = _run(ITEM_TOWER, bundle.encode_items, *(array[row : row + 1] for array in inputs))
        _compare(golden.vectors[row : row + 1], alone, ITEM_TOWER, f"golden item row {row} alone", GOLDEN_TOLERANCE)
    greatest = max(bundle.categories.values(), default=0)
    if golden.categories.max() > greatest:
        problem = f"has category code {golden.categories.max()}, the vocabulary ends at {greatest}"
        raise BundleInvalidError(GOLDEN, problem, _CURE)
    probe = np.full_like(golden.categories[:1], greatest)  # (1, C) int64
    probed = _run(ITEM_TOWER, bundle.encode_items, golden.text[:1], probe, golden.residual[:1])
    _check_vectors(probed, ITEM_TOWER, bundle)
    return f"{len(vectors)} rows within {worst:.1e}, category codes to {greatest}"


def check_golden_user(bundle: Bundle, golden: GoldenUser) -> str:
    """The user tower on its golden rows: together, cut to their own length, padded further, and on every event type."""
    inputs = (golden.history, golden.event_type, golden.seconds_before_newest)
    vectors = _run(USER_TOWER, bundle.encode_users, *inputs, golden.length)
    worst = _compare(golden.vectors, vectors, USER_TOWER, "golden user rows", GOLDEN_TOLERANCE)
    for row in _rows_of_all_lengths(golden.length):
        length = golden.length[row : row + 1]
        cut = [array[row : row + 1, : int(length[0])] for array in inputs]
        alone = _run(USER_TOWER, bundle.encode_users, *cut, length)
        what = f"golden user row {row} without its padding"
        _compare(golden.vectors[row : row + 1], alone, USER_TOWER, what, GOLDEN_TOLERANCE)
    for code in (0, *bundle.manifest.event_types.values()):
        types = np.full_like(golden.event_type, code)  # (B, L) int64
        probed = _run(USER_TOWER, bundle.encode_users, golden.history, types, inputs[2], golden.length)
        _check_vectors(probed, USER_TOWER, bundle)
    types_known = len(bundle.manifest.event_types)
    return f"{len(vectors)} rows within {worst:.1e}, with and without padding, {types_known} event types"


def check_reencoding(bundle: Bundle) -> str | None:
    """Whether the item tower gives the catalogue's own vectors, on rows spread over it; None if that needs texts."""
    if bundle.item_residuals is None or bundle.manifest.text.dim != 0:
        return None
    total = bundle.items.num_rows
    rows = np.unique(np.linspace(0, total - 1, min(total, REENCODED_ROWS)).astype(np.int64))
    values = bundle.items.column("categories").take(rows).to_pylist()
    codes = np.array([bundle.category_codes(row) for row in values], dtype=np.int64)  # (n, C) int64
    no_text = np.zeros((len(rows), 0), dtype=np.float32)
    vectors = _run(ITEM_TOWER, bundle.encode_items, no_text, codes, bundle.item_residuals[rows])
    what = "rows encoded again by the item tower from their categories and residuals"
    worst = _compare(bundle.item_vectors[rows], vectors, ITEM_VECTORS, what, REENCODED_TOLERANCE)
    return f"{len(rows)} catalogue rows within {worst:.1e}"


def _run(file: str, encode: Callable[..., NDArray[np.float32]], *inputs: NDArray[Any]) -> NDArray[np.float32]:
    try:
        return encode(*inputs)
    except Exception as error:  # a graph can fail in any operator; the operator of the service sees which file
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise BundleInvalidError(file, f"cannot encode its own golden rows ({lines[0][:200]})", _CURE) from error


def _compare(wanted: NDArray[np.float32], found: NDArray[np.float32], file: str, what: str, tolerance: float) -> float:
    check_array(found, file, what, wanted.shape, np.float32)
    worst = float(np.abs(wanted - found).max())
    if not worst <= tolerance:
        raise BundleInvalidError(file, f"{what} differ by {worst:.2g}, allowed is {tolerance:g}", _CURE)
    return worst


def _check_vectors(vectors: NDArray[np.float32], file: str, bundle: Bundle) -> None:
    check_array(vectors, file, "output", (None, bundle.manifest.dim), np.float32)
    check_unit_rows(vectors, file, "output")


def _rows_of_all_lengths(length: NDArray[np.int64]) -> list[int]:
    """One row of each length, the shortest and the longest always among the first ALONE_ROWS."""
    _, rows = np.unique(length, return_index=True)
    chosen = np.linspace(0, len(rows) - 1, min(len(rows), ALONE_ROWS)).astype(np.int64)
    return [int(row) for row in rows[chosen]]
