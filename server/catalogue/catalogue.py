"""Which items there are, what is known of them, and which may be returned."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.catalogue.popularity import Popularity
from server.journal.items import StoredItem

_WALK = 4096  # popular items looked at together


@dataclass(frozen=True, slots=True)
class CatalogueItem:
    """A live item. Replaced whole when it changes, so that a reader sees one state."""

    ordinal: int
    item_id: str
    text: str
    categories: str  # JSON list of strings
    attributes: str  # JSON object
    available: bool

    def attribute_values(self, names: Sequence[str]) -> list[Any]:
        """The JSON values of the attributes named, None where the item has none; "text" and "categories" count as such."""
        values = json.loads(self.attributes) if any(name not in ("text", "categories") for name in names) else {}
        if "text" in names:
            values["text"] = self.text or None
        if "categories" in names:
            values["categories"] = json.loads(self.categories) or None
        return [values.get(name) for name in names]


class Catalogue:
    """The live items by id, and by ordinal which of them may be returned.

    The journal's writer thread changes it; other threads read it.
    """

    def __init__(self) -> None:
        self._items: dict[str, CatalogueItem] = {}
        self._removed: dict[str, tuple[int, int]] = {}  # ordinal, and position of the removal
        self._ids: list[str] = []  # by ordinal
        self._permitted: NDArray[np.bool_] = np.zeros(1024, dtype=bool)  # by ordinal: live and available
        self.popularity = Popularity(np.zeros(0))
        """As the live release says."""

    def __len__(self) -> int:
        return len(self._items)

    def get(self, item_id: str) -> CatalogueItem | None:
        """The item, if it is in the catalogue."""
        return self._items.get(item_id)

    def locate(self, item_id: str, position: int) -> int:
        """The ordinal of an item for an event at a position of the journal; -1 if the item was not there, nor is now."""
        item = self._items.get(item_id)
        if item is not None:
            return item.ordinal
        ordinal, removed_at = self._removed.get(item_id, (-1, 0))
        return ordinal if position <= removed_at else -1

    def item_id(self, ordinal: int) -> str:
        """The id of an item, live or removed."""
        return self._ids[ordinal]

    def ordinals(self, item_ids: Iterable[str]) -> NDArray[np.int64]:
        """Ordinals of those of the ids that are in the catalogue, in their order; unknown ids are left out: (<= n,) int64."""
        found = (self._items.get(item_id) for item_id in item_ids)
        return np.fromiter((item.ordinal for item in found if item is not None), dtype=np.int64)

    def load(
        self,
        items: Iterable[CatalogueItem],
        ids: list[str],
        popularity: Popularity,
        removed: Mapping[str, tuple[int, int]] = MappingProxyType({}),
    ) -> None:
        """Takes over the live items, and the ids and popularity of all ordinals, removed items' too, at start.

        removed: ordinal and position of the removal of the items that are not in the catalogue any more.
        """
        self._removed = dict(removed)
        self.popularity = popularity
        self._ids = ids
        self._reserve(len(ids))
        for item in items:
            self._items[item.item_id] = item
            self._permitted[item.ordinal] = item.available

    def put(self, stored: StoredItem) -> None:
        """Adds or replaces an item."""
        if stored.ordinal >= len(self._ids):
            while len(self._ids) <= stored.ordinal:
                self._ids.append("")
            self._reserve(len(self._ids))
        self._ids[stored.ordinal] = stored.content.item_id
        self.popularity.add(stored)
        self._items[stored.content.item_id] = as_catalogue_item(stored)
        self._removed.pop(stored.content.item_id, None)
        self._permitted[stored.ordinal] = stored.available

    def remove(self, item_id: str, position: int) -> int:
        """Takes the item out at a position of the journal, and returns its ordinal; it must be there."""
        item = self._items[item_id]
        self._removed[item_id] = item.ordinal, position  # first: a reader finds it here or there
        del self._items[item_id]
        self._permitted[item.ordinal] = False
        return item.ordinal

    def set_available(self, item_id: str, available: bool) -> int:
        """Returns the item's ordinal; it must be there."""
        item = self._items[item_id]
        self._items[item_id] = replace(item, available=available)
        self._permitted[item.ordinal] = available
        return item.ordinal

    def is_permitted(self, item_id: str) -> bool:
        """Whether the item may be returned as a candidate now."""
        item = self._items.get(item_id)
        return item is not None and item.available

    def permits(self, ordinals: NDArray[np.int64]) -> bool:
        """Whether all of the items, (n,) int64, may be returned now. It costs a twentieth of asking for each by its id."""
        try:
            return bool(self._permitted.take(ordinals).all())
        except IndexError:  # one is not in the catalogue yet
            return False

    def popular(
        self,
        limit: int,
        exclude: NDArray[np.int64],
        ranking: NDArray[np.int64] | None = None,
        popularity: Popularity | None = None,
    ) -> tuple[list[str], list[float]]:
        """The most popular permitted items, most popular first: ids and their share of all events (0 to 1).

        exclude: ordinals that must not be returned. ranking: only these, in their order; by default all. popularity: as this
        says; by default the live release's. Ties in the order of ordinals.
        """
        popularity = self.popularity if popularity is None else popularity
        ranking = popularity.ranking if ranking is None else ranking
        excluded = np.unique(exclude)
        ids: list[str] = []
        shares: list[float] = []
        for start in range(0, len(ranking), _WALK):
            part = ranking[start : start + _WALK]
            part = part[self._permitted[part]]
            part = part[~np.isin(part, excluded)]
            for ordinal in part.tolist():
                item = self._items.get(self._ids[ordinal])
                if item is not None and item.available:
                    ids.append(item.item_id)
                    shares.append(popularity.share(ordinal))
                if len(ids) == limit:
                    return ids, shares
        return ids, shares

    def _reserve(self, ordinals: int) -> None:
        if ordinals > len(self._permitted):
            added = max(ordinals, 2 * len(self._permitted)) - len(self._permitted)
            self._permitted = np.pad(self._permitted, (0, added))


def as_catalogue_item(stored: StoredItem) -> CatalogueItem:
    """The catalogue's view of a stored item."""
    content = stored.content
    return CatalogueItem(
        ordinal=stored.ordinal,
        item_id=content.item_id,
        text=content.text,
        categories=content.categories,
        attributes=content.attributes,
        available=stored.available,
    )
