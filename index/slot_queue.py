"""Slots that wait for upkeep, in order."""

from collections import deque

import numpy as np
from numpy.typing import NDArray


class SlotQueue:
    """Slots, first in first out, looked at some at a time, whatever the sizes in which they came.

    What is taken stays until it is done, so that a failure in between loses nothing.
    """

    def __init__(self) -> None:
        self._parts: deque[NDArray[np.int64]] = deque()
        self._count = 0

    def __len__(self) -> int:
        """How many slots wait, repeated ones counted each."""
        return self._count

    def append(self, slots: NDArray[np.int64]) -> None:
        """Takes (n,) int64 in, copied: callers may go on with their arrays."""
        if len(slots):
            self._parts.append(np.array(slots, dtype=np.int64))
            self._count += len(slots)

    def take(self, count: int) -> NDArray[np.int64]:
        """The first `count` slots, or all: (<= count,) int64. They stay until `done`."""
        parts, found = [], 0
        for part in self._parts:
            parts.append(part[: count - found])
            found += len(parts[-1])
            if found == count:
                break
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)

    def done(self, count: int) -> None:
        """The first `count` slots need not be kept any more."""
        self._count -= count
        while count:
            first = self._parts[0]
            if len(first) > count:
                self._parts[0] = first[count:]
                return
            count -= len(first)
            self._parts.popleft()

    def clear(self) -> None:
        """Forgets all."""
        self._parts.clear()
        self._count = 0
