"""Searches inverted lists: with and without masks and exclusions, always completely."""

from collections.abc import Callable
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray

from index.exact import ExactSearch
from index.filters.masks import SlotMask
from index.lists import InvertedLists
from index.masked_lists import ChangeLog, MaskedLists
from index.matrix import VectorMatrix
from index.probing import ProbeTable
from index.search import Exclusions, Hits, no_hits
from index.topk import top_k

_OVER_FETCH = 256  # hits fetched beyond k to make up for excluded ones; more are ruled out by a bitmap
_LISTED_SHARE = 0.2
"""A mask that lets less than this share through is gathered list by list; of more, FAISS tests a bit for every row instead.

A row that passes costs 30 ns when it is gathered and 10 ns in its list; every other row costs a test of about 5 ns.
"""
_SPARSE = 0.5  # of the share of rows that pass: with less near a query, a filter is not spread like a random one
_STABLE = 0.98  # of the hits stay when twice as many lists are looked into: then more would hardly change them

Find = Callable[[int], NDArray[np.int64]]
"""The best k slots in so many nearest lists, best first: (k,) int64, -1 where there are fewer."""


class ListSearch:
    """Looks into the lists nearest to a query, and scores what it finds there with the matrix's own rows.

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
        # Numbers of lists to choose from: (G,) int64, at most 6 % apart.
        self._grid = np.unique(np.geomspace(1, lists.count, num=128).round().astype(np.int64))

    def all(self, queries: torch.Tensor, k: int, exclude: Exclusions | None, closed: NDArray[np.int64]) -> Hits:
        """Among everything in the lists but the closed slots, (c,) int64. See `Search.search`.

        What must not be returned is fetched and dropped, or ruled out by a bitmap if it is much.
        """
        extra = len(closed) + (max(map(len, exclude)) if exclude is not None else 0)
        if extra > _OVER_FETCH:
            return self._all_with_bits(queries, k, exclude, closed)
        slots, _ = self.lists.search(queries.numpy(), k + extra, min(self.table.unfiltered(k), self.lists.count))
        if extra:
            _drop(slots, exclude, closed)
        found = self._score(queries, slots, k)
        if found.slots[:, -1].min() < 0:
            hits = np.count_nonzero(found.slots >= 0, axis=1)
            short = np.flatnonzero(hits < min(k, len(self.lists) - len(closed)))
            own = [exclude[row] for row in short.tolist()] if exclude is not None else None
            found.slots[short], found.scores[short] = self._all_with_bits(queries[short], k, own, closed)
        return found

    def masked(self, queries: torch.Tensor, k: int, exclude: Exclusions | None, mask: SlotMask) -> Hits:
        """Among what a mask lets through. See `Search.search`."""
        if mask.count <= self._gather_rows:
            return self._oracle.gather(queries, k, mask.slots, exclude)
        listed = self._listed(mask)
        by_bits = mask.count >= _LISTED_SHARE * len(self.lists)
        found = no_hits(len(queries), k)
        for row in range(len(queries)):
            query = queries[row : row + 1]
            excluded = exclude[row] if exclude is not None else None
            order = self.lists.by_nearness(query[0])
            find = (
                self._by_bits(query, k, self._bits(mask, excluded))
                if by_bits
                else self._by_row(query, k, listed, order, excluded)
            )
            slots = self._until_sure(find, min(k, mask.count), *self._first_probes(k, order, listed.by_list))
            found.slots[row], found.scores[row] = (part[0] for part in self._score(query, slots[None], k))
        return found

    def _all_with_bits(self, queries: torch.Tensor, k: int, exclude: Exclusions | None, closed: NDArray[np.int64]) -> Hits:
        found = no_hits(len(queries), k)
        for row in range(len(queries)):
            query = queries[row : row + 1]
            bits = np.full(-(-len(self.lists.list_of) // 8), 255, dtype=np.uint8)
            _clear_bits(bits, closed)
            if exclude is not None:
                _clear_bits(bits, exclude[row])
            probes = min(self.table.unfiltered(k), self.lists.count)
            slots = self._until_sure(self._by_bits(query, k, bits), min(k, len(self.lists) - len(closed)), probes, usual=True)
            found.slots[row], found.scores[row] = (part[0] for part in self._score(query, slots[None], k))
        return found

    def _listed(self, mask: SlotMask) -> MaskedLists:
        listed = self._masked.get(mask)
        if listed is None or not listed.usable:
            listed = self._masked[mask] = MaskedLists(mask, self.lists, self._log)
        return listed

    def _by_bits(self, query: torch.Tensor, k: int, bits: NDArray[np.uint8]) -> Find:
        def find(probes: int) -> NDArray[np.int64]:
            slots, _ = self.lists.search(query.numpy(), k, probes, bits)
            return slots.reshape(k)

        return find

    def _by_row(
        self, query: torch.Tensor, k: int, listed: MaskedLists, order: NDArray[np.int64], exclude: NDArray[np.int64] | None
    ) -> Find:
        def find(probes: int) -> NDArray[np.int64]:
            slots = listed.near(order[:probes], exclude)
            best = np.full(k, -1, dtype=np.int64)
            if len(slots):
                scores = query @ self._matrix.read(slots).T  # (1, n) float32
                places = top_k(scores, min(k, len(slots)))[1][0].numpy()
                best[: len(places)] = slots[places]
            return best

        return find

    def _until_sure(self, find: Find, wanted: int, probes: int, usual: bool) -> NDArray[np.int64]:
        """Looks into twice as many lists as long as hits are missing, or, where little of what passes lies near the query, as
        long as that changes the hits: of such filters the table, which was measured on random ones, says little.
        """
        before: NDArray[np.int64] | None = None
        while True:
            slots = find(probes)
            complete = np.count_nonzero(slots >= 0) >= wanted
            settled = usual or (before is not None and np.isin(slots, before).mean() >= _STABLE)
            if probes >= self.lists.count or (complete and settled):
                return slots
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
        """What one query may return, packed for FAISS: by slot, little-endian, up to the last slot in the lists."""
        size = -(-len(self.lists.list_of) // 8)
        bits = mask.bits if len(mask.bits) >= size else np.pad(mask.bits, (0, size - len(mask.bits)))
        if exclude is not None and len(exclude):
            bits = bits.copy()
            _clear_bits(bits, exclude)
        return bits

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


def _drop(slots: NDArray[np.int64], exclude: Exclusions | None, closed: NDArray[np.int64]) -> None:
    """Blanks what must not be returned among (B, n) slots."""
    if len(closed):
        slots[np.isin(slots, closed)] = -1
    for row, excluded in enumerate(exclude or ()):
        if len(excluded):
            slots[row, np.isin(slots[row], excluded)] = -1


def _clear_bits(bits: NDArray[np.uint8], slots: NDArray[np.int64]) -> None:
    slots = slots[slots < 8 * len(bits)]
    np.bitwise_and.at(bits, slots >> 3, ~(np.uint8(1) << (slots & 7).astype(np.uint8)))
