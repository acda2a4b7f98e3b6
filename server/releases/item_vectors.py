"""Where an item's vector comes from in a release."""

import json
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from index.bundle import Bundle
from server.journal.items import ItemContent
from server.releases.item_rows import ItemRows

_ROWS_AT_ONCE = 1024


class ItemVectors:
    """Finds or computes item vectors for one bundle. In this order:

    1. the vector that the caller sent, if it was made for this release;
    2. the bundle's own vector, if the item's text and categories are those that it was made of, and nothing else was sent;
    3. the item tower, from the text embedding (of this release's encoder), the known categories and the bundle's residual.
    An item with none of these has no vector.
    """

    def __init__(self, bundle: Bundle, rows: ItemRows | None = None) -> None:
        """rows: where the bundle's items are, if that is known; else it is looked up here."""
        ids, texts, categories = (bundle.items.column(name) for name in ("item_id", "text", "categories"))
        rows = ItemRows.of(ids) if rows is None else rows
        self._bundle = bundle
        self._row_of: Callable[[str], int | None] = lambda item_id: rows.find(item_id, ids)
        self._text_of: Callable[[int], str] = lambda row: texts[row].as_py()
        self._categories_of: Callable[[int], list[str]] = lambda row: categories[row].as_py()
        self.rows = rows
        self.encoder_sha256 = bundle.manifest.text.encoder_sha256
        self.text_dim = bundle.manifest.text.dim

    def in_bulk(self) -> "ItemVectors":
        """The same for very many items: quicker for each, after all of the bundle's items were looked at once."""
        bulk = copy(self)
        ids, texts, categories = (self._bundle.items.column(name).to_pylist() for name in ("item_id", "text", "categories"))
        bulk._row_of = {item_id: row for row, item_id in enumerate(ids)}.get
        bulk._text_of, bulk._categories_of = texts.__getitem__, categories.__getitem__
        return bulk

    def text_to_encode(self, content: ItemContent) -> str | None:
        """What the text encoder must read before the vector can be computed; None if nothing."""
        if self.encoder_sha256 is None or not content.text or self._has_own_vector(content):
            return None
        if content.encoder_sha256 == self.encoder_sha256 or self._bundle_row(content) is not None:
            return None
        return self._bundle.manifest.text.template.replace("{text}", content.text)

    def with_embedding(self, content: ItemContent, embedding: NDArray[np.float32]) -> ItemContent:
        """The content with an embedding that this release's text encoder made of its text: (T,) float32."""
        return replace(
            content,
            text_embedding=embedding.astype("<f4").tobytes(),
            encoder_sha256=self.encoder_sha256,
            embedding_given=False,
        )

    def compute(self, contents: Sequence[ItemContent]) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """Which items have a vector, and the vectors: (n,) bool, (n, D) float32 unit rows, zeros where there is none."""
        has = np.zeros(len(contents), dtype=bool)
        vectors = np.zeros((len(contents), self._bundle.manifest.dim), dtype=np.float32)
        for_tower = []
        for place, content in enumerate(contents):
            row = self._bundle_row(content)
            if self._has_own_vector(content) and content.vector is not None:
                vectors[place] = np.frombuffer(content.vector, dtype="<f4")
                has[place] = True
            elif row is not None:
                vectors[place] = self._bundle.item_vectors[row]
                has[place] = True
            else:
                for_tower.append(place)
        if self._bundle.item_tower is not None:
            for start in range(0, len(for_tower), _ROWS_AT_ONCE):
                places = np.array(for_tower[start : start + _ROWS_AT_ONCE])
                has[places], vectors[places] = self._run_tower([contents[place] for place in places])
        return has, vectors

    def _run_tower(self, contents: list[ItemContent]) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        bundle = self._bundle
        text = np.zeros((len(contents), self.text_dim), dtype=np.float32)  # (n, T)
        codes = np.zeros((len(contents), bundle.manifest.category_slots), dtype=np.int64)  # (n, C)
        residual = np.zeros((len(contents), bundle.manifest.dim), dtype=np.float32)  # (n, D)
        known = np.zeros(len(contents), dtype=bool)
        for place, content in enumerate(contents):
            codes[place] = bundle.category_codes(json.loads(content.categories))
            known[place] = codes[place].any()
            if content.text_embedding is not None and content.encoder_sha256 == self.encoder_sha256:
                text[place] = np.frombuffer(content.text_embedding, dtype="<f4")
                known[place] = True
            row = self._row_of(content.item_id)
            if row is not None and bundle.item_residuals is not None:
                residual[place] = bundle.item_residuals[row]
                known[place] = True
        return known, bundle.encode_items(text, codes, residual)

    def _has_own_vector(self, content: ItemContent) -> bool:
        return content.vector is not None and content.vector_release == self._bundle.release_id

    def _bundle_row(self, content: ItemContent) -> int | None:
        """The bundle's row of the item, if the bundle made its vector of the same text and categories."""
        row = self._row_of(content.item_id)
        if row is None or (content.embedding_given and content.encoder_sha256 == self.encoder_sha256):
            return None
        same = self._text_of(row) == content.text and self._categories_of(row) == json.loads(content.categories)
        return row if same else None
