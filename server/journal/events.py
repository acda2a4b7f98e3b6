"""Events in the journal."""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from hashlib import blake2b
from typing import NamedTuple, Protocol

import apsw

from server.journal.migrations import event_hash
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
        (kind, subject_id), item_id, name = self.person, self.item_id, self.type
        # Each part with its length, so that no two contents give the same text. Written out: this runs for every event.
        text = (
            f"1:{kind}\0{len(subject_id)}:{subject_id}\0{len(item_id)}:{item_id}"
            f"\0{len(name)}:{name}\0{len(occurred)}:{occurred}"
        )
        return blake2b(text.encode(), digest_size=16).digest()


class StoredEvent(NamedTuple):
    """An event as the views see it."""

    position: int
    person_key: int
    item_id: str
    type: str
    occurred_us: int


class HeldEvent(NamedTuple):
    """An event that the journal holds, or held until a moment ago."""

    person_key: int
    position: int
    item_id: str
    type: str


class Status(Enum):
    ACCEPTED = "accepted"
    UNKNOWN_ITEM = "unknown item"
    UNKNOWN_TYPE = "unknown type"
    DUPLICATE = "duplicate"
    CLASH = "clash"
    NO_CONSENT = "no consent"
    ERASED = "erased"


class Outcome(NamedTuple):
    """What became of one event; position is the original's for a duplicate, and 0 if nothing was written."""

    status: Status
    position: int


class Admission(Protocol):
    """Who is known and whose events may be kept. Asked on the thread that writes, so that it includes all earlier writes."""

    def find(self, person: Person) -> int | None:
        """The person's key, if the person is known."""
        ...

    def refusal(self, event: Event, event_hash: bytes) -> Status | None:
        """Why the event must not be kept: NO_CONSENT, ERASED, or None."""
        ...


class RecordEvents:
    """Writes events once each: a repeated event_id gets the original position, or is refused if its content differs.

    A repeat of an event that is being committed is in a later transaction or later in the same one, so it sees the original
    and is acknowledged with it. An event that may not be kept is not written, unless it was before.
    """

    alone = False

    def __init__(
        self,
        events: Sequence[Event],
        received_us: int,
        people: Admission,
        publish: Callable[[Sequence[tuple[StoredEvent, Person]]], Sequence[Status]],
    ) -> None:
        self.rows = len(events)
        self._events = events
        self._received_us = received_us
        self._people = people
        self._publish = publish
        self._new: list[tuple[StoredEvent, Person]] = []
        self._outcomes: list[Outcome | None] = []

    def commit(self, transaction: Transaction) -> None:
        self._new = []
        self._outcomes = [self._write(transaction, event) for event in self._events]

    @property
    def outcomes(self) -> list[Outcome | None]:
        """What became of the events, in order, once committed; None for those that were written."""
        return self._outcomes

    def publish(self) -> list[Outcome]:
        """One outcome for each event, in order."""
        statuses = iter(self._publish(self._new)) if self._new else iter(())
        fresh = (Outcome(status, stored.position) for status, (stored, _) in zip(statuses, self._new, strict=True))
        return [outcome or next(fresh) for outcome in self._outcomes]

    def _write(self, transaction: Transaction, event: Event) -> Outcome | None:
        """The outcome if the event was known already or may not be kept; None if it was written."""
        hashed = event_hash(transaction.event_key, event.event_id)
        digest = event.digest()
        refusal = self._people.refusal(event, hashed)
        key = self._people.find(event.person) or transaction.created.get(event.person)
        if refusal is not None or key is None:
            known = _known(transaction, hashed, digest)
            if known is not None:
                return known
            if refusal is not None:
                return Outcome(refusal, 0)
        if key is None:
            key = person_key(transaction, event.person)
        position = transaction.head + 1
        if not transaction.changed(
            "INSERT INTO event_ids VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", (hashed, digest, position, key)
        ):
            return _known(transaction, hashed, digest)
        transaction.head = position
        transaction.execute(
            "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)",
            (key, position, hashed, event.item_id, event.type, event.occurred_us, self._received_us),
        )
        self._new.append((StoredEvent(position, key, event.item_id, event.type, event.occurred_us), event.person))
        return None


def _known(transaction: Transaction, hashed: bytes, digest: bytes) -> Outcome | None:
    row = transaction.execute("SELECT position, digest FROM event_ids WHERE event_hash = ?", (hashed,)).fetchone()
    if row is None:
        return None
    return Outcome(Status.DUPLICATE, row[0]) if row[1] == digest else Outcome(Status.CLASH, 0)


def person_key(transaction: Transaction, person: Person) -> int:
    """The person's key; a person who is not known is written, with what they withdrew before a restore lost them."""
    found = transaction.execute(
        "SELECT person_key FROM people WHERE kind = ? AND subject_id = ?", (person.kind, person.subject_id)
    ).fetchone()
    if found is not None:
        return int(found[0])
    key = secrets.randbits(62) + 1  # random, so that it says nothing of the person or of the order of arrival
    transaction.execute(
        "INSERT INTO people (person_key, kind, subject_id) VALUES (?, ?, ?)", (key, person.kind, person.subject_id)
    )
    transaction.created[person] = key
    for purpose, given_us in transaction.withdrawn(person).items():
        write_withdrawal(transaction.connection, key, transaction.next_position(), purpose, given_us)
    return key


def write_withdrawal(connection: apsw.Connection, key: int, position: int, purpose: int, given_us: int) -> None:
    """Writes a withdrawal that a restore lost. Where it was given is not known any more."""
    values = (key, position, purpose, "withdrawn before a restore", given_us)
    connection.execute("INSERT INTO consents VALUES (?1, ?2, ?3, 0, ?4, ?5, ?5)", values)
