"""The keywords of slots that hold many: what takes memory is the lists, not the slots."""

import numpy as np
from numpy.typing import NDArray

from index.filters.values import KEYWORDS_MAX
from index.growth import longer

_WIDTHS = (8, 16, 32, KEYWORDS_MAX)
_LINES = 16_384  # of one table: more lists get another table, and nothing is ever moved
_FEW = 4  # codes that are compared one by one rather than looked up


class _Table:
    """Lists of up to `width` codes, one a line."""

    def __init__(self, width: int, lines: int) -> None:
        self.codes: NDArray[np.int32] = np.zeros((width, lines), dtype=np.int32)  # padded with 0
        self.used = 0  # lines that were ever taken


class LongLists:
    """Lists of codes by slot, in tables by their length. A code is 1 or more."""

    def __init__(self, capacity: int, *, lines: int = _LINES) -> None:
        self._capacity = capacity
        self._lines = lines  # of a table
        # (capacity,) where a slot's list lies: table * lines + line + 1; 0: it has none. Empty until there is a list.
        self._place: NDArray[np.int32] = np.zeros(0, dtype=np.int32)
        self._tables: list[_Table] = []
        self._open: dict[int, int] = {}  # by width: the table that is not full yet
        self._free: dict[int, list[int]] = {width: [] for width in _WIDTHS}  # places that lists have left
        self.count = 0  # lists

    def put(self, slots: NDArray[np.int64], lengths: NDArray[np.int64], codes: NDArray[np.int32]) -> None:
        """Writes the lists of slots that have none: (n,) int64 each once, (n,) lengths, (sum of lengths,) codes."""
        if not len(self._place):
            self._place = np.zeros(self._capacity, dtype=np.int32)
        widths = np.array(_WIDTHS)[np.searchsorted(_WIDTHS, lengths)]  # (n,)
        places = np.array([self._take(width) for width in widths.tolist()], dtype=np.int64)
        self._place[slots] = places + 1
        place_of = np.repeat(places, lengths)  # (sum of lengths,)
        depth = np.arange(len(codes)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        for number, mine in _by_table(place_of, self._lines):
            self._tables[number].codes[depth[mine], place_of[mine] % self._lines] = codes[mine]
        self.count += len(slots)

    def clear(self, slots: NDArray[np.int64]) -> NDArray[np.int32]:
        """Empties slots, (n,) int64 each once, and returns all codes that they held: (m,) int32. Not before there is a list."""
        places = self._place[slots].astype(np.int64)
        places = places[places > 0] - 1
        self._place[slots] = 0
        held = [np.zeros(0, dtype=np.int32)]
        for number, mine in _by_table(places, self._lines):
            codes, lines = self._tables[number].codes, places[mine] % self._lines
            held.append(codes[:, lines].ravel())
            codes[:, lines] = 0
            self._free[len(codes)].extend(places[mine].tolist())
        self.count -= len(places)
        everything = np.concatenate(held)
        return everything[everything > 0]

    def holding(self, slots: NDArray[np.int64] | slice, wanted: NDArray[np.int32], code_count: int) -> NDArray[np.bool_]:
        """Which of the slots have a list with a wanted code: (n,) bool. code_count: one more than the highest code.

        Not to be called before there is a list.
        """
        places = self._place[slots]
        found = np.zeros(len(places), dtype=bool)
        listed = np.flatnonzero(places != 0)
        places = places[listed] - 1
        is_wanted = None
        if len(wanted) > _FEW:
            is_wanted = np.zeros(code_count, dtype=bool)
            is_wanted[wanted] = True
        for number, mine in _by_table(places, self._lines):
            lines = places[mine] % self._lines
            hits = np.zeros(len(lines), dtype=bool)
            for row in self._tables[number].codes:
                held = row[lines]
                if is_wanted is not None:
                    hits |= is_wanted[held]
                else:
                    for code in wanted.tolist():
                        hits |= held == code
            found[listed[mine]] = hits
        return found

    def grow(self, capacity: int) -> None:
        self._capacity = capacity
        if len(self._place):
            self._place = longer(self._place, capacity)

    def _take(self, width: int) -> int:
        if self._free[width]:
            return self._free[width].pop()
        number = self._open.get(width, -1)
        if number < 0 or self._tables[number].used == self._lines:
            number = self._open[width] = len(self._tables)
            self._tables.append(_Table(width, self._lines))
        table = self._tables[number]
        table.used += 1
        return number * self._lines + table.used - 1


def _by_table(places: NDArray[np.integer], lines: int) -> list[tuple[int, NDArray[np.int64]]]:
    """For each table in which some of the places lie: its number, and which of them, ascending."""
    numbers = places // lines
    present = np.flatnonzero(np.bincount(numbers)).tolist()
    return [(number, np.flatnonzero(numbers == number)) for number in present]
