"""What people decide and what is said about them: durable, then in force."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import NamedTuple

from server.engine.engine import Engine
from server.journal.events import Person
from server.journal.people import Decided, LinkPeople, Pair, SetConsent, SetProfile, UnlinkPeople
from server.journal.tombstones import Tombstones
from server.journal.writer import JournalWriter
from server.releases.releases import Releases
from server.users.directory import Decision
from server.users.people import People
from server.users.profile import Profile
from server.users.refresher import Refresher


class Linked(NamedTuple):
    """A link that is in force."""

    created: bool
    members: list[int]  # everyone who is one person now, the root first


class PeopleChanges:
    """Changes what is known of people. Each future ends when the change is on disk and every later answer obeys it."""

    def __init__(
        self,
        journal: JournalWriter,
        people: People,
        refresher: Refresher,
        engine: Engine,
        releases: Releases,
        tombstones: Tombstones,
        clock_us: Callable[[], int],
    ) -> None:
        self._journal = journal
        self._people = people
        self._refresher = refresher
        self._engine = engine
        self._releases = releases
        self._tombstones = tombstones
        self._clock_us = clock_us

    def set_consent(self, person: Person, decisions: Sequence[Decision]) -> Future[None]:
        """The future fails with FailedPrecondition if a decision is from before the person was erased."""

        def publish(decided: Decided) -> None:
            self.outdated(self._people.decide(*decided))

        return self._journal.submit(SetConsent(person, decisions, self._clock_us(), publish, self._tombstones))

    def set_profile(self, person: Person, profile: Profile | None) -> Future[None]:
        """Replaces the profile; None removes it. The future fails with FailedPrecondition without consent."""
        content = profile.to_json() if profile is not None else None

        def publish(key: int) -> None:
            self._people.set_profile(person, key, profile)

        return self._journal.submit(SetProfile(person, content, self._clock_us(), self._people.directory, publish))

    def link(self, source: Person, target: Person) -> Future[Linked]:
        """The source belongs to the target. The future fails with FailedPrecondition if that cannot be."""

        def publish(pair: Pair | None) -> Linked:
            if pair is not None:
                self.outdated(self._people.link(pair.source, pair.target))
            key = self._people.directory.find(target)
            return Linked(pair is not None, self._people.directory.members(key) if key is not None else [])

        return self._journal.submit(LinkPeople(source, target, self._clock_us(), self._people.directory, publish))

    def unlink(self, source: Person, target: Person) -> Future[bool]:
        """Takes the link back; whether there was one."""

        def publish(pair: tuple[int, int] | None) -> bool:
            if pair is not None:
                self.outdated(self._people.unlink(*pair))
            return pair is not None

        return self._journal.submit(UnlinkPeople(source, target, self._people.directory, publish))

    def outdated(self, keys: Sequence[int]) -> None:
        """Drops the vectors under these keys, and has those computed anew that may be. For the thread that writes."""
        if not keys:
            return
        self._refresher.drop(keys)
        self._engine.call(lambda: self._releases.drop_people(keys))
        for key in keys:
            if self._people.directory.parent(key) is None and not self._people.is_erased(key):
                self._refresher.mark(key)
        self._engine.poke()
