"""People's vectors in one release's space, as arrays."""

from array import array
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_CHUNK_ROWS = 65_536  # 16 MB of 64 components
_SHARDS = 256  # a large dict that grows is copied in one piece, which would hold up every thread
_KEY, _TICK, _VERSION, _COUNTED, _GENERATION, _COMPUTED = range(6)
_NOBODY = np.iinfo(np.int64).min
_WRITING = -1


class UserVector(NamedTuple):
    """A vector and what it was made of."""

    vector: NDArray[np.float32]  # (D,) float32, unit length
    version: int  # of the history that it was made of
    counted: int  # events of that history
    generation: int  # of that history
    computed_us: int  # microseconds since 1970, UTC


class Block(NamedTuple):
    """Some people's vectors, side by side."""

    keys: NDArray[np.int64]  # (n,)
    vectors: NDArray[np.float32]  # (n, D) float32, unit rows
    following: int  # the row after the last that was looked at


class _Chunk:
    """Rows that are never moved: more people need no copy of those who are there."""

    __slots__ = ("numbers", "vectors")

    def __init__(self, rows: int, dim: int) -> None:
        self.vectors = np.zeros((rows, dim), dtype=np.float32)  # memory is taken page by page, as rows are written
        self.numbers = np.zeros((rows, 6), dtype=np.int64)  # columns: _KEY ... _COMPUTED
        self.numbers[:, _KEY] = _NOBODY


class UserVectors:
    """The last vector of each person. The engine's thread writes, any thread reads.

    Beyond `capacity` people the vector that was written longest ago makes room.
    """

    def __init__(self, dim: int | None = None, capacity: int = 1_000_000) -> None:
        """dim: D; if not given, that of the first vector."""
        if capacity < 1:
            raise ValueError("capacity must be at least 1")
        self._dim = dim
        self._capacity = capacity
        self._chunks: list[_Chunk] = []
        self._rows: list[dict[int, int]] = [{} for _ in range(_SHARDS)]  # by key
        self._free: list[int] = []
        self._used = 0  # rows that were ever written
        self._count = 0
        self._tick = 0  # of the last write
        # A ring of rows in the order of writing; place 0 is between the newest and the oldest, a row's place is row + 1.
        self._newer = array("i", [0])
        self._older = array("i", [0])

    def __len__(self) -> int:
        """People who have a vector."""
        return self._count

    @property
    def tick(self) -> int:
        """Grows with every vector that is written."""
        return self._tick

    def __contains__(self, key: int) -> bool:
        return key in self._rows[key % _SHARDS]

    def get(self, key: int) -> UserVector | None:
        """The person's vector, a copy."""
        while (row := self._rows[key % _SHARDS].get(key)) is not None:
            chunk, place = self._chunks[row // _CHUNK_ROWS], row % _CHUNK_ROWS
            before = chunk.numbers[place].tolist()
            vector = chunk.vectors[place].copy()
            # The row may have been written, or have become another person's, while it was copied.
            if before[_KEY] == key and before[_TICK] == chunk.numbers[place, _TICK] != _WRITING:
                return UserVector(vector, *before[_VERSION:])
        return None

    def recent(self, count: int) -> list[int]:
        """The keys of up to `count` people whose vectors were written last, the newest first."""
        parts = [chunk.numbers[:, [_KEY, _TICK]] for chunk in self._chunks]
        numbers = np.concatenate(parts) if parts else np.zeros((0, 2), dtype=np.int64)  # (n, 2)
        numbers = numbers[numbers[:, 0] != _NOBODY]
        newest = np.argsort(-numbers[:, 1], kind="stable")[:count]
        keys: list[int] = numbers[newest, 0].tolist()
        return keys

    def some(self, count: int) -> list[NDArray[np.float32]]:
        """Up to `count` vectors, (D,) float32 each, spread over all people."""
        step = max(1, self._count // max(1, count))
        keys = [key for rows in self._rows for key in list(rows)]  # of a part at once, while the engine's thread may write
        vectors = (self.get(key) for key in keys[::step][:count])
        return [one.vector for one in vectors if one is not None]

    def put(self, key: int, vector: UserVector) -> None:
        """Keeps the vector, unless a newer one is there. For the engine's thread, as all that follows."""
        row = self._rows[key % _SHARDS].get(key)
        if row is None:
            row = self._new_row(key)
        elif self._chunks[row // _CHUNK_ROWS].numbers[row % _CHUNK_ROWS, _VERSION] > vector.version:
            return
        else:
            self._unlink(row)
        self._write(row, key, vector)
        self._rows[key % _SHARDS][key] = row

    def drop(self, keys: Sequence[int]) -> None:
        """Forgets the vectors under these keys; nothing of them stays in memory."""
        for key in keys:
            row = self._rows[key % _SHARDS].pop(key, None)
            if row is not None:
                self._clear(row)
                self._free.append(row)

    def rows(self) -> int:
        """How many rows `block` can be asked for: at least as many as there are people."""
        return self._used

    def block(self, start: int, size: int) -> Block:
        """The people of up to `size` rows from one on. The arrays are views: read them before the next write."""
        chunk, place = self._chunks[start // _CHUNK_ROWS], start % _CHUNK_ROWS
        stop = min(place + size, _CHUNK_ROWS, place + self._used - start)
        keys, vectors = chunk.numbers[place:stop, _KEY], chunk.vectors[place:stop]
        held = keys != _NOBODY
        following = start + stop - place
        return Block(keys, vectors, following) if held.all() else Block(keys[held], vectors[held], following)

    def written_since(self, tick: int) -> Block:
        """The people whose vectors were written after a tick; copies."""
        rows = []
        place = self._older[0]
        while place and self._chunks[(place - 1) // _CHUNK_ROWS].numbers[(place - 1) % _CHUNK_ROWS, _TICK] > tick:
            rows.append(place - 1)
            place = self._older[place]
        vectors = [self._chunks[row // _CHUNK_ROWS].vectors[row % _CHUNK_ROWS] for row in rows]
        keys = [self._chunks[row // _CHUNK_ROWS].numbers[row % _CHUNK_ROWS, _KEY] for row in rows]
        shape = (len(rows), self._dim or 0)
        return Block(np.array(keys, dtype=np.int64), np.array(vectors, dtype=np.float32).reshape(shape), self._used)

    def _new_row(self, key: int) -> int:
        if self._count >= self._capacity:
            oldest = self._newer[0] - 1
            self.drop([int(self._chunks[oldest // _CHUNK_ROWS].numbers[oldest % _CHUNK_ROWS, _KEY])])
        self._count += 1
        if self._free:
            return self._free.pop()
        self._newer.append(0)
        self._older.append(0)
        self._used += 1
        return self._used - 1

    def _write(self, row: int, key: int, vector: UserVector) -> None:
        if row // _CHUNK_ROWS == len(self._chunks):
            self._dim = self._dim if self._dim is not None else len(vector.vector)
            self._chunks.append(_Chunk(min(_CHUNK_ROWS, self._capacity), self._dim))
        chunk, place = self._chunks[row // _CHUNK_ROWS], row % _CHUNK_ROWS
        self._tick += 1
        chunk.numbers[place, _TICK] = _WRITING
        chunk.vectors[place] = vector.vector
        chunk.numbers[place, _VERSION:] = vector[1:]
        chunk.numbers[place, _KEY] = key
        chunk.numbers[place, _TICK] = self._tick
        self._link(row)

    def _clear(self, row: int) -> None:
        chunk, place = self._chunks[row // _CHUNK_ROWS], row % _CHUNK_ROWS
        chunk.numbers[place, _TICK] = _WRITING
        chunk.numbers[place, _KEY] = _NOBODY
        chunk.vectors[place] = 0.0
        self._count -= 1
        self._unlink(row)

    def _link(self, row: int) -> None:
        """Makes the row the newest."""
        newest = self._older[0]
        self._older[row + 1], self._newer[row + 1] = newest, 0
        self._newer[newest] = self._older[0] = row + 1

    def _unlink(self, row: int) -> None:
        newer, older = self._newer[row + 1], self._older[row + 1]
        self._older[newer], self._newer[older] = older, newer
