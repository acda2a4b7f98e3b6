"""Tiny, deterministic, meaningful bundles for tests of every package.

Items come in colours and kinds: two items that share a category lie close, with text=True so do texts that share words.
The user tower is a mean of the history's item vectors in which recent events, purchases and carts weigh more.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch.export import Dim, ExportedProgram, export

from index.bundle import BundleSpec, GoldenItem, GoldenUser, Watermark, load_text_encoder, write_bundle

EVENT_TYPES = {"view": 1, "cart": 2, "purchase": 3}
COLOURS = ("red", "green", "blue", "black", "white")
KINDS = ("shoes", "hats")
CATEGORIES = {name: code for code, name in enumerate((*COLOURS, *KINDS), start=1)}
CATEGORY_SLOTS = 3
TEXT_DIM = 16
WORDS = (*COLOURS, *KINDS, "item", "leather", "summer", "running", "wool")


class TinyUserTower(torch.nn.Module):
    """Mean of the history by recency, age and type of event, plus a little of each event type; unit rows."""

    def __init__(self, dim: int, seed: int) -> None:
        super().__init__()
        noise = torch.Generator().manual_seed(seed)
        self.type_weight = torch.nn.Parameter(torch.tensor([0.5, 1.0, 2.0, 4.0]))
        self.type_vector = torch.nn.Parameter(0.02 * torch.randn(4, dim, generator=noise))

    def forward(
        self,
        history: torch.Tensor,
        event_type: torch.Tensor,
        seconds_before_newest: torch.Tensor,
        length: torch.Tensor,
    ) -> torch.Tensor:
        place = torch.arange(history.shape[1], device=history.device)[None, :]  # (1, L) int64
        events_ago = (length[:, None] - 1 - place).clamp_min(0).to(torch.float32)
        days = seconds_before_newest / 86_400.0
        weight = self.type_weight[event_type] * torch.exp(-0.3 * events_ago) / (1.0 + 0.1 * days)
        weight = torch.where(place < length[:, None], weight, torch.zeros_like(weight))  # (B, L) float32
        mixed = ((history + self.type_vector[event_type]) * weight[:, :, None]).sum(dim=1)
        return torch.nn.functional.normalize(mixed, dim=1)


class TinyItemTower(torch.nn.Module):
    """Text, categories and residual added up over a constant that keeps an unknown item off zero; unit rows."""

    def __init__(self, dim: int, text_dim: int, seed: int) -> None:
        super().__init__()
        noise = torch.Generator().manual_seed(seed + 1)
        vectors = torch.randn(len(CATEGORIES) + 1, dim, generator=noise)
        self.category_vector = torch.nn.Parameter(vectors * (torch.arange(len(CATEGORIES) + 1) > 0)[:, None])
        self.text_weight = torch.nn.Parameter(torch.randn(text_dim, dim, generator=noise))
        self.unknown = torch.nn.Parameter(0.1 * torch.randn(dim, generator=noise))

    def forward(self, text: torch.Tensor, categories: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        mixed = text @ self.text_weight + self.category_vector[categories].sum(dim=1) + residual + self.unknown
        return torch.nn.functional.normalize(mixed, dim=1)


@dataclass(frozen=True)
class TinyTowers:
    """Exported towers with golden rows taken from the modules they were exported from."""

    user_tower: ExportedProgram
    item_tower: ExportedProgram
    golden_user: GoldenUser
    golden_item: GoldenItem


@cache
def tiny_towers(dim: int = 8, history_length: int = 10, text_dim: int = 0, seed: int = 0) -> TinyTowers:
    """Both towers, exported with free batch and history sizes. Export takes about a second, hence the cache."""
    user, item = TinyUserTower(dim, seed).eval(), TinyItemTower(dim, text_dim, seed).eval()
    golden_user = _golden_user(user, dim, history_length, seed)
    golden_item = _golden_item(item, dim, text_dim, seed)
    batch, width, rows = Dim("batch", min=1, max=4096), Dim("width", min=1, max=history_length), Dim("rows", min=1)
    user_program = export(
        user,
        tuple(torch.from_numpy(array) for array in _inputs(golden_user)),
        dynamic_shapes=({0: batch, 1: width}, {0: batch, 1: width}, {0: batch, 1: width}, {0: batch}),
    )
    item_program = export(
        item,
        tuple(torch.from_numpy(array) for array in _inputs(golden_item)),
        dynamic_shapes=({0: rows}, {0: rows}, {0: rows}),
    )
    return TinyTowers(user_program, item_program, golden_user, golden_item)


def tiny_items(n_items: int, seed: int = 0) -> pa.Table:
    """item-0, item-1, …: colour by i % 5, kind by i % 2, popularity falling, attributes title, year and in_stock."""
    colours = [COLOURS[i % len(COLOURS)] for i in range(n_items)]
    kinds = [KINDS[i % len(KINDS)] for i in range(n_items)]
    words = np.random.default_rng(seed).choice(WORDS[-4:], size=n_items)
    texts = [f"{colour} {word} {kind}" for colour, word, kind in zip(colours, words, kinds, strict=True)]
    return pa.table(
        {
            "item_id": [f"item-{i}" for i in range(n_items)],
            "text": texts,
            "categories": [list(pair) for pair in zip(colours, kinds, strict=True)],
            "popularity": [float(n_items - i) for i in range(n_items)],
            "title": [text.title() for text in texts],
            "year": [2000 + i % 25 for i in range(n_items)],
            "in_stock": [i % 7 != 6 for i in range(n_items)],
        }
    )


def write_tiny_bundle(
    path: Path,
    n_items: int = 50,
    dim: int = 8,
    text: bool = False,
    seed: int = 0,
    drop_items: Collection[str] = (),
    history_length: int = 10,
    towers: bool = True,
    watermark: Watermark | None = None,
    event_types: Mapping[str, int] = EVENT_TYPES,
) -> str:
    """Write a bundle at `path` and return its release id. `drop_items`: ids left out; the others keep their vectors.

    text=True makes a text encoder on the spot (in `path`.encoder, beside the bundle). towers=False: bare vectors only.
    Another seed gives other towers and other vectors.
    """
    items = tiny_items(n_items, seed)
    text_dim = TEXT_DIM if text else 0
    encoder = write_tiny_encoder(path.with_name(f"{path.name}.encoder"), seed) if text else None
    embeddings = (
        load_text_encoder(encoder).encode(items.column("text").to_pylist())
        if encoder is not None
        else np.zeros((n_items, 0), dtype=np.float32)
    )  # (N, T) float32
    noise = np.random.default_rng(seed)
    residuals = (0.2 * noise.standard_normal((n_items, dim))).astype(np.float32)  # (N, D) float32
    codes = np.array([_codes(row) for row in items.column("categories").to_pylist()], dtype=np.int64)  # (N, C) int64
    vectors = _encode(TinyItemTower(dim, text_dim, seed).eval(), embeddings, codes, residuals)
    kept = np.array([name not in drop_items for name in items.column("item_id").to_pylist()])
    built = tiny_towers(dim, history_length, text_dim, seed) if towers else None
    spec = BundleSpec(
        dim=dim,
        history_length=history_length if towers else None,
        event_types=dict(event_types) if towers else {},
        time_features=towers,
        text_dim=text_dim if towers else 0,
        category_slots=CATEGORY_SLOTS,
        watermark=watermark,
        offline_metrics={"recall_at_10": 0.5},
        training={"seed": seed, "dataset": "tiny"},
    )
    return write_bundle(
        path,
        spec,
        items=items.filter(pa.array(kept)),
        item_vectors=vectors[kept],
        item_residuals=residuals[kept] if built else None,
        categories=CATEGORIES,
        user_tower=built.user_tower if built else None,
        item_tower=built.item_tower if built else None,
        golden_user=built.golden_user if built else None,
        golden_item=built.golden_item if built else None,
        text_encoder=encoder if built else None,
    )


def write_tiny_encoder(path: Path, seed: int = 0) -> Path:
    """A sentence-transformers directory whose embedding of a text is the mean of its words' random vectors."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    vocabulary = {"[UNK]": 0, **{word: code for code, word in enumerate(WORDS, start=1)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    weights = np.random.default_rng(seed).standard_normal((len(vocabulary), TEXT_DIM)).astype(np.float32)
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights)], device="cpu")
    model.save_pretrained(str(path), create_model_card=False)
    return path


def _golden_user(tower: TinyUserTower, dim: int, longest: int, seed: int) -> GoldenUser:
    noise = np.random.default_rng(seed + 2)
    length = np.array([1, longest, max(1, longest // 2), longest, 1], dtype=np.int64)  # (B,) int64
    rows, place = len(length), np.arange(longest)[None, :]
    real = place < length[:, None]  # (B, L) bool
    history = noise.standard_normal((rows, longest, dim)).astype(np.float32)
    history /= np.linalg.norm(history, axis=2, keepdims=True)
    event_type = noise.integers(1, len(EVENT_TYPES) + 1, size=(rows, longest))
    event_type[0, 0] = 0
    seconds = 3_600.0 * (length[:, None] - 1 - place)
    inputs = (
        np.where(real[:, :, None], history, 0).astype(np.float32),
        np.where(real, event_type, 0).astype(np.int64),
        np.where(real, seconds, 0).astype(np.float32),
        length,
    )
    return GoldenUser(*inputs, _encode(tower, *inputs))


def _golden_item(tower: TinyItemTower, dim: int, text_dim: int, seed: int) -> GoldenItem:
    noise = np.random.default_rng(seed + 3)
    text = noise.standard_normal((5, text_dim)).astype(np.float32)
    categories = noise.integers(1, len(CATEGORIES) + 1, size=(5, CATEGORY_SLOTS)).astype(np.int64)
    residual = noise.standard_normal((5, dim)).astype(np.float32)
    text[0], categories[0], residual[0] = 0, 0, 0  # an item of which nothing is known
    categories[1, 1:] = 0
    residual[2] = 0
    return GoldenItem(text, categories, residual, _encode(tower, text, categories, residual))


def _inputs(golden: GoldenUser | GoldenItem) -> list[NDArray[Any]]:
    return [array for name, array in vars(golden).items() if name != "vectors"]


def _codes(values: list[str]) -> list[int]:
    codes = [CATEGORIES[value] for value in values]
    return codes + [0] * (CATEGORY_SLOTS - len(codes))


def _encode(tower: torch.nn.Module, *inputs: NDArray[Any]) -> NDArray[np.float32]:
    with torch.inference_mode():
        vectors: torch.Tensor = tower(*(torch.from_numpy(array) for array in inputs))
    return vectors.numpy()
