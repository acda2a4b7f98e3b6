"""Approximate search on a CPU: FAISS's inverted lists, changed in place, looked into as far as a target recall needs."""

from collections import deque
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray

from index.exact import ExactSearch, group_by_mask
from index.filters.masks import SlotMask
from index.lists import InvertedLists
from index.matrix import VectorMatrix
from index.probing import ProbeTable
from index.search import Exclusions, Hits, Masks, check_search, no_hits
from index.slots import SlotTable

SLICE = 64
"""Slots that one `settle` brings up to date: about 0.3 ms at 1,024 lists of 64 components, so that a search hardly waits."""
_OVER_FETCH = 256  # hits fetched beyond k to make up for excluded ones; more are ruled out by a bitmap
_SPARSE = 0.5  # of the share of rows that pass: with less near a query, a filter is not spread like a random one
_STABLE = 0.98  # of the hits stay when twice as many lists are looked into: then more would hardly change them
_COUNT_DRIFT = 0.05  # a mask's rows by list are counted anew when its size has changed by this share


class IvfSearch:
    """Looks into the lists nearest to a query, and scores what it finds there with the matrix's own rows.

    The number of lists comes from `ProbeTable`, by k and by how many of the rows near the query a mask lets through. A mask
    that lets little through is searched exactly. Every answer is complete: what a search misses it looks for in ever more
    lists. Until `use` gives it lists it passes everything on to the exact search.
    """

    kind = "faiss-ivf"

    def __init__(self, slots: SlotTable, matrix: VectorMatrix, *, oracle: ExactSearch) -> None:
        self._slots = slots
        self._matrix = matrix
        self._oracle = oracle
        self._lists: InvertedLists | None = None
        self._table: ProbeTable | None = None
        self._gather_rows = 0
        self._grid: NDArray[np.int64] = np.ones(1, dtype=np.int64)
        self._pending: deque[NDArray[np.int64]] = deque()
        self._left = 0  # slots in _pending
        self._closed: set[int] = set()  # in the lists, but not to be returned any more
        self._mask_counts: WeakKeyDictionary[SlotMask, tuple[int, NDArray[np.int64]]] = WeakKeyDictionary()

    @property
    def lists(self) -> InvertedLists | None:
        """The lists that are searched; None before there are any."""
        return self._lists

    @property
    def table(self) -> ProbeTable | None:
        """How many lists are looked into; None before there are any."""
        return self._table

    def use(self, lists: InvertedLists, table: ProbeTable, *, gather_rows: int) -> None:
        """Searches these lists from now on. They must hold every slot that may be returned, and no other.

        gather_rows: masks that let fewer rows through are searched by gathering these.
        """
        self._lists, self._table, self._gather_rows = lists, table, gather_rows
        self._grid = np.unique(np.geomspace(1, lists.count, num=128).round().astype(np.int64))
        self._pending.clear()
        self._left = 0
        self._closed.clear()
        self._mask_counts.clear()

    def update(self, slots: NDArray[np.int64]) -> None:
        """See `Search.update`."""
        if self._lists is None or not len(slots):
            return
        self._pending.append(slots)
        self._left += len(slots)
        gone = slots[~self._permitted(slots)]
        self._closed.update(gone[self._lists.contains(gone)].tolist())

    def settle(self) -> int:
        """See `Search.settle`."""
        if self._lists is None or not self._pending:
            return 0
        waiting = self._pending.popleft()
        now = np.unique(waiting[:SLICE])
        if len(waiting) > SLICE:
            self._pending.appendleft(waiting[SLICE:])
        self._left -= min(SLICE, len(waiting))
        sync(self._lists, self._slots, self._matrix, now)
        self._closed.difference_update(now.tolist())
        return self._left

    def search(self, queries: torch.Tensor, k: int, exclude: Exclusions | None = None, masks: Masks | None = None) -> Hits:
        """See `Search.search`."""
        check_search(self._matrix.dim, queries, k, exclude, masks)
        if self._lists is None or self._table is None:
            return self._oracle.search(queries, k, exclude, masks)
        if masks is None or all(mask is None for mask in masks):
            return self._search_all(queries, k, exclude)
        found = no_hits(len(queries), k)
        for mask, rows in group_by_mask(masks):
            own = [exclude[row] for row in rows] if exclude is not None else None
            hits = self._search_all(queries[rows], k, own) if mask is None else self._search_mask(queries[rows], k, own, mask)
            found.slots[rows], found.scores[rows] = hits
        return found

    def _search_all(self, queries: torch.Tensor, k: int, exclude: Exclusions | None) -> Hits:
        """Without a mask. What must not be returned is fetched and dropped, or ruled out by a bitmap if it is much."""
        if exclude is not None and max(map(len, exclude)) + len(self._closed) > _OVER_FETCH:
            return self._search_each(queries, k, exclude, None)
        lists, table = self._in_use()
        extra = len(self._closed) + (max(map(len, exclude)) if exclude is not None else 0)
        slots, _ = lists.search(queries.numpy(), k + extra, min(table.unfiltered(k), lists.count))
        if extra:
            self._drop(slots, exclude)
        found = self._score(queries, slots, k)
        if found.slots[:, -1].min() < 0:
            hits = np.count_nonzero(found.slots >= 0, axis=1)
            short = np.flatnonzero(hits < min(k, len(lists) - len(self._closed)))
            own = [exclude[row] for row in short.tolist()] if exclude is not None else None
            found.slots[short], found.scores[short] = self._search_each(queries[short], k, own, None)
        return found

    def _search_mask(self, queries: torch.Tensor, k: int, exclude: Exclusions | None, mask: SlotMask) -> Hits:
        if mask.count <= self._gather_rows:
            return self._oracle.gather(queries, k, mask.slots, exclude)
        return self._search_each(queries, k, exclude, mask)

    def _search_each(self, queries: torch.Tensor, k: int, exclude: Exclusions | None, mask: SlotMask | None) -> Hits:
        """Each query on its own, with a bitmap of what may be returned, in ever more lists until the answer is complete."""
        lists, _ = self._in_use()
        found = no_hits(len(queries), k)
        by_list = self._mask_by_list(mask) if mask is not None else lists.sizes
        for row in range(len(queries)):
            query = queries[row : row + 1]
            bits = self._bits(exclude[row] if exclude is not None else None, mask)
            slots = self._search_until_sure(query, k, bits, by_list, len(lists) if mask is None else mask.count)
            found.slots[row], found.scores[row] = (part[0] for part in self._score(query, slots, k))
        return found

    def _search_until_sure(
        self, query: torch.Tensor, k: int, bits: NDArray[np.uint8], by_list: NDArray[np.int64], passing: int
    ) -> NDArray[np.int64]:
        """The best k for the (1, D) query among what the bitmap lets through, by the lists' scores: (1, k) slots, -1 for none.

        It looks into twice as many lists as long as hits are missing, or, where little of what passes lies near the query, as
        long as that changes the hits: of such filters the table, which was measured on random ones, says little.
        """
        lists, _ = self._in_use()
        probes, usual = self._first_probes(query[0], k, by_list)
        before: NDArray[np.int64] | None = None
        while True:
            slots, _ = lists.search(query.numpy(), k, probes, bits)
            complete = np.count_nonzero(slots >= 0) >= min(k, passing)
            settled = usual or (before is not None and np.isin(slots, before).mean() >= _STABLE)
            if probes >= lists.count or (complete and settled):
                return slots
            before = slots
            probes = min(2 * probes, lists.count)

    def _first_probes(self, query: torch.Tensor, k: int, by_list: NDArray[np.int64]) -> tuple[int, bool]:
        """How many lists to look into for the (D,) query, and whether what passes is spread as the table was measured.

        by_list: (L,) rows that pass. The number is the smallest that the table holds to be enough, both for the share of rows
        that pass in just these lists, and by how much of all that passes lies in them.
        """
        lists, table = self._in_use()
        order = lists.by_nearness(query)
        grid = self._grid  # numbers of lists to choose from: (G,)
        passing = np.cumsum(by_list[order])[grid - 1]  # (G,): rows that pass in so many nearest lists
        share = passing / np.maximum(np.cumsum(lists.sizes[order])[grid - 1], 1)
        covered = passing / max(passing[-1], 1)  # (G,): their part of all rows that pass
        part = min(float(table.probes(k, share[-1])) / lists.count, 1.0)
        enough = (grid >= table.probes(k, share)) & (covered >= part)
        place = int(np.argmax(enough)) if enough.any() else len(grid) - 1
        expected = int(np.searchsorted(grid, part * lists.count))
        usual = place == len(grid) - 1 or share[min(place, expected)] >= _SPARSE * share[-1]
        return int(grid[place]), bool(usual)

    def _bits(self, exclude: NDArray[np.int64] | None, mask: SlotMask | None) -> NDArray[np.uint8]:
        """What one query may return, packed for FAISS: by slot, little-endian."""
        lists, _ = self._in_use()
        size = -(-len(lists.list_of) // 8)
        if mask is None:
            bits = np.full(size, 255, dtype=np.uint8)
            _clear_bits(bits, np.fromiter(self._closed, dtype=np.int64, count=len(self._closed)))
        else:
            bits = mask.bits if len(mask.bits) >= size else np.pad(mask.bits, (0, size - len(mask.bits)))
        if exclude is not None and len(exclude):
            bits = bits.copy()
            _clear_bits(bits, exclude)
        return bits

    def _mask_by_list(self, mask: SlotMask) -> NDArray[np.int64]:
        """How many rows of each list a mask lets through: (L,) int64. Counted anew when the mask has changed much."""
        lists, _ = self._in_use()
        known = self._mask_counts.get(mask)
        if known is None or abs(mask.count - known[0]) > _COUNT_DRIFT * known[0]:
            slots = mask.slots
            own = lists.list_of[slots[lists.contains(slots)]]
            known = mask.count, np.bincount(own, minlength=lists.count)
            self._mask_counts[mask] = known
        return known[1]

    def _drop(self, slots: NDArray[np.int64], exclude: Exclusions | None) -> None:
        """Blanks what must not be returned among (B, n) slots."""
        if self._closed:
            slots[np.isin(slots, np.fromiter(self._closed, dtype=np.int64, count=len(self._closed)))] = -1
        for row, excluded in enumerate(exclude or ()):
            if len(excluded):
                slots[row, np.isin(slots[row], excluded)] = -1

    def _score(self, queries: torch.Tensor, slots: NDArray[np.int64], k: int) -> Hits:
        """The best k of the (B, n >= k) slots, by the matrix's rows: what the lists hold is rounded, and may be older."""
        count, width = slots.shape
        missing = slots.min() < 0
        wanted = np.maximum(slots, 0) if missing else slots
        rows = self._matrix.read(wanted.reshape(-1)).view(count, width, -1)  # (B, n, D) float32
        scores = torch.bmm(rows, queries[:, :, None])[:, :, 0]  # (B, n)
        if missing:
            scores.masked_fill_(torch.from_numpy(slots < 0), -torch.inf)
        values, places = torch.topk(scores, k, dim=1)
        best = torch.gather(torch.from_numpy(slots), 1, places)
        return Hits(best.numpy(), values.numpy())

    def _permitted(self, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
        return self._slots.eligible(slots) & self._matrix.holds(slots)

    def _in_use(self) -> tuple[InvertedLists, ProbeTable]:
        if self._lists is None or self._table is None:
            raise RuntimeError("there are no lists yet")
        return self._lists, self._table


def sync(lists: InvertedLists, slots_table: SlotTable, matrix: VectorMatrix, slots: NDArray[np.int64]) -> None:
    """Gives the lists what the slots, (n,) int64 each once, hold now: their row, or none if it must not be returned."""
    permitted = slots_table.eligible(slots) & matrix.holds(slots)
    lists.remove(slots[~permitted])
    lists.put(slots[permitted], matrix.read(slots[permitted]))


def _clear_bits(bits: NDArray[np.uint8], slots: NDArray[np.int64]) -> None:
    slots = slots[slots < 8 * len(bits)]
    np.bitwise_and.at(bits, slots >> 3, ~(np.uint8(1) << (slots & 7).astype(np.uint8)))
