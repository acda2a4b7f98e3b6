"""Everyone's history at once, at start: one pass over the journal's events, in arrays."""

import logging
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple, cast

import apsw
import numpy as np
from numpy.typing import NDArray

_log = logging.getLogger(__name__)
_ROWS_AT_ONCE = 8192
_REPORT_SECONDS = 5.0
_ALL = (
    "SELECT person_key, position, item_id, type, occurred_us FROM events WHERE item_id IS NOT NULL"
    " ORDER BY person_key, position"
)


class ItemPlaces(NamedTuple):
    """Where items are, live and removed."""

    ordinals: Mapping[str, int]  # by item id
    removed_at: NDArray[np.int64]  # by ordinal: the position of the removal; the largest number for a live item

    def locate(self, item_id: str, position: int) -> int:
        """The ordinal of an item for an event at a position; -1 if the event must wait: the item was not there."""
        ordinal = self.ordinals.get(item_id, -1)
        return ordinal if ordinal >= 0 and position <= self.removed_at[ordinal] else -1


class Events(NamedTuple):
    """Events of whole people, person by person in the order of keys, each person's in time order; parallel arrays."""

    keys: NDArray[np.int64]
    positions: NDArray[np.int64]
    times_us: NDArray[np.int64]
    ordinals: NDArray[np.int32]  # -1: the event waits for its item
    types: NDArray[np.int16]  # -1: the type is not known
    item_ids: NDArray[np.object_]

    def people(self) -> Iterator[tuple[int, slice]]:
        """Each person's key and place in the arrays."""
        starts = np.flatnonzero(np.diff(self.keys, prepend=self.keys[:1] - 1)).tolist()
        for start, stop in zip(starts, starts[1:] + [len(self.keys)][: len(starts)], strict=True):
            yield int(self.keys[start]), slice(start, stop)

    def counting(self) -> "Events":
        """Those that count."""
        counts = (self.ordinals >= 0) & (self.types >= 0)
        return self if counts.all() else self.at(counts)

    def at(self, rows: NDArray[Any]) -> "Events":
        """The events at these places, or where a mask is true."""
        return Events(*(column[rows] for column in cast(tuple[NDArray[Any], ...], self)))


def read_events(connection: apsw.Connection, type_codes: Mapping[str, int], items: ItemPlaces) -> Iterator[Events]:
    """All events, a hundred thousand at a time, no person divided between two parts."""
    rows = connection.execute(_ALL)
    total = connection.execute("SELECT count(*) FROM event_ids").get or 0
    pending: list[tuple[int, int, str, str, int]] = []
    done, reported = 0, time.monotonic()
    while part := list(islice(rows, _ROWS_AT_ONCE)):
        done += len(part)
        pending += part
        # The last person may have more events in the next part.
        whole = len(pending)
        while whole and pending[whole - 1][0] == part[-1][0]:
            whole -= 1
        if whole:
            yield _arrays(pending[:whole], type_codes, items)
            pending = pending[whole:]
        if time.monotonic() - reported > _REPORT_SECONDS:
            reported = time.monotonic()
            _log.info("reading histories: %d of some %d events", done, total)
    if pending:
        yield _arrays(pending, type_codes, items)


def recent_since(connection: apsw.Connection, people: int) -> int:
    """The position from which on a person's last event is one of the `people` last persons' with events; 0 if all are."""
    last = connection.execute("SELECT max(position) FROM events GROUP BY person_key")
    positions = np.fromiter((position for (position,) in last), dtype=np.int64)
    return int(np.partition(positions, -people)[-people]) if len(positions) > people else 0


def _arrays(rows: list[tuple[int, int, str, str, int]], type_codes: Mapping[str, int], items: ItemPlaces) -> Events:
    people, at, item_ids, type_names, times = zip(*rows, strict=True)
    keys = np.array(people, dtype=np.int64)
    positions = np.array(at, dtype=np.int64)
    times_us = np.array(times, dtype=np.int64)
    ordinals = np.array([items.ordinals.get(item_id, -1) for item_id in item_ids], dtype=np.int32)
    ordinals[(ordinals >= 0) & (items.removed_at[ordinals] < positions)] = -1
    types = np.array([type_codes.get(name, -1) for name in type_names], dtype=np.int16)
    ids = np.array(item_ids, dtype=object)
    same = keys[1:] == keys[:-1]
    events = Events(keys, positions, times_us, ordinals, types, ids)
    if (times_us[1:] < times_us[:-1])[same].any():  # seldom: a person's events came in another order than they happened
        return events.at(np.lexsort((positions, times_us, keys)))
    return events
