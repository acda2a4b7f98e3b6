"""Whose events may be kept."""

from typing import Protocol

from server.journal.events import Event, Person, Status
from server.users.directory import Directory, Purpose


class Erased(Protocol):
    """Who was erased, and when: see server.journal.tombstones."""

    def erased_us(self, person: Person) -> int | None:
        """Until when the person's events are refused, microseconds since 1970; None: never erased."""
        ...

    def is_erased_event(self, event_hash: bytes) -> bool:
        """Whether an event with this id was erased lately."""
        ...


class Admission:
    """Lets in the events of people who consented to personalisation, unless they happened before the person was erased.

    An event that came without a time is taken as new, unless its event_id is that of one that was erased.
    """

    def __init__(self, directory: Directory, erased: Erased) -> None:
        self._directory = directory
        self._erased = erased

    def find(self, person: Person) -> int | None:
        return self._directory.find(person)

    def refusal(self, event: Event, event_hash: bytes) -> Status | None:
        """ERASED, NO_CONSENT, or None if the event may be kept."""
        erased_us = self._erased.erased_us(event.person)
        if erased_us is not None and (event.occurred_us <= erased_us or self._erased.is_erased_event(event_hash)):
            return Status.ERASED
        return None if self._directory.may_person(event.person, Purpose.PERSONALISATION) else Status.NO_CONSENT
