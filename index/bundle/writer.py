"""Writing a bundle: aside, whole, checked as a reader would, then put in place by a rename."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import ValidationError
from torch.export import ExportedProgram

from index.bundle.catalogue import items_bytes, vocabularies_bytes
from index.bundle.errors import BundleInvalidError, naming
from index.bundle.files import copy_tree, file_entries, sync_directory, sync_tree
from index.bundle.format import (
    FORMAT,
    FORMAT_VERSION,
    GOLDEN,
    ITEM_RESIDUALS,
    ITEM_TOWER,
    ITEM_VECTORS,
    ITEMS,
    MANIFEST,
    TEXT_ENCODER,
    USER_TOWER,
    VOCABULARIES,
    BundleSpec,
    FileEntry,
    GoldenItem,
    GoldenUser,
    Manifest,
)
from index.bundle.golden import golden_bytes
from index.bundle.manifest import is_bundle, manifest_bytes
from index.bundle.reader import report_as
from index.bundle.tensors import tensor_bytes
from index.bundle.text import check_text_encoder, digest_of_files, encoder_digests
from index.bundle.towers import tower_bytes


def write_bundle(
    out: Path,
    spec: BundleSpec,
    *,
    items: pa.Table,
    item_vectors: NDArray[np.float32],
    item_residuals: NDArray[np.float32] | None = None,
    categories: Mapping[str, int] | None = None,
    user_tower: ExportedProgram | None = None,
    item_tower: ExportedProgram | None = None,
    golden_user: GoldenUser | None = None,
    golden_item: GoldenItem | None = None,
    text_encoder: Path | None = None,
) -> str:
    """Write a bundle at `out` and return its release id.

    items: item_id, text, categories, popularity and attribute columns. item_vectors, item_residuals: (N, D) float32,
    row i for row i of `items`, vectors of length 1. Towers come with their golden rows, the item tower with residuals;
    a bundle of your own vectors has none of them. text_encoder: a sentence-transformers directory, copied.

    All or nothing: the files are written beside `out`, forced to disk and checked, and only then renamed; an older
    bundle at `out` is replaced. Raises BundleError, and then `out` is as it was and nothing is left beside it.
    """
    check_target(out)
    with naming(out):
        parts = {
            ITEM_VECTORS: tensor_bytes({"vectors": item_vectors}),
            ITEMS: items_bytes(items),
            VOCABULARIES: vocabularies_bytes(dict(categories or {})),
        }
        if item_residuals is not None:
            parts[ITEM_RESIDUALS] = tensor_bytes({"residuals": item_residuals})
        parts |= _towers(user_tower, item_tower, golden_user, golden_item)
        if text_encoder is not None:
            check_text_encoder(text_encoder)
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.parent / f".{out.name}.{secrets.token_hex(6)}.writing"
    try:
        _fill(aside, parts, text_encoder)
        with naming(out):
            (aside / MANIFEST).write_bytes(_manifest_bytes(_manifest(spec, file_entries(aside))))
        report = report_as(aside, out)
        sync_tree(aside)
        _put_in_place(aside, out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return report.release_id


def _towers(
    user_tower: ExportedProgram | None,
    item_tower: ExportedProgram | None,
    golden_user: GoldenUser | None,
    golden_item: GoldenItem | None,
) -> dict[str, bytes]:
    if (user_tower is None) != (golden_user is None) or (item_tower is None) != (golden_item is None):
        raise BundleInvalidError(GOLDEN, "every tower comes with its golden rows", "give both or neither")
    if user_tower is not None and item_tower is None:
        raise BundleInvalidError(USER_TOWER, "comes without an item tower", "give both towers")
    parts: dict[str, bytes] = {}
    if user_tower is not None:
        parts[USER_TOWER] = tower_bytes(user_tower, USER_TOWER)
    if item_tower is not None and golden_item is not None:
        parts[ITEM_TOWER] = tower_bytes(item_tower, ITEM_TOWER)
        parts[GOLDEN] = golden_bytes(golden_user, golden_item)
    return parts


def _fill(aside: Path, parts: Mapping[str, bytes], text_encoder: Path | None) -> None:
    aside.mkdir()
    for name, data in parts.items():
        (aside / name).write_bytes(data)
    if text_encoder is not None:
        copy_tree(text_encoder, aside / TEXT_ENCODER)


def _manifest(spec: BundleSpec, files: dict[str, FileEntry]) -> Manifest:
    encoder = encoder_digests({name: entry.sha256 for name, entry in files.items()})
    values: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "created_at": datetime.now(UTC).replace(microsecond=0),
        "dim": spec.dim,
        "metric": "inner_product",
        "history_length": spec.history_length,
        "event_types": dict(spec.event_types),
        "time_features": spec.time_features,
        "text": {
            "template": spec.text_template,
            "encoder": TEXT_ENCODER if encoder else None,
            "encoder_sha256": digest_of_files(encoder) if encoder else None,
            "dim": spec.text_dim,
        },
        "category_slots": spec.category_slots,
        "watermark": spec.watermark,
        "offline_metrics": {name: float(value) for name, value in spec.offline_metrics.items()},
        "training": dict(spec.training),
        "files": files,
    }
    try:
        return Manifest.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BundleInvalidError(MANIFEST, f"{where}: {first['msg']}", "correct the BundleSpec") from error


def _manifest_bytes(manifest: Manifest) -> bytes:
    try:
        return manifest_bytes(manifest)
    except (ValueError, TypeError) as error:
        raise BundleInvalidError(MANIFEST, f"training is not JSON ({error})", "correct the BundleSpec") from error


def check_target(out: Path) -> None:
    """Whether `write_bundle` may write there: nothing is there, or a bundle, which it replaces. Raises BundleInvalidError.

    What of its path is not there yet must be possible to make.
    """
    with naming(out):
        if out.is_symlink():
            raise BundleInvalidError("", "is a link, not a bundle", "give the path it points to")
        if out.exists() and not is_bundle(out):
            raise BundleInvalidError("", "exists and is not a bundle", "remove it or give another path")
        folder = next(each for each in out.absolute().parents if os.path.lexists(each))
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            raise BundleInvalidError("", f"{folder} is no folder that can be written to", "give another path")


def _put_in_place(aside: Path, out: Path) -> None:
    """Rename `aside` to `out`. An older bundle is moved away first: a directory cannot be replaced in one step."""
    check_target(out)
    older = out.parent / f".{out.name}.{secrets.token_hex(6)}.older"
    replaces = out.exists()
    if replaces:
        out.rename(older)
    try:
        aside.rename(out)
    except BaseException:
        if replaces:
            older.rename(out)
        raise
    try:
        sync_directory(out.parent)
    finally:
        shutil.rmtree(older, ignore_errors=True)
