"""An exact scan whose scores stay on the chip, in Triton: the best score of each tile, then all scores of the best tiles."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from index.matrix import VectorMatrix
from index.topk import TILE

Room = Callable[[int], torch.Tensor]
_TILES_AT_ONCE = 4  # of a block; with 4 warps within a tenth of the fastest that were tried, for float16 on an H200
_FEW, _MANY = 16, 64  # queries of a block; 16 is the least that tensor cores take
_TABLES_KEPT = 16
_CAPABILITY = (8, 0)  # before, blocks do not fit, which Triton takes a minute to find out


class _Block(NamedTuple):
    """How a block multiplies. Float32 goes without tensor cores: its code grows with what is multiplied together."""

    columns: int  # components at once; more than one part is read while the last one is multiplied, in `stages`
    warps: int
    stages: int = 2


def _block(matrix: VectorMatrix) -> _Block:
    width = max(16, triton.next_power_of_2(matrix.dim))
    if matrix.dtype == torch.float32:
        return _Block(columns=min(width, 32), warps=8)
    return _Block(columns=width if width <= 128 else 64, warps=4)


@triton.jit(do_not_specialize=["tiles", "batch"])
def _best_of_tiles(
    rows_at,  # (chunks,) int64 addresses of (chunk_rows, WIDTH) rows
    bias_at,  # (chunks,) int64 addresses of (chunk_rows,) float32
    queries,  # (batch, DIM) of the rows' type
    best,  # (batch, tiles) float32: what is written
    tiles,
    batch,
    CHUNK_ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    DIM: tl.constexpr,
    COLUMNS: tl.constexpr,
    QUERIES: tl.constexpr,
    TILES: tl.constexpr,
    TILE: tl.constexpr,
):
    """The best score of each of TILES adjacent tiles for each of QUERIES queries; one read of the rows serves them all."""
    ROWS: tl.constexpr = TILES * TILE
    first = tl.program_id(0).to(tl.int64) * ROWS  # slot
    chunk = first // CHUNK_ROWS
    inside = first % CHUNK_ROWS + tl.arange(0, ROWS)
    rows = tl.multiple_of(tl.load(rows_at + chunk).to(tl.pointer_type(queries.dtype.element_ty)), 16)
    bias = tl.multiple_of(tl.load(bias_at + chunk).to(tl.pointer_type(tl.float32)), 16)
    query = tl.program_id(1) * QUERIES + tl.arange(0, QUERIES)
    scores = tl.zeros((ROWS, QUERIES), dtype=tl.float32)
    for start in range(0, DIM, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        row_part = tl.load(rows + inside[:, None] * WIDTH + column[None, :], mask=column[None, :] < DIM, other=0.0)
        within = (column[:, None] < DIM) & (query[None, :] < batch)
        query_part = tl.load(queries + query[None, :] * DIM + column[:, None], mask=within, other=0.0)
        scores = tl.dot(row_part, query_part, scores, input_precision="ieee")
    scores += tl.load(bias + inside)[:, None]
    maxima = tl.max(tl.reshape(scores, (TILES, TILE, QUERIES)), axis=1)
    tile = tl.program_id(0).to(tl.int64) * TILES + tl.arange(0, TILES)
    place = query[None, :].to(tl.int64) * tiles + tile[:, None]
    tl.store(best + place, maxima, mask=(tile[:, None] < tiles) & (query[None, :] < batch))


@triton.jit(do_not_specialize=["chosen_tiles"])
def _scores_of_tiles(
    rows_at,
    bias_at,
    queries,
    chosen,  # (batch, chosen_tiles) int64 tiles
    scores,  # (batch, chosen_tiles, TILE) float32: what is written
    chosen_tiles,
    CHUNK_ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    DIM: tl.constexpr,
    COLUMNS: tl.constexpr,
    TILE: tl.constexpr,
):
    """All scores of one chosen tile of one query."""
    query = tl.program_id(1).to(tl.int64)
    place = query * chosen_tiles + tl.program_id(0)
    first = tl.load(chosen + place) * TILE
    chunk = first // CHUNK_ROWS
    inside = first % CHUNK_ROWS + tl.arange(0, TILE)
    rows = tl.multiple_of(tl.load(rows_at + chunk).to(tl.pointer_type(queries.dtype.element_ty)), 16)
    bias = tl.multiple_of(tl.load(bias_at + chunk).to(tl.pointer_type(tl.float32)), 16)
    found = tl.load(bias + inside)
    for start in range(0, DIM, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        row_part = tl.load(rows + inside[:, None] * WIDTH + column[None, :], mask=column[None, :] < DIM, other=0.0)
        query_part = tl.load(queries + query * DIM + column, mask=column < DIM, other=0.0)
        found += tl.sum(row_part.to(tl.float32) * query_part.to(tl.float32)[None, :], axis=1)
    tl.store(scores + place * TILE + tl.arange(0, TILE), found)


class TileScan:
    """Compares queries with every row of a matrix on a GPU, reading each row once for up to 64 queries.

    What a matmul would write to memory and a top-k read again, B scores a row, is B scores for `TILE` rows here. The k best
    scores lie in the k tiles with the largest maxima (`index.topk.top_k`), so the second kernel scores only those.
    """

    def __init__(self, matrix: VectorMatrix) -> None:
        """Compiles, which takes seconds, so that no search waits for it. Raises what Triton raises where it does not work."""
        if torch.cuda.get_device_capability(matrix.device) < _CAPABILITY:
            raise RuntimeError("the device is older than Ampere")
        self._matrix = matrix
        self._tables: dict[tuple[int, ...], torch.Tensor] = {}
        self._together = math.gcd(matrix.chunk_rows // TILE, _TILES_AT_ONCE)
        self._block = _block(matrix)
        self._shape = {
            "CHUNK_ROWS": matrix.chunk_rows,
            "WIDTH": matrix.dim + matrix.padded,
            "DIM": matrix.dim,
            "COLUMNS": self._block.columns,
            "TILE": TILE,
        }
        rows = torch.zeros(self._together * TILE, matrix.dim + matrix.padded, dtype=matrix.dtype, device=matrix.device)
        tables = (_addresses([rows]), _addresses([torch.zeros(len(rows), device=matrix.device)]))
        for batch in (1, _FEW + 1):
            queries = torch.zeros(batch, matrix.dim, dtype=matrix.dtype, device=matrix.device)
            self._nearest(queries, *tables, torch.empty(batch, self._together, device=matrix.device), 1)
        torch.cuda.current_stream(matrix.device).synchronize()  # before what was read is let go of

    def nearest(
        self, queries: torch.Tensor, bias: Sequence[torch.Tensor], tiles: int, k: int, room: Room
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The k rows of the first tiles with the largest inner product plus bias, best first; ties in any order.

        queries: (B, D) float32, rounded to the rows' type; products are added up in float32. bias: (chunk_rows,) float32 for
        each chunk, -inf for rows that have no vector. k: at most `tiles`. room: gives so many float32, valid until the next
        call. Returns scores (B, k) float32 and slots (B, k) int64.
        """
        best = room(len(queries) * tiles).view(len(queries), tiles)
        return self._nearest(
            queries.to(self._matrix.dtype).contiguous(), self._table(self._matrix.chunks), self._table(bias), best, k
        )

    def _nearest(
        self, queries: torch.Tensor, rows_at: torch.Tensor, bias_at: torch.Tensor, best: torch.Tensor, k: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        batch, tiles = best.shape
        at_once = _FEW if batch <= _FEW else _MANY
        with torch.cuda.device(queries.device):  # whose kernels Triton launches
            _best_of_tiles[(-(-tiles // self._together), -(-batch // at_once))](
                rows_at,
                bias_at,
                queries,
                best,
                tiles,
                batch,
                QUERIES=at_once,
                TILES=self._together,
                num_warps=self._block.warps,
                num_stages=self._block.stages,
                **self._shape,
            )
            chosen = torch.topk(best, k, dim=1, sorted=False).indices
            scores = torch.empty(batch, k, TILE, device=queries.device)
            _scores_of_tiles[(k, batch)](rows_at, bias_at, queries, chosen, scores, k, num_warps=2, **self._shape)
        values, places = torch.topk(scores.view(batch, -1), k, dim=1)
        return values, torch.gather(chosen, 1, places // TILE) * TILE + places % TILE

    def _table(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """`_addresses`, of which the last few are kept: to send them to the device takes longer than a small search."""
        key = tuple(one.data_ptr() for one in tensors)
        table = self._tables.get(key)
        if table is None:
            if len(self._tables) >= _TABLES_KEPT:
                del self._tables[next(iter(self._tables))]
            table = self._tables[key] = _addresses(tensors)
        return table


def _addresses(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Where the tensors lie, on their device: (n,) int64."""
    return torch.tensor([one.data_ptr() for one in tensors], dtype=torch.int64, device=tensors[0].device)
