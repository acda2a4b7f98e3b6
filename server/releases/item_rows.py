"""Where a bundle's items are, by id."""

import hashlib
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


class ItemRows(NamedTuple):
    """Rows of a bundle's items, found by a hash of their ids: two arrays instead of a dictionary of all ids.

    So that a release which is loaded while others answer brings no million of Python objects, which would have to be made, and
    visited by the garbage collector, under the interpreter's lock.
    """

    hashes: NDArray[np.uint64]  # (N,) ascending
    rows: NDArray[np.int64]  # (N,) parallel to hashes

    @classmethod
    def of(cls, ids: pa.ChunkedArray) -> Self:
        hashes = np.fromiter(map(_hash, ids.to_pylist()), dtype=np.uint64, count=len(ids))
        order = np.argsort(hashes, kind="stable")
        return cls(hashes[order], order)

    def find(self, item_id: str, ids: pa.ChunkedArray) -> int | None:
        """The row of an item in the column that the rows were made of; None if it is not there."""
        hashed = np.uint64(_hash(item_id))
        place = int(np.searchsorted(self.hashes, hashed))
        while place < len(self.hashes) and self.hashes[place] == hashed:  # more than once only by chance
            row = int(self.rows[place])
            if ids[row].as_py() == item_id:
                return row
            place += 1
        return None


def _hash(item_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(item_id.encode(), digest_size=8).digest(), "little")
