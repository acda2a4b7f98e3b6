"""One-dimensional arrays that may outgrow memory: beyond a size they lie in a temporary file and are mapped.

The file has no name, so nothing is left behind however a run ends. The system keeps as much of it in memory as it has
room for, and takes that room back when it needs it.
"""

import mmap
import os
import tempfile
from typing import IO, Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

Kind = TypeVar("Kind", bound=np.generic)
IN_MEMORY_BYTES = 1 << 26  # 64 MiB of one array: 8.4 million int64


class ArrayBuilder(Generic[Kind]):
    """Grows an array at its end; `finish` gives it whole, writable, in memory or mapped."""

    def __init__(self, dtype: type[Kind]) -> None:
        self.dtype = np.dtype(dtype)
        self._parts: list[npt.NDArray[Kind]] = []
        self._bytes = 0
        self._file: IO[bytes] | None = None

    def append(self, part: npt.NDArray[Any]) -> None:
        """(n,) values, brought to the array's dtype. Raises OSError where the disk is full."""
        values = np.ascontiguousarray(part, dtype=self.dtype)
        self._bytes += values.nbytes
        self._parts.append(values)
        if self._file is None and self._bytes > IN_MEMORY_BYTES:
            self._file = tempfile.TemporaryFile(dir=spill_directory())  # noqa: SIM115 - closed with the builder
        if self._file is not None:
            for held in self._parts:
                self._file.write(held.view(np.uint8).data)
            self._parts = []

    def finish(self) -> npt.NDArray[Kind]:
        """(total,) array; nothing can be appended afterwards."""
        if self._file is None:
            return np.concatenate([np.empty(0, self.dtype), *self._parts])
        self._file.flush()
        return np.frombuffer(mmap.mmap(self._file.fileno(), self._bytes), dtype=self.dtype)

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()  # a mapping keeps what it maps


def spill_directory() -> str | None:
    """TMPDIR where it is set, else /var/tmp, since /tmp is memory on many systems; None = as Python chooses."""
    if "TMPDIR" not in os.environ and os.access("/var/tmp", os.W_OK):
        return "/var/tmp"
    return None
