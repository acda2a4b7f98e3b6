"""What each person did: immutable snapshots of the events that count, in time order."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from server.journal.events import Person, Status, StoredEvent

Integer = TypeVar("Integer", bound=np.integer)


class History(NamedTuple):
    """The events of one person that count, oldest first, ties in the order of arrival. Never changed, only replaced."""

    ordinals: NDArray[np.int32]  # (n,) item ordinals
    types: NDArray[np.int16]  # (n,) codes of `Histories.type_names`
    times_us: NDArray[np.int64]  # (n,) microseconds since 1970, UTC
    positions: NDArray[np.int64]  # (n,) journal positions
    version: int  # events that ever counted; grows by one with each

    @classmethod
    def empty(cls) -> "History":
        none = np.zeros(0)
        return cls(none.astype(np.int32), none.astype(np.int16), none.astype(np.int64), none.astype(np.int64), 0)

    def with_event(self, ordinal: int, type_code: int, time_us: int, position: int, limit: int) -> "History":
        """The history with one more event at its place in time; the oldest beyond `limit` are dropped."""
        place = len(self.times_us)
        while place and (self.times_us[place - 1], self.positions[place - 1]) > (time_us, position):
            place -= 1
        return History(
            _inserted(self.ordinals, place, ordinal)[-limit:],
            _inserted(self.types, place, type_code)[-limit:],
            _inserted(self.times_us, place, time_us)[-limit:],
            _inserted(self.positions, place, position)[-limit:],
            self.version + 1,
        )


class _Waiting(NamedTuple):
    person_key: int
    type_code: int
    time_us: int
    position: int


class Histories:
    """Everyone's history. The journal's writer thread changes it; any thread may read a snapshot.

    An event counts if its item was in the catalogue at its time or came in since, and if its type is known. The others wait:
    those on an unknown item by the item's id; those of an unknown type are counted only, and read again from the journal when
    a release with other types starts.
    """

    def __init__(self, types: Iterable[str], *, limit: int, unreferenced: Callable[[int], None] = lambda ordinal: None) -> None:
        self.type_names = list(types)
        self._type_codes = {name: code for code, name in enumerate(self.type_names)}
        self._limit = limit
        self._unreferenced = unreferenced
        self._keys: dict[Person, int] = {}
        self._histories: dict[int, History] = {}
        self._waiting: dict[str, list[_Waiting]] = {}
        self._waiting_count: Counter[int] = Counter()
        self._references: NDArray[np.int64] = np.zeros(1024, dtype=np.int64)  # by ordinal: events in histories

    def __len__(self) -> int:
        """People with at least one recorded event."""
        return len(self._keys)

    def key(self, person: Person) -> int | None:
        """The person's key, if anything was ever recorded for them."""
        return self._keys.get(person)

    def get(self, person_key: int) -> History:
        """The person's events that count; empty for an unknown key."""
        return self._histories.get(person_key) or History.empty()

    def some(self, count: int) -> list[tuple[int, History]]:
        """Up to `count` people's keys and histories, spread over all people."""
        keys = list(self._histories)
        return [(key, self.get(key)) for key in keys[:: max(1, len(keys) // count)][:count]]

    def waiting_count(self, person_key: int) -> int:
        """Recorded events of the person that do not count yet."""
        return self._waiting_count[person_key]

    def references(self, ordinal: int) -> int:
        """How many events in histories refer to the item."""
        return int(self._references[ordinal]) if ordinal < len(self._references) else 0

    def type_code(self, name: str) -> int | None:
        """The code of an event type that counts."""
        return self._type_codes.get(name)

    def load(
        self,
        people: dict[Person, int],
        events: Iterable[tuple[int, int, str, str, int]],
        ordinal_at: Callable[[str, int], int],
    ) -> None:
        """Rebuilds everything from the journal's events in the order of position.

        ordinal_at: the ordinal of an item for an event at a position, or -1 if the event must wait.
        """
        self._keys = people
        rows: list[tuple[int, int, int, int, int]] = []  # person key, ordinal, type code, time, position
        for position, person_key, item_id, type_name, time_us in events:
            type_code = self._type_codes.get(type_name)
            ordinal = ordinal_at(item_id, position) if type_code is not None else -1
            if type_code is None or ordinal < 0:
                self._wait(StoredEvent(position, person_key, item_id, type_name, time_us), type_code)
            else:
                rows.append((person_key, ordinal, type_code, time_us, position))
        self._build(rows)

    def add(self, events: Sequence[tuple[StoredEvent, Person]], ordinal_of: Callable[[str], int]) -> list[Status]:
        """Takes in new events; says of each whether it counts. ordinal_of: the ordinal of a live item, or -1."""
        statuses = []
        for event, person in events:
            self._keys.setdefault(person, event.person_key)
            type_code = self._type_codes.get(event.type)
            ordinal = ordinal_of(event.item_id)
            if type_code is not None and ordinal >= 0:
                self._count(event.person_key, ordinal, type_code, event.occurred_us, event.position)
                statuses.append(Status.ACCEPTED)
            else:
                self._wait(event, type_code)
                statuses.append(Status.UNKNOWN_ITEM if ordinal < 0 else Status.UNKNOWN_TYPE)
        return statuses

    def item_came_in(self, item_id: str, ordinal: int) -> list[int]:
        """Lets the events that waited for the item count; returns the keys of the people whose histories changed."""
        waiting = self._waiting.pop(item_id, [])
        for event in waiting:
            self._waiting_count[event.person_key] -= 1
            self._count(event.person_key, ordinal, event.type_code, event.time_us, event.position)
        return [event.person_key for event in waiting]

    def _wait(self, event: StoredEvent, type_code: int | None) -> None:
        self._waiting_count[event.person_key] += 1
        if type_code is not None:
            waiting = _Waiting(event.person_key, type_code, event.occurred_us, event.position)
            self._waiting.setdefault(event.item_id, []).append(waiting)

    def _count(self, person_key: int, ordinal: int, type_code: int, time_us: int, position: int) -> None:
        before = self._histories.get(person_key) or History.empty()
        after = before.with_event(ordinal, type_code, time_us, position, self._limit)
        self._histories[person_key] = after
        self._refer(ordinal, 1)
        if len(before.ordinals) == len(after.ordinals):  # the oldest made room; it may be the new event itself
            dropped = ordinal if (time_us, position) < (before.times_us[0], before.positions[0]) else int(before.ordinals[0])
            self._refer(dropped, -1)

    def _refer(self, ordinal: int, by: int) -> None:
        if ordinal >= len(self._references):
            self._references = np.pad(self._references, (0, max(ordinal + 1, len(self._references))))
        self._references[ordinal] += by
        if self._references[ordinal] == 0:
            self._unreferenced(ordinal)

    def _build(self, rows: list[tuple[int, int, int, int, int]]) -> None:
        if not rows:
            return
        people, ordinals, types, times, positions = (np.array(column, dtype=np.int64) for column in zip(*rows, strict=True))
        order = np.lexsort((positions, times, people))
        starts = np.flatnonzero(np.diff(people[order], prepend=people[order[0]] - 1))
        for place in np.split(order, starts[1:]):
            kept = place[-self._limit :]
            self._histories[int(people[place[0]])] = History(
                ordinals[kept].astype(np.int32), types[kept].astype(np.int16), times[kept], positions[kept], len(place)
            )
            np.add.at(self._references_upto(int(ordinals[kept].max())), ordinals[kept], 1)

    def _references_upto(self, ordinal: int) -> NDArray[np.int64]:
        if ordinal >= len(self._references):
            self._references = np.pad(self._references, (0, max(ordinal + 1, len(self._references))))
        return self._references


def _inserted(column: NDArray[Integer], place: int, value: int) -> NDArray[Integer]:
    grown = np.empty(len(column) + 1, dtype=column.dtype)
    grown[:place] = column[:place]
    grown[place] = value
    grown[place + 1 :] = column[place:]
    return grown
