"""The item vectors of one release."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

CHUNK_ROWS = 1_048_576
"""Rows of one chunk. Growth adds a chunk and moves nothing. Rows scattered over many chunks are slower to read (6 microseconds
a chunk), so chunks are large; on a CPU the memory of a row is taken when it is first written."""


class VectorMatrix:
    """Rows of vectors by slot, in chunks of a fixed size, with a has-vector bitmap.

    One thread owns it. `dim` is the number of components, `device` where the rows lie ("cpu", "cuda:0"), `dtype` how they are
    kept (float32, or float16 for half the memory). `padded` columns behind the components belong to the search engine.
    """

    def __init__(
        self,
        dim: int,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        chunk_rows: int = CHUNK_ROWS,
        padded: int = 0,
    ) -> None:
        if dtype not in (torch.float32, torch.float16):
            raise ValueError(f"rows are float32 or float16, not {dtype}")
        self.dim = dim
        self.device = torch.device(device)
        self.dtype = dtype
        self.chunk_rows = chunk_rows
        self.padded = padded
        self.chunks: list[torch.Tensor] = []  # each (chunk_rows, D + padded) of dtype
        self._on_host: list[NDArray[np.float32]] = []  # the same rows, on a CPU
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
        # A copy: the caller's array may be read-only.
        rows = torch.from_numpy(np.array(vectors, dtype=np.float32)).to(self.device, self.dtype)  # (n, D)
        for number, inside, where in self.by_chunk(slots):
            self.chunks[number][inside, : self.dim] = rows if where is None else rows[where]
        self.has_vector[slots] = True

    def clear(self, slots: NDArray[np.int64]) -> None:
        """Forgets the vectors of the slots: (n,) int64. The rows are zeroed, so that nothing of them can be read again."""
        slots = slots[slots < self.capacity]
        for number, inside, _ in self.by_chunk(slots):
            self.chunks[number][inside, : self.dim] = 0
        self.has_vector[slots] = False

    def holds(self, slots: NDArray[np.int64] | slice) -> NDArray[np.bool_]:
        """Which of the slots, or of a slice of n with a start and a stop, have a vector: (n,) bool.

        Of a slot below 0 the answer means nothing.
        """
        if isinstance(slots, slice):
            inside_slice: NDArray[np.bool_] = self.has_vector[slots]
            return np.pad(inside_slice, (0, slots.stop - slots.start - len(inside_slice)))
        try:
            held: NDArray[np.bool_] = self.has_vector.take(slots)
            return held
        except IndexError:  # slots that have no row yet are the exception, and looking for them costs more than the rest
            pass
        held = np.zeros(len(slots), dtype=bool)
        inside = (slots >= 0) & (slots < self.capacity)
        held[inside] = self.has_vector[slots[inside]]
        return held

    def give_up(self) -> object:
        """Forgets everything; returns what took the memory, to let go of."""
        held = self.chunks, self._on_host
        self.has_vector = self.has_vector[:0]
        self.chunks, self._on_host = [], []
        return held

    def read_on_host(self, slots: NDArray[np.int64]) -> NDArray[np.float32]:
        """`read` into the host's memory: (n,) int64 -> (n, D) float32. For few rows this is several times faster on a CPU."""
        if len(self._on_host) == 1:
            rows = self._on_host[0].take(slots, axis=0)
            return rows if self.dtype is torch.float32 else rows.astype(np.float32)
        return self.read(slots).cpu().numpy()

    def read(self, slots: NDArray[np.int64]) -> torch.Tensor:
        """The rows of the slots, in their order: (n,) int64 -> (n, D) float32 on the matrix's device."""
        if len(self.chunks) == 1:
            places = torch.from_numpy(slots).to(self.device)
            return self.chunks[0][:, : self.dim].index_select(0, places).to(torch.float32)
        rows = torch.empty(len(slots), self.dim, device=self.device)  # (n, D) float32
        for number, inside, where in self.by_chunk(slots):
            part = self.chunks[number][:, : self.dim].index_select(0, inside)
            if where is None:
                return part.to(torch.float32)
            rows[where] = part.to(torch.float32)
        return rows

    def _reach(self, extent: int) -> None:
        while self.capacity < extent:
            self.chunks.append(self._zeros(self.chunk_rows, self.dim + self.padded))
            if self.device.type == "cpu":
                self._on_host.append(self.chunks[-1].numpy()[:, : self.dim])
            self.has_vector = np.concatenate([self.has_vector, np.zeros(self.chunk_rows, dtype=bool)])

    def _zeros(self, rows: int, columns: int) -> torch.Tensor:
        if self.device.type == "cpu":  # NumPy leaves untouched pages unmapped, torch writes zeros to all of them
            return torch.from_numpy(np.zeros((rows, columns), dtype=np.float32 if self.dtype is torch.float32 else np.float16))
        return torch.zeros(rows, columns, device=self.device, dtype=self.dtype)

    def by_chunk(self, slots: NDArray[np.int64]) -> Iterator[tuple[int, torch.Tensor, torch.Tensor | None]]:
        """For each chunk touched: its number, the rows inside it, and their places in `slots` (None: all of them, in order)."""
        chunk_of = slots // self.chunk_rows
        numbers = np.unique(chunk_of)
        for number in numbers.tolist():
            where = None if len(numbers) == 1 else np.flatnonzero(chunk_of == number)
            inside = (slots if where is None else slots[where]) - number * self.chunk_rows
            places = None if where is None else torch.from_numpy(where).to(self.device)
            yield number, torch.from_numpy(inside).to(self.device), places


def _keep_last(slots: NDArray[np.int64], vectors: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    # Scatter with repeated indices has no defined order in torch.
    unique, first_reversed = np.unique(slots[::-1], return_index=True)
    if len(unique) == len(slots):
        return slots, vectors
    last = len(slots) - 1 - first_reversed
    return slots[last], vectors[last]
