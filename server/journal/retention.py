"""Which events are kept: by age, and by number of one id. Removed a few at a time, beside everything else."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import apsw

from server.errors import Unavailable
from server.fields import DAY_US
from server.journal.events import HeldEvent
from server.journal.writer import JournalWriter, Transaction

_log = logging.getLogger(__name__)
_PEOPLE_AT_ONCE = 100
_EVENTS_AT_ONCE = 500  # removed by one write: some 5 ms
_PAUSE_SECONDS = 0.1  # between two looks: a million people take a quarter of an hour
_BETWEEN_PASSES_SECONDS = 3600.0
_JUMP_US = 600_000_000  # a clock that gains or loses more between two passes was set
_LOOK = (
    "SELECT position, item_id, type, received_us, event_hash FROM events WHERE person_key = ?"
    " ORDER BY item_id IS NULL, occurred_us DESC, position DESC"
)


class Rules(NamedTuple):
    """What is kept."""

    age_us: int | None  # since the event was received; None: any
    events_per_person: int  # the newest, by the time when they happened
    event_id_us: int  # for how long an event_id is known at least, since its event was received


class Removal(NamedTuple):
    """What is to be removed of one id."""

    person_key: int
    position: int
    event: HeldEvent | None  # None: it went before, and only its event_id is left
    event_hash: bytes | None  # None: the event_id must stay known for now


class RemoveEvents:
    """Removes events. One whose event_id must stay known leaves a row without content behind."""

    alone = False

    def __init__(self, removals: Sequence[Removal], publish: Callable[[Sequence[HeldEvent]], None]) -> None:
        self.rows = len(removals)
        self._removals = removals
        self._publish = publish
        self._removed: list[HeldEvent] = []

    def commit(self, transaction: Transaction) -> None:
        self._removed = []
        for key, position, event, hashed in self._removals:
            if hashed is None:
                query = "UPDATE events SET item_id = NULL, type = NULL WHERE person_key = ? AND position = ?"
            else:
                transaction.execute("DELETE FROM event_ids WHERE event_hash = ? AND position = ?", (hashed, position))
                query = "DELETE FROM events WHERE person_key = ? AND position = ?"
            # An erasure may have been faster.
            if transaction.changed(query, (key, position)) and event is not None:
                self._removed.append(event)

    def publish(self) -> None:
        self._publish(self._removed)


class ClockWatch:
    """Whether a clock can be trusted with ages: one that was set cannot for a day, in which somebody may set it right.

    A clock that jumps ahead by a year would otherwise have everything removed at once.
    """

    def __init__(self, clock_us: Callable[[], int], passed_us: Callable[[], int] = lambda: time.monotonic_ns() // 1000) -> None:
        """passed_us: time that passes evenly, from any start."""
        self._clock_us = clock_us
        self._passed_us = passed_us
        self._offset_us = clock_us() - passed_us()
        self._trusted_from_us = passed_us()

    def is_trusted(self) -> bool:
        """To be asked from time to time: a clock that was set and set back between two questions is not seen."""
        passed_us = self._passed_us()
        offset_us = self._clock_us() - passed_us
        if abs(offset_us - self._offset_us) > _JUMP_US:
            _log.warning("the clock was set by %d s; retention waits for a day", (offset_us - self._offset_us) // 1_000_000)
            self._trusted_from_us = passed_us + DAY_US
        self._offset_us = offset_us
        return passed_us >= self._trusted_from_us


class Retention:
    """Walks through everyone's events in a thread of its own, and has removed what is not to be kept."""

    def __init__(
        self,
        rules: Rules,
        connect: Callable[[], apsw.Connection],
        journal: JournalWriter,
        forget: Callable[[Sequence[HeldEvent]], None],
        clock_us: Callable[[], int],
    ) -> None:
        """connect: opens a reader of the journal. forget: told what is gone, on the writer's thread."""
        self._rules = rules
        self._connect = connect
        self._journal = journal
        self._forget = forget
        self._clock_us = clock_us
        self._clock = ClockWatch(clock_us)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="retention", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def sweep(self, pause_seconds: float = 0.0) -> int:
        """Looks at everyone once; returns how many events were removed."""
        connection = self._connect()
        try:
            removed = 0
            for removals in self._due(connection):
                for start in range(0, len(removals), _EVENTS_AT_ONCE):
                    if self._stopping.is_set():
                        return removed
                    some = removals[start : start + _EVENTS_AT_ONCE]
                    self._journal.submit(RemoveEvents(some, self._forget)).result()
                    removed += sum(removal.event is not None for removal in some)
                if self._stopping.wait(pause_seconds):
                    break
            return removed
        finally:
            connection.close()

    def _due(self, connection: apsw.Connection) -> Iterator[list[Removal]]:
        """What is to be removed, a few people at a time."""
        key = -1
        while True:
            removals: list[Removal] = []
            for _ in range(_PEOPLE_AT_ONCE):
                query = "SELECT person_key FROM events WHERE person_key > ? ORDER BY person_key LIMIT 1"
                following = connection.execute(query, (key,)).fetchone()
                if following is None:
                    yield removals
                    return
                key = int(following[0])
                removals += self._of(connection, key)
            yield removals

    def _of(self, connection: apsw.Connection, key: int) -> Iterator[Removal]:
        rules, now_us = self._rules, self._clock_us()
        for place, (position, item_id, type_name, received_us, hashed) in enumerate(connection.execute(_LOOK, (key,))):
            may_forget = received_us < now_us - rules.event_id_us
            is_old = rules.age_us is not None and received_us < now_us - rules.age_us
            if item_id is None:
                if may_forget:
                    yield Removal(key, position, None, hashed)
            elif is_old or place >= rules.events_per_person:
                event = HeldEvent(key, position, item_id, type_name)
                yield Removal(key, position, event, hashed if may_forget else None)

    def _run(self) -> None:
        while not self._stopping.wait(_BETWEEN_PASSES_SECONDS / 60):
            try:
                removed = self.sweep(_PAUSE_SECONDS) if self._clock.is_trusted() else 0
            except Unavailable:
                return  # the server stops, or the journal has died, which others tell
            except Exception:
                _log.error("retention failed; it goes on in an hour", exc_info=True)
            else:
                if removed:
                    _log.info("retention removed %d events", removed)
            if self._stopping.wait(_BETWEEN_PASSES_SECONDS):
                return


def rules_of(retention_days: int | None, events_per_person: int, event_id_days: int) -> Rules:
    """The rules, from days as they are configured."""
    age_us = retention_days * DAY_US if retention_days is not None else None
    return Rules(age_us, events_per_person, event_id_days * DAY_US)
