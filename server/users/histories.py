"""What a person did: the events that count, in time order, packed into one object a person."""

import struct
from typing import NamedTuple, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

_HEADER = struct.Struct("<qqq")  # version, counted, generation
_EVENT_BYTES = 8 + 4 + 2
_SHARDS = 256
Integer = TypeVar("Integer", bound=np.integer)


class History(NamedTuple):
    """The events of one person that count, oldest first, ties in the order of arrival. Never changed, only replaced."""

    ordinals: NDArray[np.int32]  # (n,) item ordinals
    types: NDArray[np.int16]  # (n,) codes of `People.type_names`
    times_us: NDArray[np.int64]  # (n,) microseconds since 1970, UTC
    version: int  # grows with every change; a vector is fresh if it was made of this version
    counted: int  # events that count, those before the oldest one here included
    generation: int  # grows when links, consent or retention change what belongs to the person, and not with events

    @classmethod
    def empty(cls) -> Self:
        return cls(np.zeros(0, np.int32), np.zeros(0, np.int16), np.zeros(0, np.int64), 0, 0, 0)

    @classmethod
    def of(cls, rows: list[tuple[int, int, int, int]], limit: int, *, version: int, generation: int) -> Self:
        """From (time in microseconds, position, ordinal, type code) in any order; the oldest beyond `limit` are left out."""
        columns = np.array(sorted(rows)[-limit:], dtype=np.int64).reshape(-1, 4)
        ordinals, types = columns[:, 2].astype(np.int32), columns[:, 3].astype(np.int16)
        return cls(ordinals, types, columns[:, 0].copy(), version, len(rows), generation)

    def pack(self) -> bytes:
        """The history as one object, which the garbage collector does not visit: 57 bytes, and 14 an event."""
        header = _HEADER.pack(self.version, self.counted, self.generation)
        return b"".join((header, self.times_us.tobytes(), self.ordinals.tobytes(), self.types.tobytes()))

    @classmethod
    def unpack(cls, packed: bytes) -> Self:
        """Arrays over the packed bytes, without a copy; read only."""
        count = (len(packed) - _HEADER.size) // _EVENT_BYTES
        ordinals_at = _HEADER.size + 8 * count
        return cls(
            np.frombuffer(packed, np.int32, count, ordinals_at),
            np.frombuffer(packed, np.int16, count, ordinals_at + 4 * count),
            np.frombuffer(packed, np.int64, count, _HEADER.size),
            *_HEADER.unpack_from(packed),
        )

    def with_event(self, ordinal: int, type_code: int, time_us: int, *, version: int, limit: int) -> Self:
        """The history with one more event, the last to arrive, at its place in time; the oldest beyond `limit` are left out."""
        place = len(self.times_us)
        while place and self.times_us[place - 1] > time_us:
            place -= 1
        return self._replace(
            ordinals=_inserted(self.ordinals, place, ordinal)[-limit:],
            types=_inserted(self.types, place, type_code)[-limit:],
            times_us=_inserted(self.times_us, place, time_us)[-limit:],
            version=version,
            counted=self.counted + 1,
        )


class HistoryCache:
    """Packed histories by key, the least recently written ones dropped beyond a number of people.

    One thread at a time writes; any thread reads. It is divided by key, since a large dict that grows is copied in one piece.
    """

    def __init__(self, capacity: int) -> None:
        """capacity: people, at least 1."""
        self._capacity = capacity
        self._shards: list[dict[int, bytes]] = [{} for _ in range(_SHARDS)]
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def get(self, key: int) -> bytes | None:
        return self._shards[key % _SHARDS].get(key)

    def put(self, key: int, packed: bytes) -> None:
        """Keeps a history, as the one written last once there are nearly as many people as there is room for."""
        if 2 * self._count >= self._capacity:
            self.drop(key)
        shard = self._shards[key % _SHARDS]
        before = len(shard)
        shard[key] = packed
        self._count += len(shard) - before
        if self._count > self._capacity:
            self._make_room(key)

    def drop(self, key: int) -> None:
        if self._shards[key % _SHARDS].pop(key, None) is not None:
            self._count -= 1

    def _make_room(self, newest: int) -> None:
        """Drops the history written first in the newest one's part, or in the next part that has another one."""
        for part in range(newest, newest + _SHARDS):
            oldest = next(iter(self._shards[part % _SHARDS]), newest)
            if oldest != newest:
                self.drop(oldest)
                return

    def keys(self) -> list[int]:
        """The keys of all, at one moment for each part."""
        return [key for shard in self._shards for key in list(shard)]


def _inserted(column: NDArray[Integer], place: int, value: int) -> NDArray[Integer]:
    grown = np.empty(len(column) + 1, dtype=column.dtype)
    grown[:place] = column[:place]
    grown[place] = value
    grown[place + 1 :] = column[place:]
    return grown
