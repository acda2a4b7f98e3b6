"""How much memory an index will need, part by part, before any of it is taken. Pure arithmetic, but for `free_bytes`."""

import os
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

import torch

from index.exact import GATHERED_AT_ONCE
from index.matrix import CHUNK_ROWS
from index.search import K_MAX
from index.topk import TILE

MIB = 1024**2
GIB = 1024**3
SCORES_BYTES = 256 * MIB
"""Room for scores that an exact search keeps."""
TOWER_BYTES = 256 * MIB
"""Allowed for a user tower with its activations. An allowance, not a measurement."""
CONTEXT_BYTES = 600 * MIB
"""Allowed for CUDA's context, kernels and cuBLAS's workspaces. An allowance, not a measurement."""
_FAISS_MOST = 1536 * MIB  # FAISS reserves no more, whatever is asked for
_FAISS_TARGET = GIB  # its aim for tiles on devices of more than 8 GB (DistanceUtils.cuh, chooseTileSize)


class MemoryPlanError(Exception):
    """It does not fit: one line with the sum, every part, and what to do."""


@dataclass(frozen=True)
class Needs:
    """What decides how much memory is needed. Sizes in rows, columns and bytes."""

    items: int
    dim: int
    dtype_bytes: int  # of a component: 4 or 2
    growth: float = 1.5  # how many times as many items there may be before the next start
    padded: int = 0  # columns behind the components
    releases: int = 2  # the live one and the one that is loaded beside it
    max_batch: int = 64
    chunk_rows: int = CHUNK_ROWS
    faiss: bool = False  # whether FAISS searches on the GPU
    ivf: bool = False  # whether FAISS's inverted lists lie in the same memory
    masks: int = 4  # filter masks that exact search keeps as biases

    @property
    def rows(self) -> int:
        """Rows of one release, in whole chunks: growth adds chunks and copies nothing."""
        return ceil(self.items * self.growth / self.chunk_rows) * self.chunk_rows


class Part(NamedTuple):
    """One thing that takes memory."""

    name: str
    size: int  # bytes
    how: str  # the product that `size` is, in words


@dataclass(frozen=True)
class MemoryPlan:
    """What an index takes when all of it is in use at once. Parts that take turns are counted each: torch keeps both."""

    needs: Needs
    device: str
    parts: tuple[Part, ...]

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(part.size for part in self.parts)

    def check(self, free: int) -> None:
        """Raises MemoryPlanError if the sum is more than `free` bytes."""
        if self.total > free:
            listed = "; ".join(f"{part.name} {_gib(part.size)} ({part.how})" for part in self.parts)
            raise MemoryPlanError(
                f"{self.device} has {_gib(free)} free and the index needs {_gib(self.total)}: {listed}. {self._cures()}"
            )

    def table(self) -> str:
        """A line for each part and the sum."""
        width = max(len(part.name) for part in self.parts)
        lines = [f"{part.name:{width}} {_gib(part.size):>10}  {part.how}" for part in self.parts]
        return "\n".join([*lines, f"{'sum':{width}} {_gib(self.total):>10}"])

    def _cures(self) -> str:
        needs = self.needs
        cures = []
        if needs.dtype_bytes > 2:
            cures.append("keep rows as float16, which halves them")
        if needs.growth > 1:
            cures.append(f"plan for less growth than {needs.growth:g} times")
        if needs.max_batch > 1:
            cures.append(f"compute fewer than {needs.max_batch} requests together")
        return f"To make it fit: {', or '.join([*cures, 'take a device with more memory'])}"


def plan_memory(needs: Needs, *, device: str) -> MemoryPlan:
    """The plan for an index on `device` ("cuda:0", or "cpu" for the machine's own memory).

    Raises ValueError for needs that make no sense.
    """
    if needs.items < 0 or needs.dim < 1 or needs.dtype_bytes not in (2, 4) or needs.growth < 1 or needs.releases < 1:
        raise ValueError(f"these needs make no sense: {needs}")
    parts = [*_of_releases(needs), *_of_a_search(needs)]
    if needs.faiss:
        size = faiss_temporary_bytes(needs)
        parts.append(Part("FAISS's temporary memory", size, "reserved once a process"))
    if device != "cpu":
        parts.append(Part("CUDA's context and libraries", CONTEXT_BYTES, "an allowance"))
    return MemoryPlan(needs, device, tuple(part for part in parts if part.size))


def faiss_temporary_bytes(needs: Needs) -> int:
    """What `knn_gpu` keeps for a batch: two tiles of float32 scores and two buffers of hits (from FAISS's source, 1.15).

    A tile is min(B, 512) queries by so many rows that 512 of them take half of FAISS's target in the rows' own type.
    """
    width = needs.dim + needs.padded
    tile_queries = 1024 if width <= 32 else 512
    tile_rows = min(_FAISS_TARGET // (2 * needs.dtype_bytes) // tile_queries, needs.chunk_rows)
    queries = min(needs.max_batch, tile_queries)
    tiles = ceil(needs.chunk_rows / tile_rows)
    scores = 2 * queries * tile_rows * 4
    hits = 2 * queries * tiles * K_MAX * (4 + 8)
    return min(scores + hits + 16 * MIB, _FAISS_MOST)  # 16 MiB: query norms, rounding, copies of queries


def free_bytes(device: str) -> int:
    """Bytes that can be had now on a CUDA device, or of the machine's memory."""
    if device == "cpu":
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free, _ = torch.cuda.mem_get_info(torch.device(device))
    return free


def _of_releases(needs: Needs) -> list[Part]:
    rows, releases, columns = needs.rows, needs.releases, needs.dim + needs.padded
    by = f"{releases} releases x {rows:,} rows"
    parts = [
        Part("item vectors", releases * rows * columns * needs.dtype_bytes, f"{by} x {columns} x {needs.dtype_bytes} bytes"),
        Part("biases of exact search", releases * rows * 4, f"{by} x 4 bytes"),
        Part("room for scores", releases * SCORES_BYTES, f"{releases} releases x {SCORES_BYTES // MIB} MiB"),
        Part("user towers", releases * TOWER_BYTES, f"{releases} releases x {TOWER_BYTES // MIB} MiB, an allowance"),
        Part(
            "filter masks",
            releases * needs.masks * rows * 4,
            f"{releases} releases x {needs.masks} masks x {rows:,} rows x 4 bytes",
        ),
    ]
    if needs.ivf:
        # float16 codes and int64 ids in vectors that grow by doubling, and a node of the hash table; twice: a rebuild's too.
        row = 2 * (2 * needs.dim + 8) + 40
        size = 2 * releases * ceil(needs.items * needs.growth) * row
        parts.append(Part("inverted lists", size, f"2 x {releases} releases x {row} bytes a row, a rebuild beside included"))
    return parts


def _of_a_search(needs: Needs) -> list[Part]:
    batch, rows = needs.max_batch, needs.rows
    tiles = batch * K_MAX * TILE * (4 + 8)  # candidates of the best tiles, and their sort
    maxima = SCORES_BYTES // TILE
    component = 4 if needs.dtype_bytes == 4 else 2 + 4  # float16 rows are gathered, then widened
    return [
        Part("top-k of a batch", tiles + maxima, f"{batch} queries x {K_MAX} tiles x {TILE} x 12 bytes"),
        Part("a filter's bias", rows * 5, f"{rows:,} rows x 5 bytes"),
        Part(
            "rows gathered for a filter",
            GATHERED_AT_ONCE * needs.dim * component,
            f"{GATHERED_AT_ONCE:,} rows x {needs.dim} components x {component} bytes",
        ),
    ]


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"
