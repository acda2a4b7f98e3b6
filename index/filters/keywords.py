"""Sets of keywords by slot, as integer codes."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from index.filters.long_lists import LongLists
from index.filters.values import Words
from index.growth import grown, longer

_SHORT = 4
"""A set of up to so many lies in `rows`, which take four bytes a slot each; a larger one lies in `long`, whole."""


class Keywords:
    """The keywords of each slot. `rows` holds one row a place in the set, so that comparing runs along the slots.

    A value has its code while any slot holds it; then the code may become another value's. So codes are looked up for each
    evaluation and never kept. No value has the code 0.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self.rows: list[NDArray[np.int32]] = []  # at most _SHORT of (capacity,), padded with 0
        self.long = LongLists(capacity)
        self._code_of: dict[str, int] = {}
        self._values: list[str] = [""]  # by code
        self._uses: NDArray[np.int32] = np.zeros(64, dtype=np.int32)  # by code: how many slots hold it; longer than `_values`
        self._free: list[int] = []

    @property
    def code_count(self) -> int:
        """One more than the highest code."""
        return len(self._values)

    def codes_of(self, values: Iterable[str]) -> NDArray[np.int32]:
        """The codes of those of the values that any slot holds: (<= n,) int32."""
        found = (self._code_of.get(value, 0) for value in values)
        return np.fromiter((code for code in found if code), dtype=np.int32)

    def put(self, slots: NDArray[np.int64], words: Words) -> None:
        """Writes the keywords of slots that hold none: (n,) int64, each slot once, and the keywords of n items."""
        codes = self._use(words)[words.numbers]  # (sum of lengths,) int32
        lengths = words.lengths
        first = np.cumsum(lengths) - lengths  # (n,) where each slot's codes begin
        is_short = lengths <= _SHORT
        for depth in range(int(lengths[is_short].max(initial=0))):
            if depth == len(self.rows):
                self.rows.append(np.zeros(self._capacity, dtype=np.int32))
            holders = is_short & (lengths > depth)
            self.rows[depth][slots[holders]] = codes[first[holders] + depth]
        if not is_short.all():
            is_long = ~is_short
            self.long.put(slots[is_long], lengths[is_long], codes[np.repeat(is_long, lengths)])

    def clear(self, slots: NDArray[np.int64]) -> None:
        """Empties slots: (n,) int64, each slot once."""
        held = [row[slots] for row in self.rows]
        for row in self.rows:
            row[slots] = 0
        if self.long.count:
            held.append(self.long.clear(slots))
        codes, counts = np.unique(np.concatenate(held), return_counts=True)
        counts[codes == 0] = 0
        self._uses[codes] -= counts
        for code in codes[(self._uses[codes] == 0) & (codes > 0)].tolist():
            del self._code_of[self._values[code]]
            self._values[code] = ""
            self._free.append(code)

    def grow(self, capacity: int) -> None:
        self.rows = [longer(row, capacity) for row in self.rows]
        self.long.grow(capacity)
        self._capacity = capacity

    def _use(self, words: Words) -> NDArray[np.int32]:
        """The codes of the distinct words, for the slots that now hold them: (m,) int32, 0 for one that none of them holds."""
        uses = np.bincount(words.numbers, minlength=len(words.distinct))
        code_of, codes = self._code_of, np.zeros(len(words.distinct), dtype=np.int32)
        for number, (word, count) in enumerate(zip(words.distinct, uses.tolist(), strict=True)):
            if count:
                codes[number] = code_of.get(word) or self._new_code(word)
        while len(self._uses) < len(self._values):
            self._uses = longer(self._uses, grown(len(self._uses)))
        self._uses[codes] += uses.astype(np.int32)  # no code occurs twice, but for 0, with no uses
        return codes

    def _new_code(self, word: str) -> int:
        if self._free:
            code = self._free.pop()
            self._values[code] = word
        else:
            code = len(self._values)
            self._values.append(word)
        self._code_of[word] = code
        return code
