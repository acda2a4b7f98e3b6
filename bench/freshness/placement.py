"""Where a new item's vector comes from while the model stays as it is: from its content, or from those who met it first."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bench.freshness.policies import NEVER_US, IntArray
from index.bundle import Bundle
from training.data.dataset import Dataset
from training.data.text import encode_texts
from training.progress import Progress

_TEXTS_AT_ONCE = 64

Shown = tuple[NDArray[np.float32], NDArray[np.bool_]]
"""(M, D) float32 unit rows, and (M,) bool: which of them are there to be found."""


class Showing(Protocol):
    """The new items as time goes on."""

    def at(self, as_of_us: int | None) -> Shown:
        """What is visible of what was known at a moment, which must not go back; None: nothing. To be read, not kept."""
        ...


class Placement(Protocol):
    """A way to place new items; `placed` of them have a place at some time."""

    name: str
    placed: int

    def begin(self) -> Showing:
        """From the start of time."""
        ...


class ByContent:
    """By the item tower from text and categories, with residual 0, from an item's first event on.

    When an item came into the catalogue no log of events says; its first event says that it was there by then. An item
    without text and known categories is not placed, as in the service.
    """

    name = "content"

    def __init__(self, bundle: Bundle, dataset: Dataset, rows: IntArray, first_seen_us: IntArray, progress: Progress) -> None:
        """rows, first_seen_us: (M,) int64 of the new items. Text goes through the bundle's template, if there is any."""
        items = dataset.items.take(rows)
        template = bundle.manifest.text.template
        texts = [template.replace("{text}", text) if text else "" for text in items["text"].to_pylist()]
        categories = [bundle.category_codes(one or []) for one in items["categories"].to_pylist()]
        codes = np.array(categories, dtype=np.int64).reshape(len(rows), bundle.manifest.category_slots)  # (M, C)
        placed = (codes > 0).any(axis=1)
        if bundle.text_encoder is None:
            text = np.zeros((len(rows), bundle.manifest.text.dim), dtype=np.float32)  # (M, T)
        else:
            text = encode_texts(bundle.text_encoder, texts, batch_size=_TEXTS_AT_ONCE, progress=progress)
            placed |= np.array([bool(one) for one in texts], dtype=bool)
        self._vectors = bundle.encode_items(text, codes, np.zeros((len(rows), bundle.manifest.dim), dtype=np.float32))
        self._from_us = np.where(placed, first_seen_us, NEVER_US)
        self.placed = int(placed.sum())

    def begin(self) -> Showing:
        return self

    def at(self, as_of_us: int | None) -> Shown:
        return self._vectors, np.full(len(self._from_us), False) if as_of_us is None else self._from_us <= as_of_us


class ByVisitors:
    """By the mean of the user vectors of those who met it, each as it was just before, and anew with each of them.

    It needs no content, but somebody has to come by another way first: the item's very first interactions are missed.
    """

    name = "visitors"

    def __init__(self, items: IntArray, times_us: IntArray, vectors: NDArray[np.float32], count: int) -> None:
        """items: (V,) int64 in 0 … count - 1, of each visit; times_us: (V,) int64; vectors: (V, D) float32 of the users."""
        order = np.argsort(times_us, kind="stable")
        self.visits = items[order], times_us[order], vectors[order]
        self.count = count
        self.placed = len(np.unique(items))

    def begin(self) -> Showing:
        return _Visited(self)


class _Visited:
    def __init__(self, placement: ByVisitors) -> None:
        self._items, self._times_us, self._users = placement.visits
        self._sums = np.zeros((placement.count, self._users.shape[1]), dtype=np.float32)
        self._vectors = np.zeros_like(self._sums)
        self._visible = np.zeros(placement.count, dtype=bool)
        self._done = 0

    def at(self, as_of_us: int | None) -> Shown:
        while as_of_us is not None and self._done < len(self._items) and self._times_us[self._done] < as_of_us:
            item = self._items[self._done]
            self._sums[item] += self._users[self._done]
            self._vectors[item] = self._sums[item] / max(float(np.linalg.norm(self._sums[item])), 1e-12)
            self._visible[item] = True
            self._done += 1
        return self._vectors, self._visible
