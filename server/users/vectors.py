"""People's vectors in one release's space, and whose should be computed anew."""

import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class UserVector(NamedTuple):
    """A vector and what it was made of."""

    vector: NDArray[np.float32]  # (D,) float32, unit length
    version: int  # of the history that it was made of
    counted: int  # events of that history
    generation: int  # of that history
    computed_us: int  # microseconds since 1970, UTC


class UserVectors:
    """The last vector of each person. The engine's thread writes, any thread reads."""

    def __init__(self) -> None:
        self._vectors: dict[int, UserVector] = {}

    def get(self, person_key: int) -> UserVector | None:
        return self._vectors.get(person_key)

    def some(self, count: int) -> list[NDArray[np.float32]]:
        """Up to `count` vectors, (D,) float32 each, spread over all people."""
        keys = list(self._vectors)  # at once, while the engine's thread may write
        vectors = (self._vectors.get(key) for key in keys[:: max(1, len(keys) // count)][:count])
        return [one.vector for one in vectors if one is not None]

    def drop(self, keys: Sequence[int]) -> None:
        for key in keys:
            self._vectors.pop(key, None)

    def put(self, person_key: int, vector: UserVector) -> None:
        """Keeps the vector, unless a newer one is there."""
        known = self._vectors.get(person_key)
        if known is None or known.version <= vector.version:
            self._vectors[person_key] = vector


class Refresher:
    """People whose histories changed, the longest-waiting first, each once however many events came.

    At most `capacity` wait; beyond it the oldest is forgotten, since a vector is made fresh before an answer anyway.
    """

    def __init__(self, capacity: int = 100_000) -> None:
        self._capacity = capacity
        self._dirty: dict[int, None] = {}  # in order of insertion
        self._lock = threading.Lock()

    def mark(self, person_key: int) -> None:
        """The person's history changed."""
        with self._lock:
            self._dirty[person_key] = None
            if len(self._dirty) > self._capacity:
                del self._dirty[next(iter(self._dirty))]

    def drop(self, keys: Sequence[int]) -> None:
        with self._lock:
            for key in keys:
                self._dirty.pop(key, None)

    def take(self, count: int) -> list[int]:
        """Up to `count` people, who are no longer waiting then."""
        with self._lock:
            taken = [key for key, _ in zip(self._dirty, range(count), strict=False)]
            for key in taken:
                del self._dirty[key]
            return taken
