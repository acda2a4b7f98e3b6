"""Searches inverted lists: with and without masks and exclusions, always completely."""

from collections.abc import Callable
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray

from index.exact import ExactSearch
from index.filters.masks import SlotMask
from index.lists import Found, InvertedLists
from index.masked_lists import ChangeLog, MaskedLists
from index.matrix import VectorMatrix
from index.probing import ProbeTable
from index.search import Exclusions, Hits, no_hits

_OVER_FETCH = 256  # hits fetched beyond k to make up for excluded ones; more are ruled out by a bitmap
_LISTED_SHARE = 0.2
"""A mask that lets less than this share through is gathered list by list; of more, a bit is tested for every row instead.

Measured with FAISS's lists: a row that passes costs 30 ns when it is gathered and 10 ns in its list; every other row costs a
test of about 5 ns.
"""
_COUNT_DRIFT = 0.05  # a mask's rows by list are counted anew when its size has changed by this share
_SPARSE = 0.5  # of the share of rows that pass: with less near a query, a filter is not spread like a random one
_STABLE = 0.98  # of the hits stay when twice as many lists are looked into: then more would hardly change them

Find = Callable[[int], Found]
"""The best k in so many nearest lists."""


class ListSearch:
    """Looks into the lists nearest to a query.

    The number of lists comes from `ProbeTable`, by k and by how many of the rows near the query a mask lets through. A mask
    that lets little through is searched exactly. Every answer is complete: what a search misses it looks for in ever more
    lists.
    """

    def __init__(
        self,
        lists: InvertedLists,
        table: ProbeTable,
        matrix: VectorMatrix,
        oracle: ExactSearch,
        log: ChangeLog,
        *,
        gather_rows: int,
    ) -> None:
        """log: of every change of what may be returned. gather_rows: masks that let no more through are gathered whole."""
        self.lists = lists
        self.table = table
        self._matrix = matrix
        self._oracle = oracle
        self._log = log
        self._gather_rows = gather_rows
        self._masked: WeakKeyDictionary[SlotMask, MaskedLists] = WeakKeyDictionary()
        self._counted: WeakKeyDictionary[SlotMask, tuple[int, NDArray[np.int64]]] = WeakKeyDictionary()
        # Numbers of lists to choose from: (G,) int64, at most 6 % apart.
        self._grid = np.unique(np.geomspace(1, lists.count, num=128).round().astype(np.int64))

    def all(self, queries: torch.Tensor, k: int, exclude: Exclusions | None, closed: NDArray[np.int64]) -> Hits:
        """Among everything in the lists but the closed slots, (c,) int64. See `Search.search`.

        What must not be returned is fetched and dropped, or ruled out by a bitmap if it is much.
        """
        if exclude is None and not len(closed):
            return self._at_once(queries, k, None, closed, 0)
        extra = len(closed) + np.array([len(one) for one in exclude] if exclude is not None else [0] * len(queries))
        few, many = np.flatnonzero(extra <= _OVER_FETCH).tolist(), np.flatnonzero(extra > _OVER_FETCH).tolist()
        if not many:
            return self._at_once(queries, k, exclude, closed, int(extra.max()))
        found = no_hits(len(queries), k)
        if few:
            own = self._at_once(queries[few], k, _of(exclude, few), closed, int(extra[few].max()))
            found.slots[few], found.scores[few] = own
        found.slots[many], found.scores[many] = self._with_bits(queries[many], k, _of(exclude, many), closed)
        return found

    def masked(self, queries: torch.Tensor, k: int, exclude: Exclusions | None, mask: SlotMask) -> Hits:
        """Among what a mask lets through. See `Search.search`."""
        if mask.count <= self._gather_rows:
            return self._oracle.gather(queries, k, mask.slots, exclude)
        listed = self._listed(mask) if mask.count < _LISTED_SHARE * len(self.lists) else None
        by_list = listed.by_list if listed is not None else self._by_list(mask)
        found = no_hits(len(queries), k)
        for row, query in enumerate(queries):
            excluded = exclude[row] if exclude is not None else None
            order = self.lists.by_nearness(query)
            if listed is not None:
                find = self._by_row(query, k, listed, mask, order, excluded)
            else:
                find = self._by_bits(query, k, order, self._bits(mask, excluded))
            probes, usual = self._first_probes(k, order, by_list)
            found.slots[row], found.scores[row] = self._until_sure(find, min(k, mask.count), probes, usual)
        return found

    def _at_once(
        self, queries: torch.Tensor, k: int, exclude: Exclusions | None, closed: NDArray[np.int64], extra: int
    ) -> Hits:
        found = self.lists.search(queries.numpy(), k + extra, min(self.table.unfiltered(k), self.lists.count), self._matrix)
        if extra:
            found = _without(found, k, exclude, closed)
        if min(found.slots[:, -1].tolist(), default=0) >= 0:
            return found
        hits = np.count_nonzero(found.slots >= 0, axis=1)
        short = np.flatnonzero(hits < min(k, len(self.lists) - len(closed))).tolist()
        if short:
            found.slots[short], found.scores[short] = self._with_bits(queries[short], k, _of(exclude, short), closed)
        return found

    def _with_bits(self, queries: torch.Tensor, k: int, exclude: Exclusions | None, closed: NDArray[np.int64]) -> Hits:
        found = no_hits(len(queries), k)
        probes = min(self.table.unfiltered(k), self.lists.count)
        for row, query in enumerate(queries):
            bits = np.full(-(-len(self.lists.list_of) // 8), 255, dtype=np.uint8)
            _clear_bits(bits, closed)
            if exclude is not None:
                _clear_bits(bits, exclude[row])
            find = self._by_bits(query, k, self.lists.by_nearness(query), bits)
            found.slots[row], found.scores[row] = self._until_sure(
                find, min(k, len(self.lists) - len(closed)), probes, usual=True
            )
        return found

    def _listed(self, mask: SlotMask) -> MaskedLists | None:
        """The mask's slots by list; None while too many changes wait for that to be of use."""
        listed = self._masked.get(mask)
        if listed is None or not listed.usable(mask):
            listed = MaskedLists(mask, self.lists, self._log)
            if not listed.usable(mask):
                return None
            self._masked[mask] = listed
        return listed

    def _by_list(self, mask: SlotMask) -> NDArray[np.int64]:
        """How many rows of each list a mask lets through: (L,) int64. Counted anew when the mask has changed much."""
        known = self._counted.get(mask)
        if known is None or abs(mask.count - known[0]) > _COUNT_DRIFT * known[0]:
            own = self.lists.lists_of(np.flatnonzero(mask.passes))
            known = self._counted[mask] = mask.count, np.bincount(own[own >= 0], minlength=self.lists.count)
        return known[1]

    def _by_bits(self, query: torch.Tensor, k: int, order: NDArray[np.int64], bits: NDArray[np.uint8]) -> Find:
        return lambda probes: self.lists.search_in(query.numpy(), k, order[:probes], bits, self._matrix)

    def _by_row(
        self,
        query: torch.Tensor,
        k: int,
        listed: MaskedLists,
        mask: SlotMask,
        order: NDArray[np.int64],
        exclude: NDArray[np.int64] | None,
    ) -> Find:
        def find(probes: int) -> Found:
            slots = listed.near(order[:probes], mask, exclude)
            found = no_hits(1, k)
            if len(slots):
                best = torch.topk(torch.mv(self._matrix.read(slots), query), min(k, len(slots)))
                found.slots[0, : len(best.values)] = slots[best.indices.numpy()]
                found.scores[0, : len(best.values)] = best.values.numpy()
            return found.slots[0], found.scores[0]

        return find

    def _until_sure(self, find: Find, wanted: int, probes: int, usual: bool) -> Found:
        """Looks into twice as many lists as long as hits are missing, or, where little of what passes lies near the query, as
        long as that changes the hits: of such filters the table, which was measured on random ones, says little.
        """
        before: NDArray[np.int64] | None = None
        while True:
            slots, scores = find(probes)
            complete = np.count_nonzero(slots >= 0) >= wanted
            settled = usual or (before is not None and np.isin(slots, before).mean() >= _STABLE)
            if probes >= self.lists.count or (complete and settled):
                return slots, scores
            before = slots
            probes = min(2 * probes, self.lists.count)

    def _first_probes(self, k: int, order: NDArray[np.int64], by_list: NDArray[np.int64]) -> tuple[int, bool]:
        """How many lists to look into, and whether what passes is spread as the table was measured.

        order: (L,) all lists, the nearest first. by_list: (L,) rows that pass. The number is the smallest that the table holds
        to be enough, both for the share of rows that pass in just these lists, and by how much of all that passes lies in them.
        """
        grid, count = self._grid, self.lists.count
        passing = np.cumsum(by_list[order])[grid - 1]  # (G,): rows that pass in so many nearest lists
        share = passing / np.maximum(np.cumsum(self.lists.sizes[order])[grid - 1], 1)
        covered = passing / max(passing[-1], 1)  # (G,): their part of all rows that pass
        part = min(float(self.table.probes(k, share[-1])) / count, 1.0)
        enough = (grid >= self.table.probes(k, share)) & (covered >= part)
        place = int(np.argmax(enough)) if enough.any() else len(grid) - 1
        expected = int(np.searchsorted(grid, part * count))
        usual = place == len(grid) - 1 or share[min(place, expected)] >= _SPARSE * share[-1]
        return int(grid[place]), bool(usual)

    def _bits(self, mask: SlotMask, exclude: NDArray[np.int64] | None) -> NDArray[np.uint8]:
        """What one query may return, as `search_in` wants it: by slot, little-endian, up to the last slot in the lists."""
        size = -(-len(self.lists.list_of) // 8)
        bits = mask.bits if len(mask.bits) >= size else np.pad(mask.bits, (0, size - len(mask.bits)))
        if exclude is not None and len(exclude):
            bits = bits.copy()
            _clear_bits(bits, exclude)
        return bits


def _of(exclude: Exclusions | None, rows: list[int]) -> Exclusions | None:
    return [exclude[row] for row in rows] if exclude is not None else None


def _without(found: Hits, k: int, exclude: Exclusions | None, closed: NDArray[np.int64]) -> Hits:
    """The first k of (B, n >= k) hits that may be returned."""
    kept = found.slots >= 0
    if len(closed):
        kept &= ~np.isin(found.slots, closed)
    for row, excluded in enumerate(exclude or ()):
        if len(excluded):
            kept[row] &= ~np.isin(found.slots[row], excluded)
    order = np.argsort(~kept, axis=1, kind="stable")[:, :k]  # those that are kept first, in their order
    rows = np.arange(len(kept))[:, None]
    kept = kept[rows, order]
    return Hits(np.where(kept, found.slots[rows, order], -1), np.where(kept, found.scores[rows, order], np.float32(-np.inf)))


def _clear_bits(bits: NDArray[np.uint8], slots: NDArray[np.int64]) -> None:
    slots = slots[slots < 8 * len(bits)]
    np.bitwise_and.at(bits, slots >> 3, ~(np.uint8(1) << (slots & 7).astype(np.uint8)))
