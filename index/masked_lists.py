"""What a mask lets through, list by list: a search then reads just the passing rows near its query."""

import numpy as np
from numpy.typing import NDArray

from index.filters.masks import SlotMask
from index.lists import InvertedLists

_REMEMBERED = 4096
"""Changes that a search looks at one by one. A mask that is further behind is listed anew, in 2 ms for 100,000 slots."""


class ChangeLog:
    """The slots that changed last, in order."""

    def __init__(self) -> None:
        self.count = 0
        """Changes so far."""
        self.settled = 0
        """How many of them the lists show: all but the last ones."""
        self._ring: NDArray[np.int64] = np.zeros(_REMEMBERED, dtype=np.int64)

    def append(self, slots: NDArray[np.int64]) -> None:
        """Takes note of (n,) int64."""
        kept = slots[-_REMEMBERED:]
        self.count += len(slots)
        self._ring[np.arange(self.count - len(kept), self.count) % _REMEMBERED] = kept

    def since(self, position: int) -> NDArray[np.int64] | None:
        """The slots of all changes but the first `position`: (n,) int64; None if they are too many to be remembered."""
        if self.count - position > _REMEMBERED:
            return None
        found: NDArray[np.int64] = self._ring[np.arange(position, self.count) % _REMEMBERED]
        return found


class MaskedLists:
    """The slots that a mask lets through, ordered by the list that their row is in, as of one moment.

    Changes since then are in the log: `near` adds every slot that has changed, wherever it lies, and leaves out what does not
    pass any more. So what it returns is never stale, and nothing has to be ordered anew for a few changes.
    """

    def __init__(self, mask: SlotMask, lists: InvertedLists, log: ChangeLog) -> None:
        """mask: it is not kept, so that what is kept for it can go with it."""
        slots = np.flatnonzero(mask.passes)
        list_of = lists.lists_of(slots)
        slots, list_of = slots[list_of >= 0], list_of[list_of >= 0]
        order = np.argsort(list_of.astype(np.uint16) if lists.count < 65_536 else list_of, kind="stable")  # radix sort
        self._slots = slots[order]  # (m,) int64, list by list
        self.by_list = np.bincount(list_of, minlength=lists.count)  # (L,) rows that pass
        self._starts = np.cumsum(self.by_list) - self.by_list  # (L,)
        self._log = log
        self._as_of = log.settled
        self._seen: NDArray[np.bool_] = np.zeros(len(mask.passes), dtype=bool)  # by slot, all false between calls

    def usable(self, mask: SlotMask) -> bool:
        """Whether few enough slots have changed since."""
        return self._log.since(self._as_of) is not None and len(self._seen) >= len(mask.passes)

    def near(self, lists: NDArray[np.int64], mask: SlotMask, exclude: NDArray[np.int64] | None) -> NDArray[np.int64]:
        """The slots that pass and lie in these lists, or that have changed lately, without the excluded ones: (n,) int64."""
        sizes = self.by_list[lists]
        ends = np.cumsum(sizes)
        places = np.repeat(self._starts[lists] - ends + sizes, sizes) + np.arange(ends[-1])
        slots: NDArray[np.int64] = self._slots[places]
        changed = self._log.since(self._as_of)
        if changed is not None and len(changed):
            self._seen[slots] = True
            changed = np.unique(changed)
            changed = changed[changed < len(self._seen)]
            added = changed[~self._seen[changed]]
            self._seen[slots] = False
            slots = np.concatenate([slots, added])
            slots = slots[mask.permits(slots)]
        if exclude is not None and len(exclude):
            exclude = exclude[exclude < len(self._seen)]
            self._seen[exclude] = True
            slots = slots[~self._seen[slots]]
            self._seen[exclude] = False
        return slots
