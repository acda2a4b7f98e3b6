"""How popular items are, as one release says."""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from server.journal.items import StoredItem


class Popularity:
    """Popularity of all ordinals, removed items' too: they may return. Releases differ in it, as their bundles do.

    The journal's writer thread changes it; other threads read it.
    """

    def __init__(self, by_ordinal: NDArray[np.float64], absent: Mapping[str, float] = MappingProxyType({})) -> None:
        """by_ordinal: (n,) float64. absent: popularity by id of items that are not in the journal, for the day they come."""
        self._absent = absent
        self._by_ordinal = by_ordinal
        self._known = len(by_ordinal)
        self._total = float(by_ordinal.sum())
        # Ordinals, most popular first, ties in order.
        self._ranking: NDArray[np.int64] = np.argsort(-by_ordinal, kind="stable")

    @property
    def ranking(self) -> NDArray[np.int64]:
        """The ordinals of all items, most popular first, ties in order: (n,) int64. Never changed."""
        return self._ranking[: self._known]

    def of(self, ordinal: int) -> float:
        """The popularity of an item; 0 for one that is not known."""
        return float(self._by_ordinal[ordinal]) if ordinal < self._known else 0.0

    def share(self, ordinal: int) -> float:
        """The item's share of all events, 0 to 1."""
        return self.of(ordinal) / self._total if self._total else 0.0

    def add(self, stored: StoredItem) -> None:
        """Gives an item its place, if it is new: one that the bundle knows may be anywhere, the others are last."""
        known = self._known
        if stored.ordinal < known:
            return
        self._reserve(stored.ordinal + 1)
        popularity = self._absent.get(stored.content.item_id, stored.popularity)
        self._by_ordinal[stored.ordinal] = popularity
        self._total += popularity
        # Ordinals that were given out and are not used rank as the others of no popularity do.
        self._ranking[known : stored.ordinal + 1] = np.arange(known, stored.ordinal + 1)
        self._known = stored.ordinal + 1
        if popularity:
            ranking = self._ranking.copy()  # readers walk the old one
            ranking[: self._known] = np.argsort(-self._by_ordinal[: self._known], kind="stable")
            self._ranking = ranking

    def _reserve(self, ordinals: int) -> None:
        if ordinals > len(self._by_ordinal):
            added = max(1024, ordinals, 2 * len(self._by_ordinal)) - len(self._by_ordinal)
            self._ranking = np.pad(self._ranking, (0, added))
            self._by_ordinal = np.pad(self._by_ordinal, (0, added))
