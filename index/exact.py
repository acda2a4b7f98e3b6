"""Exact search with torch: the oracle for every other engine, and the default up to about 10^5 items on a CPU."""

import logging
from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from index.filters.masks import SlotMask
from index.gpu.best import best_permitted
from index.matrix import VectorMatrix
from index.search import K_MAX, Exclusions, Hits, Masks, check_search, no_hits
from index.slots import SlotTable
from index.topk import TILE, BestSoFar, top_k

if TYPE_CHECKING:
    from index.gpu.tiles import TileScan

_log = logging.getLogger(__name__)
GATHER_SHARE = 0.25
"""A mask that lets through less than this share of the slots is searched by gathering its rows.

A row in order costs about 27 ns on one core, a gathered one 30 to 110 as there are more of them (64 float32 components).
"""
_SCORES_MAX = 64 * 1024 * 1024  # scores held at once: 256 MiB
_QUERIES_MAX = 64  # scanned at once by tiles: what one reading of the rows serves
_MASKS_KEPT = 4  # as biases, of 4 bytes a row
GATHERED_AT_ONCE = 16_384
"""Rows that are copied together when a mask's rows are gathered: 4 MiB at 64 float32 components."""
_BLOCK_SCORES = 2 * 1024 * 1024  # scores of one matmul on a CPU: 8 MiB, of which its cache has most when they are looked at
_BLOCK_ROWS = 65_536  # rows of one matmul on a CPU at least
_PAGE = 4096  # slots that are counted together


class _Block(NamedTuple):
    """Rows of one chunk that are scored by one matmul."""

    chunk: int
    start: int  # first row in the chunk
    rows: int
    slot: int  # of the first row


class ExactSearch:
    """Compares each query with every row: a matmul, a bias that rules out rows, and a top-k by tiles.

    Every slot has a bias of 0 (eligible and with a vector) or -inf. A mask brings a bias of its own, or, if it lets little
    through, only its rows are read. On a GPU `TileScan` does all of it in one reading of the rows.
    """

    kind = "exact"
    gains_from_batches = True  # every row is read once for all of them

    def __init__(self, slots: SlotTable, matrix: VectorMatrix) -> None:
        """Raises ValueError if the matrix's chunks are not whole tiles."""
        if matrix.chunk_rows % TILE:
            raise ValueError(f"a chunk needs a multiple of {TILE} rows, got {matrix.chunk_rows}")
        self._slots = slots
        self._matrix = matrix
        self._bias: list[torch.Tensor] = []  # each (chunk_rows,) float32
        self._mask_biases: OrderedDict[SlotMask, tuple[tuple[int, int], list[torch.Tensor]]] = OrderedDict()
        self._open: NDArray[np.bool_] = np.zeros(0, dtype=bool)  # by slot: the bias is 0
        self._closed: NDArray[np.int64] = np.zeros(0, dtype=np.int64)  # by page: slots whose bias is -inf
        # Scores: fresh memory at every search would cost as much as the scan.
        self._scratch = torch.empty(0, device=matrix.device)
        self._tiles = _tile_scan(matrix)
        self.update(np.arange(slots.extent))

    def update(self, slots: NDArray[np.int64]) -> None:
        """See `Search.update`. Everything is settled at once."""
        matrix = self._matrix
        while len(self._bias) < len(matrix.chunks):
            self._bias.append(torch.full((matrix.chunk_rows,), -torch.inf, device=matrix.device))
            self._open = np.concatenate([self._open, np.zeros(matrix.chunk_rows, dtype=bool)])
            pages = -(-len(self._open) // _PAGE)
            self._closed = np.bincount(np.flatnonzero(~self._open) // _PAGE, minlength=pages)
        slots = np.unique(slots[slots < matrix.capacity])
        permitted = self._slots.eligible(slots) & matrix.holds(slots)
        bias = torch.from_numpy(np.where(permitted, np.float32(0), np.float32(-np.inf))).to(matrix.device)
        for number, inside, where in matrix.by_chunk(slots):
            self._bias[number][inside] = bias if where is None else bias[where]
        np.add.at(self._closed, slots // _PAGE, self._open[slots].astype(np.int64) - permitted)
        self._open[slots] = permitted

    def settle(self) -> int:
        """See `Search.settle`."""
        return 0

    def give_up(self) -> object:
        """Forgets everything; returns what took the memory, to let go of."""
        held = self._bias, self._mask_biases, self._scratch, self._tiles
        self._bias, self._mask_biases, self._tiles = [], OrderedDict(), None
        self._scratch = self._scratch[:0].clone()
        return held

    def search(self, queries: torch.Tensor, k: int, exclude: Exclusions | None = None, masks: Masks | None = None) -> Hits:
        """See `Search.search`. Ties are broken arbitrarily."""
        check_search(self._matrix.dim, queries, k, exclude, masks)
        if masks is None or all(mask is None for mask in masks):
            return self._scan(queries, k, exclude, None)
        found = no_hits(len(queries), k)
        for mask, rows in group_by_mask(masks):
            own = [exclude[row] for row in rows] if exclude is not None else None
            hits = (
                self.gather(queries[rows], k, mask.slots, own)
                if mask is not None and mask.count < self._gathered_most()
                else self._scan(queries[rows], k, own, mask)
            )
            found.slots[rows], found.scores[rows] = hits
        return found

    def _gathered_most(self) -> float:
        """A mask that lets through fewer slots than this is searched by gathering their rows."""
        return GATHERED_AT_ONCE if self._tiles is not None else GATHER_SHARE * self._slots.extent

    def gather(self, queries: torch.Tensor, k: int, slots: NDArray[np.int64], exclude: Exclusions | None = None) -> Hits:
        """The best `k` among the given slots, ascending (m,) int64, which must be eligible and have vectors."""
        found = no_hits(len(queries), k)
        at_once = max(1, _SCORES_MAX // max(1, len(slots)))  # queries
        for start in range(0, len(queries) if len(slots) else 0, at_once):
            part = slice(start, start + at_once)
            scores = self._gathered_scores(queries[part], slots)
            if exclude is not None:
                excluded = _Excluded.of(exclude[part])
                places = np.searchsorted(slots, excluded.slots)
                among = places < len(slots)
                among[among] = slots[places[among]] == excluded.slots[among]
                _rule_out(scores, excluded.rows[among], places[among])
            values, best = top_k(scores, min(k, len(slots)))
            _fill(Hits(found.slots[part], found.scores[part]), slots[best.cpu().numpy()], values.cpu().numpy())
        return found

    def _gathered_scores(self, queries: torch.Tensor, slots: NDArray[np.int64]) -> torch.Tensor:
        """Inner products with the slots' rows: (B, m) float32. The rows are read some at a time, not copied as a whole."""
        scores = self._room(len(queries) * len(slots)).view(len(queries), len(slots))
        for start in range(0, len(slots), GATHERED_AT_ONCE):
            rows = self._matrix.read(slots[start : start + GATHERED_AT_ONCE])  # (<= rows, D) float32
            torch.mm(queries, rows.T, out=scores[:, start : start + len(rows)])
        return scores

    def _scan(self, queries: torch.Tensor, k: int, exclude: Exclusions | None, mask: SlotMask | None) -> Hits:
        bias = self._bias if mask is None else self._mask_bias(mask)
        found = no_hits(len(queries), k)
        if not self._bias or not self._slots.extent:
            return found
        fetch = k + max((len(one) for one in exclude or ()), default=0)
        tiles = -(-min(self._slots.extent, len(self._bias) * self._matrix.chunk_rows) // TILE)
        if self._tiles is not None and 2 * fetch < tiles and fetch <= K_MAX:
            at_once = max(1, min(_SCORES_MAX // tiles, _QUERIES_MAX))
            for start in range(0, len(queries), at_once):
                part = slice(start, start + at_once)
                scores, slots = self._tiles.nearest(queries[part], bias, tiles, fetch, self._room)
                if exclude is not None and fetch > k:
                    scores, slots = best_permitted(scores, slots, k, exclude[part])
                _fill(Hits(found.slots[part], found.scores[part]), slots.cpu().numpy(), scores.cpu().numpy())
            return found
        excluded = _Excluded.of(exclude) if exclude is not None else None
        blocks = list(self._blocks(len(queries)))
        if len(blocks) == 1:
            scores, slots = top_k(self._block_scores(queries, blocks[0], bias, excluded), min(k, blocks[0].rows))
        else:
            best = BestSoFar(k)
            for block in blocks:
                best.add(self._block_scores(queries, block, bias, excluded))
            scores, slots = best.result()  # the blocks are adjacent, so that their columns are slots
        _fill(found, slots.cpu().numpy(), scores.cpu().numpy())
        return found

    def _blocks(self, queries: int) -> Iterator[_Block]:
        """The used rows in blocks of whole tiles: rows behind the used ones have -inf."""
        chunk_rows = self._matrix.chunk_rows
        on_cpu = self._matrix.device.type == "cpu"
        step = max(_BLOCK_ROWS, _BLOCK_SCORES // queries // TILE * TILE) if on_cpu else chunk_rows  # a GPU's launches cost
        step = min(step, max(TILE, _SCORES_MAX // queries // TILE * TILE))
        for number in range(min(len(self._bias), -(-self._slots.extent // chunk_rows))):
            used = min(chunk_rows, -(-(self._slots.extent - number * chunk_rows) // TILE) * TILE)
            for start in range(0, used, step):
                yield _Block(number, start, min(step, used - start), number * chunk_rows + start)

    def _block_scores(
        self, queries: torch.Tensor, block: _Block, bias: list[torch.Tensor], excluded: "_Excluded | None"
    ) -> torch.Tensor:
        """The scores of a block's rows, -inf for what must not be returned: (B, rows) float32, valid until the next block's."""
        end = block.start + block.rows
        scores = self._room(len(queries) * block.rows).view(len(queries), block.rows)
        rows = self._matrix.chunks[block.chunk][block.start : end, : self._matrix.dim]  # (rows, D)
        pages = slice(block.slot // _PAGE, -(-(block.slot + block.rows) // _PAGE))
        needless = bias is self._bias and not self._closed[pages].any()  # every row of the block may be returned
        _score(queries, rows, None if needless else bias[block.chunk][block.start : end], scores)
        if excluded is not None:
            own = excluded.between(block.slot, block.slot + block.rows)
            _rule_out(scores, own.rows, own.slots - block.slot)
        return scores

    def _room(self, count: int) -> torch.Tensor:
        """Room for so many float32 scores, used again by the next search."""
        if self._scratch.numel() < count:
            self._scratch = torch.empty(count, device=self._matrix.device)
        return self._scratch[:count]

    def _mask_bias(self, mask: SlotMask) -> list[torch.Tensor]:
        """A mask as a bias: 0 where it lets a slot pass, -inf elsewhere; one (chunk_rows,) float32 for each chunk.

        The last few are kept until their mask changes: on a GPU each has to cross the bus.
        """
        key = (mask.version, len(self._bias))
        known = self._mask_biases.pop(mask, None)
        if known is None or known[0] != key:
            known = key, self._make_mask_bias(mask)
        self._mask_biases[mask] = known
        if len(self._mask_biases) > _MASKS_KEPT:
            self._mask_biases.popitem(last=False)
        return known[1]

    def _make_mask_bias(self, mask: SlotMask) -> list[torch.Tensor]:
        passes = torch.from_numpy(mask.passes).to(self._matrix.device)  # (capacity of the slot table,) bool
        rows = self._matrix.chunk_rows
        biases = []
        for number in range(len(self._bias)):
            own = passes[number * rows : (number + 1) * rows]
            bias = torch.full((rows,), -torch.inf, device=self._matrix.device)
            bias[: len(own)].masked_fill_(own, 0.0)
            biases.append(bias)
        return biases


def _tile_scan(matrix: VectorMatrix) -> "TileScan | None":
    """On a GPU the scan in one reading; None on a CPU, or, with a line in the log, where it does not work."""
    if matrix.device.type != "cuda":
        return None
    try:
        from index.gpu.tiles import TileScan

        return TileScan(matrix)
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except Exception as error:  # whatever a compiler may raise: matmul and top-k give the same hits
        problem = str(error).strip().partition("\n")[0] or type(error).__name__
        _log.warning("rows are scanned by matmul, which takes several times as long, since Triton does not work: %s", problem)
        return None


def group_by_mask(masks: Masks) -> Iterator[tuple[SlotMask | None, list[int]]]:
    """Each different mask with the queries that have it."""
    groups: dict[int, tuple[SlotMask | None, list[int]]] = {}
    for row, mask in enumerate(masks):
        groups.setdefault(id(mask), (mask, []))[1].append(row)
    yield from groups.values()


def _score(queries: torch.Tensor, rows: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor) -> None:
    """Writes queries @ rows.T + bias to `out`: (B, D) float32, (n, D) float32 or float16, (n,) float32 -> (B, n) float32."""
    if rows.dtype == torch.float32:
        torch.mm(queries, rows.T, out=out)
    elif rows.device.type == "cpu":
        torch.mm(queries, rows.to(torch.float32).T, out=out)
    else:  # float16 products, added up and kept in float32; the queries are rounded to float16
        torch.mm(queries.to(rows.dtype), rows.T, out_dtype=torch.float32, out=out)
    if bias is not None:
        out.add_(bias)  # not addmm, which writes the bias to memory before the product


class _Excluded(NamedTuple):
    """Excluded slots of all queries together, ascending."""

    slots: NDArray[np.int64]  # (e,) int64
    rows: NDArray[np.int64]  # (e,) int64, whose they are

    @classmethod
    def of(cls, exclude: Exclusions) -> "_Excluded":
        slots = np.concatenate(exclude)
        rows = np.repeat(np.arange(len(exclude)), [len(one) for one in exclude])
        order = np.argsort(slots, kind="stable")
        return cls(slots[order], rows[order])

    def between(self, start: int, end: int) -> "_Excluded":
        first, last = np.searchsorted(self.slots, (start, end))
        return _Excluded(self.slots[first:last], self.rows[first:last])


def _rule_out(scores: torch.Tensor, rows: NDArray[np.int64], places: NDArray[np.int64]) -> None:
    """Sets scores[rows, places] to -inf: (B, n) float32, (e,) int64 each."""
    if len(rows):
        scores[torch.from_numpy(rows).to(scores.device), torch.from_numpy(places).to(scores.device)] = -torch.inf


def _fill(found: Hits, slots: NDArray[np.int64], scores: NDArray[np.float32]) -> None:
    """Writes (B, <=k) slots and scores, best first, to the front of the hits; a score of -inf is no hit."""
    width = slots.shape[1]
    found.slots[:, :width] = np.where(np.isneginf(scores), -1, slots)
    found.scores[:, :width] = scores
