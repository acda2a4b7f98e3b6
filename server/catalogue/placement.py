"""Where items lie: from the journal's ordinals, which are never reused, to slots, which are."""

import numpy as np
from numpy.typing import NDArray

from index.slots import SlotTable


class Placement:
    """The slot of every ordinal that has one: live items, and removed ones that histories still refer to.

    Owned by the engine's thread.
    """

    def __init__(self) -> None:
        self.slots = SlotTable()
        self._slot_of: NDArray[np.int64] = np.full(1024, -1, dtype=np.int64)  # by ordinal

    def slots_of(self, ordinals: NDArray[np.integer]) -> NDArray[np.int64]:
        """Slots by ordinal, -1 where there is none: (n,) -> (n,) int64."""
        found = np.full(len(ordinals), -1, dtype=np.int64)
        inside = ordinals < len(self._slot_of)
        found[inside] = self._slot_of[ordinals[inside]]
        return found

    def place(self, ordinal: int, item_id: str, *, available: bool) -> int:
        """Makes the item live, in the slot that it has or in a new one, and returns the slot."""
        slot = self._slot(ordinal)
        if slot >= 0 and not self.slots.live[slot]:
            self.slots.revive(item_id, slot, available=available)
            return slot
        slot = self.slots.insert(item_id, available=available)
        self._reserve(ordinal + 1)
        self._slot_of[ordinal] = slot
        return slot

    def withdraw(self, item_id: str) -> int:
        """Ends the item's life; it keeps its slot. Returns the slot, or -1."""
        return self.slots.remove(item_id)

    def free(self, ordinal: int) -> int:
        """Gives back the slot of a removed item; returns it, or -1 if there was none or the item is live again."""
        slot = self._slot(ordinal)
        if slot < 0 or self.slots.live[slot]:
            return -1
        self.slots.free(slot)
        self._slot_of[ordinal] = -1
        return slot

    def _slot(self, ordinal: int) -> int:
        return int(self._slot_of[ordinal]) if ordinal < len(self._slot_of) else -1

    def _reserve(self, ordinals: int) -> None:
        if ordinals > len(self._slot_of):
            grown = np.full(max(ordinals, 2 * len(self._slot_of)), -1, dtype=np.int64)
            grown[: len(self._slot_of)] = self._slot_of
            self._slot_of = grown
