"""Sets of keywords by slot, as integer codes."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray


class Keywords:
    """The keywords of each slot. `codes` holds one row a place in the set, so that comparing runs along the slots.

    A value has its code while any slot holds it; then the code may become another value's. So codes are looked up for each
    evaluation and never kept.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self.codes: NDArray[np.int32] = np.full((0, capacity), -1, dtype=np.int32)  # (width, capacity), padded with -1
        self._code_of: dict[str, int] = {}
        self._values: list[str] = []  # by code
        self._uses: list[int] = []  # by code: how many slots hold it
        self._free: list[int] = []

    @property
    def code_count(self) -> int:
        """One more than the highest code."""
        return len(self._values)

    def codes_of(self, values: Iterable[str]) -> NDArray[np.int32]:
        """The codes of those of the values that any slot holds: (<= n,) int32."""
        found = (self._code_of.get(value, -1) for value in values)
        return np.fromiter((code for code in found if code >= 0), dtype=np.int32)

    def put(self, slots: NDArray[np.int64], rows: Sequence[Sequence[str]]) -> None:
        """Writes the keywords of slots that hold none: (n,) int64, each slot once; n rows without repeated keywords."""
        width = max(len(row) for row in rows)
        if width > len(self.codes):
            added = np.full((width - len(self.codes), self._capacity), -1, dtype=np.int32)
            self.codes = np.concatenate([self.codes, added])
        coded = np.full((width, len(rows)), -1, dtype=np.int32)
        for place, row in enumerate(rows):
            for depth, value in enumerate(row):
                coded[depth, place] = self._use(value)
        self.codes[:width, slots] = coded

    def clear(self, slots: NDArray[np.int64]) -> None:
        """Empties slots: (n,) int64, each slot once."""
        if not len(slots):
            return
        old = self.codes[:, slots].ravel().tolist()
        self.codes[:, slots] = -1
        for code in old:
            if code >= 0:
                self._uses[code] -= 1
                if not self._uses[code]:
                    del self._code_of[self._values[code]]
                    self._values[code] = ""
                    self._free.append(code)

    def grow(self, capacity: int) -> None:
        self.codes = np.pad(self.codes, ((0, 0), (0, capacity - self._capacity)), constant_values=-1)
        self._capacity = capacity

    def _use(self, value: str) -> int:
        """The value's code, for one more slot that holds it."""
        code = self._code_of.get(value)
        if code is None:
            if self._free:
                code = self._free.pop()
                self._values[code] = value
            else:
                code = len(self._values)
                self._values.append(value)
                self._uses.append(0)
            self._code_of[value] = code
        self._uses[code] += 1
        return code
