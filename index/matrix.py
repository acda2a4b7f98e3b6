"""The item vectors of one release."""

import numpy as np
import torch
from numpy.typing import NDArray

CHUNK_ROWS = 65_536
"""Rows of one chunk. Growth adds a chunk and moves nothing; a chunk's scores for 64 queries are 16 MiB."""


class VectorMatrix:
    """Rows of float32 vectors by slot, in chunks of a fixed size, with a has-vector bitmap.

    One thread owns it. `dim` is the number of components, `device` where the rows lie ("cpu", "cuda:0").
    """

    def __init__(self, dim: int, *, device: str = "cpu", chunk_rows: int = CHUNK_ROWS) -> None:
        self.dim = dim
        self.device = torch.device(device)
        self.chunk_rows = chunk_rows
        self.chunks: list[torch.Tensor] = []  # each (chunk_rows, D) float32
        self.has_vector: NDArray[np.bool_] = np.zeros(0, dtype=bool)  # (chunks * chunk_rows,)

    @property
    def capacity(self) -> int:
        """Slots that have a row, with or without a vector in it."""
        return len(self.chunks) * self.chunk_rows

    def write(self, slots: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        """Overwrites the rows of the slots: (n,) int64, (n, D) float32 unit rows. If a slot occurs twice the last one counts.

        Raises ValueError on a wrong shape or a component that is not finite; nothing is written then.
        """
        if vectors.shape != (len(slots), self.dim):
            raise ValueError(f"expected vectors of shape ({len(slots)}, {self.dim}), got {vectors.shape}")
        if not np.isfinite(vectors).all():
            raise ValueError("a vector has a component that is not finite")
        if not len(slots):
            return
        slots, vectors = _keep_last(slots, vectors)
        self._reach(int(slots.max()) + 1)
        rows = torch.from_numpy(np.array(vectors, dtype=np.float32))  # a copy: the caller's array may be read-only
        for number, inside, where in self._by_chunk(slots):
            self.chunks[number][inside] = rows[where].to(self.device)
        self.has_vector[slots] = True

    def clear(self, slots: NDArray[np.int64]) -> None:
        """Forgets the vectors of the slots: (n,) int64. The rows are zeroed, so that nothing of them can be read again."""
        slots = slots[slots < self.capacity]
        for number, inside, _ in self._by_chunk(slots):
            self.chunks[number][inside] = 0
        self.has_vector[slots] = False

    def holds(self, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of the slots have a vector: (n,) bool."""
        held = np.zeros(len(slots), dtype=bool)
        inside = slots < self.capacity
        held[inside] = self.has_vector[slots[inside]]
        return held

    def read(self, slots: NDArray[np.int64]) -> torch.Tensor:
        """The rows of the slots, in their order: (n,) int64 -> (n, D) float32 on the matrix's device."""
        if len(self.chunks) == 1:
            return self.chunks[0][torch.from_numpy(slots).to(self.device)]
        rows = torch.empty(len(slots), self.dim, device=self.device)  # (n, D) float32
        for number, inside, where in self._by_chunk(slots):
            rows[where.to(self.device)] = self.chunks[number][inside]
        return rows

    def _reach(self, extent: int) -> None:
        while self.capacity < extent:
            self.chunks.append(torch.zeros(self.chunk_rows, self.dim, device=self.device))
            self.has_vector = np.concatenate([self.has_vector, np.zeros(self.chunk_rows, dtype=bool)])

    def _by_chunk(self, slots: NDArray[np.int64]) -> list[tuple[int, torch.Tensor, torch.Tensor]]:
        """For each chunk touched: its number, the rows inside it (on the device), and their places in `slots` (on the CPU)."""
        chunk_of = slots // self.chunk_rows
        parts = []
        for number in np.unique(chunk_of):
            where = np.nonzero(chunk_of == number)[0]
            inside = torch.from_numpy(slots[where] - number * self.chunk_rows).to(self.device)
            parts.append((int(number), inside, torch.from_numpy(where)))
        return parts


def _keep_last(slots: NDArray[np.int64], vectors: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    # Scatter with repeated indices has no defined order in torch.
    unique, first_reversed = np.unique(slots[::-1], return_index=True)
    if len(unique) == len(slots):
        return slots, vectors
    last = len(slots) - 1 - first_reversed
    return slots[last], vectors[last]
