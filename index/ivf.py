"""Approximate search on a CPU: inverted lists, changed in place, looked into as far as a target recall needs."""

import numpy as np
import torch
from numpy.typing import NDArray

from index.exact import ExactSearch, group_by_mask
from index.faiss_lists import FaissLists
from index.list_search import ListSearch
from index.lists import InvertedLists
from index.masked_lists import ChangeLog
from index.matrix import VectorMatrix
from index.probing import ProbeTable
from index.search import Exclusions, Hits, Masks, check_search, no_hits
from index.slot_queue import SlotQueue
from index.slots import SlotTable

SLICE = 64
"""Slots that one `settle` brings up to date at most: about 0.3 ms at 2,048 lists of 64 components."""
_SLICE_WORK = 8 * 1024 * 1024  # components that a slice is compared with: of many lists it takes fewer slots


_NONE = np.zeros(0, dtype=np.int64)


class IvfSearch:
    """Keeps inverted lists in step with slots and matrix, and searches them: see `ListSearch`.

    Until `use` gives it lists it passes everything on to the exact search.
    """

    def __init__(
        self, slots: SlotTable, matrix: VectorMatrix, *, oracle: ExactSearch, lists: type[InvertedLists] = FaissLists
    ) -> None:
        """lists: those that `use` will be given."""
        self.kind = lists.kind
        self.lists_type = lists
        self._slots = slots
        self._matrix = matrix
        self._oracle = oracle
        self._searched: ListSearch | None = None
        self._slice = SLICE
        self._pending = SlotQueue()
        self._closed: set[int] = set()  # in the lists, but not to be returned any more
        self._log = ChangeLog()

    @property
    def lists(self) -> InvertedLists | None:
        """The lists that are searched; None before there are any."""
        return self._searched.lists if self._searched is not None else None

    @property
    def table(self) -> ProbeTable | None:
        """How many lists are looked into; None before there are any."""
        return self._searched.table if self._searched is not None else None

    @property
    def gains_from_batches(self) -> bool:
        """See `Search.gains_from_batches`: each query has lists of its own."""
        return self._searched is None

    def use(self, lists: InvertedLists, table: ProbeTable, *, gather_rows: int) -> ListSearch | None:
        """Searches these lists from now on, and returns what was searched before: to let go of it may take long.

        They must hold every slot that may be returned, and no other. gather_rows: masks that let no more rows through are
        searched by gathering these.
        """
        before, self._searched = self._searched, None
        self._searched = ListSearch(lists, table, self._matrix, self._oracle, self._log, gather_rows=gather_rows)
        self._slice = max(8, min(SLICE, _SLICE_WORK // (lists.count * self._matrix.dim)))
        self._pending.clear()
        self._log.settled = self._log.count
        self._closed.clear()
        return before

    def give_up(self) -> ListSearch | None:
        """Searches no lists any more; returns those that were, to let go of."""
        before, self._searched = self._searched, None
        self._pending.clear()
        self._closed.clear()
        return before

    def update(self, slots: NDArray[np.int64]) -> None:
        """See `Search.update`."""
        if self._searched is None or not len(slots):
            return
        self._pending.append(slots)
        self._log.append(slots)
        gone = slots[~(self._slots.eligible(slots) & self._matrix.holds(slots))]
        self._closed.update(gone[self._searched.lists.contains(gone)].tolist())

    def settle(self) -> int:
        """See `Search.settle`. What fails, for want of memory for example, stays to be settled."""
        if self._searched is None or not self._pending:
            return 0
        waiting = self._pending.take(self._slice)
        sync(self._searched.lists, self._slots, self._matrix, np.unique(waiting))
        self._pending.done(len(waiting))
        self._log.settled = self._log.count - len(self._pending)
        self._closed.difference_update(waiting.tolist())
        return len(self._pending)

    def search(self, queries: torch.Tensor, k: int, exclude: Exclusions | None = None, masks: Masks | None = None) -> Hits:
        """See `Search.search`."""
        check_search(self._matrix.dim, queries, k, exclude, masks)
        search = self._searched
        if search is None:
            return self._oracle.search(queries, k, exclude, masks)
        closed = np.fromiter(self._closed, dtype=np.int64, count=len(self._closed)) if self._closed else _NONE
        if masks is None or all(mask is None for mask in masks):
            return search.all(queries, k, exclude, closed)
        found = no_hits(len(queries), k)
        for mask, rows in group_by_mask(masks):
            own = [exclude[row] for row in rows] if exclude is not None else None
            hits = search.all(queries[rows], k, own, closed) if mask is None else search.masked(queries[rows], k, own, mask)
            found.slots[rows], found.scores[rows] = hits
        return found


def sync(lists: InvertedLists, slots_table: SlotTable, matrix: VectorMatrix, slots: NDArray[np.int64]) -> None:
    """Gives the lists what the slots, (n,) int64 each once, hold now: their row, or none if it must not be returned."""
    permitted = slots_table.eligible(slots) & matrix.holds(slots)
    lists.remove(slots[~permitted])
    lists.put(slots[permitted], matrix.read(slots[permitted]))
