"""What people decide and what is said about them, in the journal. Each of these writes stands alone in its transaction."""

import logging
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

import apsw

from server.errors import FailedPrecondition
from server.journal.events import USER, Person, person_key
from server.journal.removal import is_clean, note_clean
from server.journal.tombstones import Tombstones
from server.journal.writer import Transaction
from server.users.directory import Decision, Directory, Purpose

_log = logging.getLogger(__name__)
T = TypeVar("T")
LINKED_MAX = 1_000
"""Ids of one person: a history that is not in memory is read id by id, and a chain is walked for every request."""


class Decided(NamedTuple):
    """A subject and the decisions that count now."""

    person: Person
    key: int
    decisions: list[tuple[Purpose, bool]]


class Pair(NamedTuple):
    """Two subjects with their keys."""

    source: tuple[Person, int]
    target: tuple[Person, int]


class SetConsent(Generic[T]):
    """Adds decisions to a subject's trail, each once. Of those about one purpose the one given last counts; ties: the last.

    Refused if one of them is from before the subject was erased. A no that counts is among the tombstones before the journal
    has it, and until it has a later yes, so that neither a crash nor a restore can undo it.
    """

    alone = True

    def __init__(
        self,
        person: Person,
        decisions: Sequence[Decision],
        received_us: int,
        publish: Callable[[Decided], T],
        tombstones: Tombstones,
    ) -> None:
        self.rows = len(decisions)
        self._person = person
        self._decisions = decisions
        self._received_us = received_us
        self._publish = publish
        self._tombstones = tombstones
        self._decided: Decided | None = None

    def commit(self, transaction: Transaction) -> None:
        erased_us = self._tombstones.erased_us(self._person)
        if erased_us is not None and any(decision.given_us <= erased_us for decision in self._decisions):
            raise FailedPrecondition(f"{named(self._person)} was erased after this decision; ask them again")
        key = person_key(transaction, self._person)
        for purpose, granted, source, given_us, is_now in self._decisions:
            if is_now:
                given_us = max(given_us, _latest_us(transaction, key, purpose) + 1)
            same = transaction.execute(
                "SELECT 1 FROM consents WHERE person_key = ? AND purpose = ? AND granted = ? AND source = ? AND given_us = ?",
                (key, int(purpose), int(granted), source, given_us),
            )
            if same.fetchone() is None:
                transaction.execute(
                    "INSERT INTO consents VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (key, transaction.next_position(), int(purpose), int(granted), source, given_us, self._received_us),
                )
        rows = transaction.execute(
            "SELECT purpose, granted, given_us FROM consents WHERE person_key = ? ORDER BY given_us, position", (key,)
        )
        counting = {Purpose(purpose): (bool(granted), int(us)) for purpose, granted, us in rows}  # the last of each purpose
        if refused := {purpose: us for purpose, (granted, us) in counting.items() if not granted}:
            self._withdraw(transaction, refused)
        self._decided = Decided(self._person, key, [(purpose, granted) for purpose, (granted, _) in counting.items()])

    def publish(self) -> T:
        assert self._decided is not None
        granted = [purpose for purpose, granted in self._decided.decisions if granted]
        try:
            self._tombstones.forget_withdrawals(self._person, granted)
        except apsw.Error:  # the yes is on disk, and later than the no that stays
            _log.exception("a withdrawal of consent that is over could not be forgotten; only an older backup would show it")
        return self._publish(self._decided)

    def _withdraw(self, transaction: Transaction, given_us: dict[Purpose, int]) -> None:
        was_clean = is_clean(transaction.connection, self._tombstones)
        self._tombstones.withdraw(self._person, given_us)
        if was_clean:  # otherwise an erasure or a withdrawal was cut short, and the next start ends it
            note_clean(transaction.connection, self._tombstones)


class SetProfile(Generic[T]):
    """Replaces a subject's profile, given as JSON; None removes it. Refused without consent to personalisation.

    To remove that of a subject of whom nothing is known writes nothing of them.
    """

    alone = True
    rows = 1

    def __init__(
        self, person: Person, profile: str | None, received_us: int, directory: Directory, publish: Callable[[int], T]
    ) -> None:
        """publish: gets the subject's key."""
        self._person = person
        self._profile = profile
        self._received_us = received_us
        self._directory = directory
        self._publish = publish
        self._key: int | None = None

    def commit(self, transaction: Transaction) -> None:
        if self._profile is not None and not self._directory.may_person(self._person, Purpose.PERSONALISATION):
            why = self._directory.why_not(self._person, Purpose.PERSONALISATION)
            raise FailedPrecondition(f"{named(self._person)} {why}")
        self._key = self._directory.find(self._person) if self._profile is None else person_key(transaction, self._person)
        if self._key is None:
            return
        position = transaction.next_position()
        if self._profile is None:
            transaction.execute("DELETE FROM profiles WHERE person_key = ?", (self._key,))
        else:
            transaction.execute(
                "INSERT OR REPLACE INTO profiles VALUES (?, ?, ?, ?)", (self._key, position, self._profile, self._received_us)
            )

    def publish(self) -> T | None:
        return self._publish(self._key) if self._key is not None else None


class LinkPeople(Generic[T]):
    """Links a source to a target, unless it is linked so already; refuses a second target, a circle and one id too many."""

    alone = True
    rows = 1

    def __init__(
        self, source: Person, target: Person, received_us: int, directory: Directory, publish: Callable[[Pair | None], T]
    ) -> None:
        """publish: gets None if the link was there."""
        self._source = source
        self._target = target
        self._received_us = received_us
        self._directory = directory
        self._publish = publish
        self._linked: Pair | None = None

    def commit(self, transaction: Transaction) -> None:
        self._linked = None
        source, target = person_key(transaction, self._source), person_key(transaction, self._target)
        parent = self._directory.parent(source)
        if parent == target:
            return
        if parent is not None:
            other = transaction.execute("SELECT kind, subject_id FROM people WHERE person_key = ?", (parent,)).fetchone()
            known = named(Person(*other)) if other is not None else "another id"
            raise FailedPrecondition(f"source: {named(self._source)} is linked to {known} already; unlink it from there first")
        if self._directory.root(target) == source:
            raise FailedPrecondition(
                f"target: {named(self._target)} belongs to {named(self._source)}; unlink it from there first"
            )
        count = len(self._directory.members(source)) + len(self._directory.members(target))
        if count > LINKED_MAX:
            raise FailedPrecondition(
                f"target: {named(self._target)} would be a person of {count} ids with {named(self._source)}; at most "
                f"{LINKED_MAX} can be one, so unlink some first"
            )
        transaction.execute(
            "INSERT INTO links VALUES (?, ?, ?, ?)", (source, target, transaction.next_position(), self._received_us)
        )
        self._linked = Pair((self._source, source), (self._target, target))

    def publish(self) -> T:
        return self._publish(self._linked)


class UnlinkPeople(Generic[T]):
    """Takes a link back, if it is there."""

    alone = True
    rows = 1

    def __init__(
        self, source: Person, target: Person, directory: Directory, publish: Callable[[tuple[int, int] | None], T]
    ) -> None:
        """publish: gets the keys of both; None if there was no such link."""
        self._source = source
        self._target = target
        self._directory = directory
        self._publish = publish
        self._unlinked: tuple[int, int] | None = None

    def commit(self, transaction: Transaction) -> None:
        self._unlinked = None
        source, target = self._directory.find(self._source), self._directory.find(self._target)
        if source is None or target is None or self._directory.parent(source) != target:
            return
        transaction.next_position()
        transaction.execute("DELETE FROM links WHERE source_key = ?", (source,))
        self._unlinked = source, target

    def publish(self) -> T:
        return self._publish(self._unlinked)


def _latest_us(transaction: Transaction, key: int, purpose: Purpose) -> int:
    """When the last decision about a purpose was given; 0: never."""
    latest = transaction.execute(
        "SELECT coalesce(max(given_us), 0) FROM consents WHERE person_key = ? AND purpose = ?", (key, int(purpose))
    ).fetchone()
    return int(latest[0]) if latest is not None else 0


def named(person: Person) -> str:
    """The subject, for a message."""
    return f"{'user' if person.kind == USER else 'visitor'} {person.subject_id!r}"
