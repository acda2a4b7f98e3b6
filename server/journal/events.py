"""Events in the journal."""

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from hashlib import blake2b
from typing import NamedTuple

import apsw

from server.journal.writer import Transaction

USER, VISITOR = 0, 1


class Person(NamedTuple):
    """A subject as received: the same id as user and as visitor are two people."""

    kind: int  # USER or VISITOR
    subject_id: str


@dataclass(frozen=True, slots=True)
class Event:
    """A validated event."""

    event_id: str
    person: Person
    item_id: str
    type: str
    occurred_us: int  # microseconds since 1970, UTC
    occurred_given: bool = True  # False: the caller left the time to the server

    def digest(self) -> bytes:
        """A hash of the content as sent, so that a retry without a time is the same event later."""
        occurred = str(self.occurred_us) if self.occurred_given else ""
        parts = (str(self.person.kind), self.person.subject_id, self.item_id, self.type, occurred)
        return blake2b("\0".join(f"{len(part)}:{part}" for part in parts).encode(), digest_size=16).digest()


class StoredEvent(NamedTuple):
    """An event as the views see it."""

    position: int
    person_key: int
    item_id: str
    type: str
    occurred_us: int


class Status(Enum):
    ACCEPTED = "accepted"
    UNKNOWN_ITEM = "unknown item"
    UNKNOWN_TYPE = "unknown type"
    DUPLICATE = "duplicate"
    CLASH = "clash"


class Outcome(NamedTuple):
    """What became of one event; position is the original's for a duplicate, and 0 for a clash."""

    status: Status
    position: int


class RecordEvents:
    """Writes events once each: a repeated event_id gets the original position, or is refused if its content differs.

    A repeat of an event that is being committed is in a later transaction or later in the same one, so it sees the original
    and is acknowledged with it.
    """

    def __init__(
        self,
        events: Sequence[Event],
        received_us: int,
        publish: Callable[[Sequence[tuple[StoredEvent, Person]]], Sequence[Status]],
    ) -> None:
        self.rows = len(events)
        self._events = events
        self._received_us = received_us
        self._publish = publish
        self._new: list[tuple[StoredEvent, Person]] = []
        self._outcomes: list[Outcome | None] = []

    def commit(self, transaction: Transaction) -> None:
        self._new = []
        self._outcomes = [self._write(transaction, event) for event in self._events]

    @property
    def written(self) -> int:
        """How many of the events were new, once committed."""
        return len(self._new)

    def publish(self) -> list[Outcome]:
        """One outcome for each event, in order."""
        statuses = iter(self._publish(self._new))
        fresh = (Outcome(status, stored.position) for status, (stored, _) in zip(statuses, self._new, strict=True))
        return [outcome or next(fresh) for outcome in self._outcomes]

    def _write(self, transaction: Transaction, event: Event) -> Outcome | None:
        """The outcome if the event was known already; None if it was written."""
        digest = event.digest()
        known = transaction.execute("SELECT position, digest FROM events WHERE event_id = ?", (event.event_id,)).fetchone()
        if known is not None:
            return Outcome(Status.DUPLICATE, known[0]) if known[1] == digest else Outcome(Status.CLASH, 0)
        key = _person_key(transaction, event.person)
        position = transaction.next_position()
        transaction.execute(
            "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (position, event.event_id, digest, key, event.item_id, event.type, event.occurred_us, self._received_us),
        )
        self._new.append((StoredEvent(position, key, event.item_id, event.type, event.occurred_us), event.person))
        return None


def _person_key(transaction: Transaction, person: Person) -> int:
    found = transaction.execute(
        "SELECT person_key FROM people WHERE kind = ? AND subject_id = ?", (person.kind, person.subject_id)
    ).fetchone()
    if found is not None:
        return int(found[0])
    key = secrets.randbits(63)  # random, so that it says nothing of the person or of the order of arrival
    transaction.execute("INSERT INTO people VALUES (?, ?, ?)", (key, person.kind, person.subject_id))
    return key


def load_people(connection: apsw.Connection) -> dict[Person, int]:
    """Every person's key."""
    rows = connection.execute("SELECT kind, subject_id, person_key FROM people")
    return {Person(kind, subject_id): key for kind, subject_id, key in rows}


def load_events(connection: apsw.Connection) -> Iterator[tuple[int, int, str, str, int]]:
    """Every event in the order of its position, as the fields of `StoredEvent`."""
    return connection.execute("SELECT position, person_key, item_id, type, occurred_us FROM events ORDER BY position")
