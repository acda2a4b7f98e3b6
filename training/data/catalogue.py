"""The items as the item tower reads them: text embeddings, category codes, and who has either."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa


@dataclass(frozen=True)
class Catalogue:
    """One row for each item, in the order of items.parquet."""

    text: npt.NDArray[np.float32]  # (N, T) float32, zeros where an item has no text; T = 0 without an encoder
    codes: npt.NDArray[np.int64]  # (N, C) int64, category codes >= 1, then zeros; C >= 1
    vocabulary: dict[str, int]  # category -> code

    @property
    def has_content(self) -> npt.NDArray[np.bool_]:
        """(N,) bool: the item has text or a category, so that it can be placed without a residual."""
        described: npt.NDArray[np.bool_] = np.any(self.text, axis=1) | np.any(self.codes, axis=1)
        return described


def build_catalogue(
    items: pa.Table, text: npt.NDArray[np.float32], *, category_slots: int, known: Mapping[str, int] | None = None
) -> Catalogue:
    """Of an item with more than `category_slots` categories the first ones count.

    Codes are those of `known`, 1 … n, then follow the names' order.
    """
    lists: list[list[str]] = [(row or [])[:category_slots] for row in items["categories"].to_pylist()]
    vocabulary = extended(known or {}, (name for row in lists for name in row))
    slots = max([1, *(len(row) for row in lists)])
    codes = np.zeros((len(lists), slots), dtype=np.int64)  # (N, C) int64
    for place, row in enumerate(lists):
        codes[place, : len(row)] = [vocabulary[name] for name in row]
    return Catalogue(text, codes, vocabulary)


def extended(codes: Mapping[str, int], names: Iterable[str]) -> dict[str, int]:
    """`codes` 1 … n as they are, then n + 1 … for the names that are not among them, in their order by name."""
    more = sorted(set(names) - set(codes))
    return {**codes, **{name: code for code, name in enumerate(more, start=len(codes) + 1)}}
