"""Item ids, the slots that their vectors lie in, and which of them may be returned."""

from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from index.filters.columns import AttributeColumns
from index.growth import grown, longer


class SlotTable:
    """Maps item ids to slots: positions that a tenant's releases share, each in a matrix of its own.

    Slots are dense, counted from 0, and reused only after `free`. An item is *live* from `insert` to `remove`, and *eligible*
    while it is live and available. A removed item keeps its slot, so that its vector stays readable for histories that refer
    to it, until `free`.

    It grows when it is full, which copies everything: 10 ms a million slots. A `capacity` with room to spare puts that off, and
    costs memory only as it is used.

    One thread writes; others may read single entries, which are replaced whole.
    """

    def __init__(self, capacity: int = 1024) -> None:
        self._slot_of: dict[str, int] = {}
        self._free: list[int] = []
        self.extent = 0  # one past the highest slot ever used
        self.ids: NDArray[np.object_] = np.empty(capacity, dtype=object)  # (capacity,) item id or None
        self.live: NDArray[np.bool_] = np.zeros(capacity, dtype=bool)  # (capacity,)
        self.available: NDArray[np.bool_] = np.zeros(capacity, dtype=bool)  # (capacity,) set for live slots alone
        self.columns = AttributeColumns(capacity)  # what filters compare; a slot's attributes are cleared with its item

    def __len__(self) -> int:
        """The number of live items."""
        return len(self._slot_of)

    def slot(self, item_id: str) -> int:
        """The slot of a live item, or -1."""
        return self._slot_of.get(item_id, -1)

    def slots(self, item_ids: list[str] | tuple[str, ...]) -> NDArray[np.int64]:
        """Slots of those of the ids that are live, in their order; unknown ids are left out: (<= n,) int64."""
        found = np.fromiter(map(self._slot_of.get, item_ids, repeat(-1)), dtype=np.int64, count=len(item_ids))
        return found[found >= 0]

    def insert(self, item_id: str, *, available: bool = True) -> int:
        """Makes the item live, and returns its slot; an item that is live already keeps its slot."""
        slot = self._slot_of.get(item_id, -1)
        if slot < 0:
            slot = self._take()
            self.ids[slot] = item_id
            self._slot_of[item_id] = slot
            self.live[slot] = True
        self.available[slot] = available
        return slot

    def revive(self, item_id: str, slot: int, *, available: bool = True) -> None:
        """Makes a removed item live again in the slot that it still holds.

        Raises ValueError if the slot is not the removed item's.
        """
        if self.ids[slot] != item_id or self.live[slot]:
            raise ValueError(f"slot {slot} does not hold the removed item {item_id!r}")
        self._slot_of[item_id] = slot
        self.live[slot] = True
        self.available[slot] = available

    def remove(self, item_id: str) -> int:
        """Ends the item's life and returns the slot, which stays taken until `free`; -1 if the item is not live."""
        slot = self._slot_of.pop(item_id, -1)
        if slot >= 0:
            self.live[slot] = False
            self.available[slot] = False
        return slot

    def free(self, slot: int) -> None:
        """Gives a removed item's slot back for reuse. No batch in flight and no history may refer to it any more.

        Raises ValueError if the slot's item is live or the slot is not taken.
        """
        if self.live[slot] or self.ids[slot] is None:
            raise ValueError(f"slot {slot} is live or already free")
        self.ids[slot] = None
        self.columns.clear_one(slot)
        self._free.append(slot)

    def eligible(self, slots: NDArray[np.int64] | slice) -> NDArray[np.bool_]:
        """Which of the slots, or of a slice of n, may be returned as candidates: (n,) bool. What is available is live."""
        if isinstance(slots, slice):
            inside_slice: NDArray[np.bool_] = self.available[slots]
            return inside_slice.copy()
        eligible: NDArray[np.bool_] = self.available.take(slots)
        return eligible

    def _take(self) -> int:
        if self._free:
            slot = self._free.pop()
            self.columns.clear_one(slot)  # whatever was written to it since it was freed is not the next item's
            return slot
        if self.extent == len(self.ids):
            self._grow(grown(self.extent))
        self.extent += 1
        return self.extent - 1

    def _grow(self, capacity: int) -> None:
        # New arrays, assigned one by one: a reader in another thread sees an old array or a new one, both valid for its slots.
        self.ids = longer(self.ids, capacity)
        self.live = longer(self.live, capacity)
        self.available = longer(self.available, capacity)
        self.columns.grow(capacity)
