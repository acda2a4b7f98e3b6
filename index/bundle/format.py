"""The bundle's format: its file names, its manifest, and what a caller states about a bundle to be written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, FiniteFloat

FORMAT = "towerbridge-bundle"
FORMAT_VERSION = 1

MANIFEST = "manifest.json"
MODEL_CARD = "model_card.md"
USER_TOWER = "user_tower.pt2"
ITEM_TOWER = "item_tower.pt2"
ITEM_VECTORS = "item_vectors.safetensors"
ITEM_RESIDUALS = "item_residuals.safetensors"
VOCABULARIES = "vocabularies.json"
ITEMS = "items.parquet"
GOLDEN = "golden.safetensors"
TEXT_ENCODER = "text_encoder"

REQUIRED_FILES = (ITEM_VECTORS, VOCABULARIES, ITEMS)
OPTIONAL_FILES = (USER_TOWER, ITEM_TOWER, ITEM_RESIDUALS, GOLDEN)

# A path inside a bundle: no absolute path, no "..", no hidden part, no backslash, no drive letter.
INNER_PATH = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")

UNLISTED_FILES = (MANIFEST, MODEL_CARD)  # what the manifest cannot or need not vouch for

ITEM_ID_BYTES = 256
MODEL_CARD_BYTES = 1 << 20
UNIT_TOLERANCE = 1e-3  # how far from 1 the length of a vector may be
GOLDEN_TOLERANCE = 1e-5  # greatest absolute difference from a golden vector

Name = Annotated[str, Field(min_length=1, max_length=256)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class FileEntry(_Frozen):
    """Digest and size of one file of the bundle."""

    sha256: Sha256
    bytes: Annotated[int, Field(ge=0)]


class TextEntry(_Frozen):
    """How an item's text becomes the (N, T) input of the item tower; dim 0: it does not."""

    template: str
    encoder: Literal["text_encoder"] | None
    encoder_sha256: Sha256 | None
    dim: Annotated[int, Field(ge=0, le=65_536)]


class Watermark(_Frozen):
    """The last journal position that training saw."""

    epoch: Name
    position: Annotated[int, Field(ge=0)]


class Manifest(_Frozen):
    """manifest.json, as read. Every key is required; no other is allowed."""

    format: Literal["towerbridge-bundle"]
    format_version: Literal[1]
    created_at: Annotated[AwareDatetime, Field(strict=False)]
    dim: Annotated[int, Field(ge=1, le=65_536)]
    metric: Literal["inner_product"]
    history_length: Annotated[int, Field(ge=1, le=65_536)] | None
    event_types: dict[Name, Annotated[int, Field(ge=1, le=65_535)]]
    time_features: bool
    text: TextEntry
    category_slots: Annotated[int, Field(ge=1, le=4_096)]
    watermark: Watermark | None
    offline_metrics: dict[str, FiniteFloat]
    training: dict[str, Any]
    files: dict[str, FileEntry]


@dataclass(frozen=True)
class BundleSpec:
    """What a caller of `write_bundle` states about the bundle; the rest of the manifest is counted from the files.

    dim: D. history_length: L_max, None without a user tower. event_types: name -> code >= 1 (0 is "unknown").
    time_features: whether `seconds_before_newest` is meant; if not, it is all zeros. text_dim: T, 0 for no text.
    category_slots: C, the most category codes an item keeps. training: anything JSON (seed, config, dataset, versions).
    """

    dim: int
    history_length: int | None
    event_types: Mapping[str, int]
    time_features: bool
    text_template: str = "{text}"
    text_dim: int = 0
    category_slots: int = 1
    watermark: Watermark | None = None
    offline_metrics: Mapping[str, float] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class GoldenUser:
    """Inputs of the user tower, history oldest first and right-padded with zeros, and the vectors it must give.

    At least four rows, among them one of length 1, one of length L_max and an event of unknown type (0).
    """

    history: NDArray[np.float32]  # (B, L, D) float32
    event_type: NDArray[np.int64]  # (B, L) int64
    seconds_before_newest: NDArray[np.float32]  # (B, L) float32, >= 0, 0 for the newest event and the padding
    length: NDArray[np.int64]  # (B,) int64, 1 <= length <= L
    vectors: NDArray[np.float32]  # (B, D) float32, unit rows


@dataclass(frozen=True)
class GoldenItem:
    """Inputs of the item tower and the vectors it must give.

    At least four rows, among them one without categories (all 0) and one without a residual (all 0).
    """

    text: NDArray[np.float32]  # (N, T) float32
    categories: NDArray[np.int64]  # (N, C) int64
    residual: NDArray[np.float32]  # (N, D) float32
    vectors: NDArray[np.float32]  # (N, D) float32, unit rows
