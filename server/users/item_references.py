"""How many recorded events count for each item, and which wait for theirs."""

from collections import defaultdict
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from server.users.history_loading import Events


class ItemReferences:
    """Counts the events that the journal holds, by item. One thread changes it."""

    def __init__(self, unreferenced: Callable[[int], None]) -> None:
        """unreferenced: told when nothing refers to an item any more."""
        self._unreferenced = unreferenced
        self._counts: NDArray[np.int64] = np.zeros(1024, dtype=np.int64)  # by ordinal
        self._waiting: defaultdict[str, dict[int, int]] = defaultdict(dict)  # by item id: events of each key

    def count(self, ordinal: int) -> int:
        """Events on the item that count."""
        return int(self._counts[ordinal]) if ordinal < len(self._counts) else 0

    def add(self, ordinal: int, by: int = 1) -> None:
        """So many more events count, or fewer."""
        self._reserve(ordinal)
        self._counts[ordinal] += by
        if by < 0 and self._counts[ordinal] == 0:
            self._unreferenced(ordinal)

    def wait(self, item_id: str, key: int, by: int = 1) -> None:
        """So many more events of the key wait for the item, or fewer."""
        events = self._waiting[item_id]
        events[key] = events.get(key, 0) + by
        if events[key] <= 0:
            del events[key]
        if not events:
            del self._waiting[item_id]

    def came_in(self, item_id: str, ordinal: int) -> Iterable[int]:
        """The events that waited for the item count; returns their keys."""
        waiting = self._waiting.pop(item_id, {})
        if waiting:
            self.add(ordinal, sum(waiting.values()))
        return waiting.keys()

    def take_in(self, events: Events) -> None:
        """Many events at once, at start."""
        for place in np.flatnonzero((events.ordinals < 0) & (events.types >= 0)).tolist():
            self.wait(events.item_ids[place], int(events.keys[place]))
        counts = np.bincount(events.counting().ordinals)
        self._reserve(len(counts))
        self._counts[: len(counts)] += counts

    def _reserve(self, ordinal: int) -> None:
        if ordinal >= len(self._counts):
            self._counts = np.pad(self._counts, (0, max(ordinal + 1, len(self._counts))))
