"""Where items lie: from the journal's ordinals, which are never reused, to slots, which are."""

import numpy as np
from numpy.typing import NDArray

from index.growth import grown, longer
from index.slots import SlotTable


class Placement:
    """The slot of every ordinal that has one: live items, and removed ones that histories still refer to. One for all releases.

    Owned by the engine's thread; others may ask for single slots.
    """

    def __init__(self, *, items: int = 0, ordinals: int = 0) -> None:
        """items, ordinals: how many there are, so that the tables need not grow before there are half as many more."""
        self.slots = SlotTable(capacity=max(1024, items + items // 2))
        # By ordinal, slot + 1, 0 where there is none: what is not written yet takes no memory.
        self._slot_of: NDArray[np.int64] = np.zeros(max(1024, ordinals + ordinals // 2), dtype=np.int64)
        self._changed_at: NDArray[np.int64] = np.zeros(len(self._slot_of), dtype=np.int64)  # by ordinal: `changes` at its last
        self.changes = 0
        """How often items were placed: what was made of an item's content before its last placing is out of date."""
        # By slot; of a free slot it means nothing.
        self._ordinal_of: NDArray[np.int64] = np.zeros(len(self.slots.ids), dtype=np.int64)

    def ordinals_of(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Ordinals by slot: (n,) int64 slots that are taken -> (n,) int64."""
        return self._ordinal_of[slots]

    def slots_of(self, ordinals: NDArray[np.integer]) -> NDArray[np.int64]:
        """Slots by ordinal, -1 where there is none: (n,) -> (n,) int64."""
        try:
            known: NDArray[np.int64] = self._slot_of.take(ordinals) - 1
            return known
        except IndexError:  # ordinals that have no place yet are the exception, and looking for them costs more than the rest
            pass
        found = np.full(len(ordinals), -1, dtype=np.int64)
        inside = ordinals < len(self._slot_of)
        found[inside] = self._slot_of[ordinals[inside]] - 1
        return found

    def placed(self) -> NDArray[np.int64]:
        """All ordinals that have a slot, ascending: (n,) int64."""
        return np.flatnonzero(self._slot_of)

    def changed(self, ordinals: NDArray[np.int64]) -> int:
        """Notes that these items, (n,) int64, which are placed, have other content from now on; returns `changes`."""
        self.changes += 1
        self._changed_at[ordinals] = self.changes
        return self.changes

    def unchanged(self, ordinals: NDArray[np.int64], since: int) -> NDArray[np.bool_]:
        """Which of the items have a slot, and the content that they had when `changes` was `since`: (n,) int64 -> (n,) bool."""
        there = self.slots_of(ordinals) >= 0
        there[there] = self._changed_at[ordinals[there]] <= since
        return there

    def place(self, ordinal: int, item_id: str, *, available: bool) -> int:
        """Makes the item live, in the slot that it has or in a new one, and returns the slot."""
        slot = self._slot(ordinal)
        if slot >= 0 and not self.slots.live[slot]:
            self.slots.revive(item_id, slot, available=available)
            return slot
        slot = self.slots.insert(item_id, available=available)
        self._reserve(ordinal + 1)
        self._slot_of[ordinal] = slot + 1
        if slot >= len(self._ordinal_of):
            self._ordinal_of = longer(self._ordinal_of, len(self.slots.ids))
        self._ordinal_of[slot] = ordinal
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
        self._slot_of[ordinal] = 0
        return slot

    def _slot(self, ordinal: int) -> int:
        return int(self._slot_of[ordinal]) - 1 if ordinal < len(self._slot_of) else -1

    def _reserve(self, ordinals: int) -> None:
        if ordinals > len(self._slot_of):
            length = max(ordinals, grown(len(self._slot_of)))
            self._changed_at = longer(self._changed_at, length)
            self._slot_of = longer(self._slot_of, length)
