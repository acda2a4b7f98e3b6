"""The different values of a long column, seen a piece at a time."""

import pyarrow as pa
import pyarrow.compute as pc


class Distinct:
    """Collects different strings in the order in which they come first. Memory: at most some twice what they take."""

    def __init__(self) -> None:
        self._found = pa.array([], pa.string())
        self._fresh: list[pa.Array] = []  # of each piece since then its own different values

    def see(self, column: pa.ChunkedArray) -> None:
        """The next strings; they are merged when there are as many as before, so that merging stays cheap."""
        self._fresh.append(pc.unique(column))
        if sum(map(len, self._fresh)) > len(self._found):
            self._merge()

    def finish(self) -> pa.Array:
        """All of them."""
        self._merge()
        return self._found

    def _merge(self) -> None:
        self._found = pc.unique(pa.chunked_array([self._found, *self._fresh]))
        self._fresh = []
