"""A journal with its views, one write at a time, without a server; and what the views should say, as plainly as possible."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from server.catalogue.catalogue import Catalogue
from server.journal.database import JournalFile, open_journal, open_reader
from server.journal.erase import bring_up_to_date
from server.journal.events import Event, Outcome, Person, RecordEvents, Status
from server.journal.items import ItemContent, RemoveItems, UpsertItems, UpsertOutcome, load_items
from server.journal.people import LinkPeople, SetConsent, UnlinkPeople
from server.journal.tombstones import open_tombstones
from server.journal.writer import Transaction, Write
from server.releases.loading import item_places
from server.users.admission import Admission
from server.users.directory import Decision, Directory, Purpose
from server.users.history_loading import ItemPlaces
from server.users.people import People

TYPES = ("view", "cart")
T = TypeVar("T")


class NobodyErased:
    def erased_us(self, person: Person) -> int | None:
        return None

    def is_erased_event(self, event_hash: bytes) -> bool:
        return False


class Everyone:
    """Lets every event in; the journal itself knows who is known."""

    def find(self, person: Person) -> int | None:
        return None

    def refusal(self, event: Event, event_hash: bytes) -> Status | None:
        return None


class World:
    """A tenant's directory and the views over it."""

    def __init__(self, directory: Path, *, limit: int = 1000, capacity: int = 1_000_000, presumed: bool = False) -> None:
        self.file: JournalFile = open_journal(directory)
        self.tombstones = open_tombstones(directory)
        bring_up_to_date(self.file, self.tombstones)
        self._limit = limit
        self._capacity = capacity
        self._presumed = presumed
        self.catalogue = Catalogue()
        self.unreferenced: list[int] = []
        self.people = self.rebuilt()
        self.people.read_from(open_reader(self.file.path), self.catalogue.locate)

    def close(self) -> None:
        self.people.close()
        self.tombstones.close()
        self.file.close()

    def rebuilt(self) -> People:
        """The views, made from zero."""
        people = People(
            TYPES,
            Directory({Purpose.PERSONALISATION: self._presumed, Purpose.TRAINING: self._presumed}, self.tombstones.waiting),
            limit=self._limit,
            capacity=self._capacity,
            unreferenced=self.unreferenced.append,
        )
        places = self.places()
        people.load(self.file.connection, places, published=self.file.head)
        people.read_from(open_reader(self.file.path), places.locate)
        return people

    def places(self) -> ItemPlaces:
        return item_places(list(load_items(self.file.connection)))

    def write(self, write: Write[T]) -> T:
        transaction = Transaction(self.file)
        with self.file.connection:
            write.commit(transaction)
            transaction.execute("UPDATE meta SET value = ? WHERE key = 'head'", (transaction.head,))
        self.file.head = transaction.head
        return write.publish()

    def record(self, events: Sequence[Event]) -> list[Outcome]:
        admission = Admission(self.people.directory, self.tombstones)
        return self.write(RecordEvents(events, 0, admission, lambda new: self.people.add(new, self._ordinal)))

    def upsert(self, item_id: str) -> None:
        def publish(outcomes: Sequence[UpsertOutcome]) -> None:
            for outcome in outcomes:
                self.catalogue.put(outcome.stored)
                self.people.item_came_in(outcome.stored.content.item_id, outcome.stored.ordinal)

        self.write(UpsertItems([ItemContent(item_id)], publish))

    def remove(self, item_id: str) -> None:
        def publish(removed: Sequence[tuple[str, int]]) -> None:
            for name, position in removed:
                self.catalogue.remove(name, position)

        self.write(RemoveItems([item_id], publish))

    def decide(self, person: Person, purpose: Purpose, granted: bool, given_us: int) -> None:
        decision = Decision(purpose, granted, "test", given_us)
        self.write(SetConsent(person, [decision], 0, lambda decided: self.people.decide(*decided), self.tombstones))

    def link(self, source: Person, target: Person) -> bool:
        def publish(pair: Any) -> bool:
            if pair is not None:
                self.people.link(pair.source, pair.target)
            return pair is not None

        return self.write(LinkPeople(source, target, 0, self.people.directory, publish))

    def unlink(self, source: Person, target: Person) -> bool:
        def publish(pair: Any) -> bool:
            if pair is not None:
                self.people.unlink(*pair)
            return pair is not None

        return self.write(UnlinkPeople(source, target, self.people.directory, publish))

    def history(self, person: Person, people: People | None = None) -> list[tuple[str, str, int]]:
        """(item, type, time) of the events that count, oldest first."""
        view = people or self.people
        key = view.directory.find(person)
        if key is None:
            return []
        history = view.history(view.directory.root(key))
        ids = {ordinal: item_id for item_id, ordinal in self.places().ordinals.items()}
        columns = zip(history.ordinals.tolist(), history.types.tolist(), history.times_us.tolist(), strict=True)
        return [(ids[ordinal], TYPES[code], time_us) for ordinal, code, time_us in columns]

    def _ordinal(self, item_id: str) -> int:
        item = self.catalogue.get(item_id)
        return item.ordinal if item is not None else -1


@dataclass
class Model:
    """What a history is, said as plainly as possible."""

    limit: int
    presumed: bool
    events: list[tuple[Person, str, str, int]] = field(default_factory=list)  # in the order of arrival
    counted: set[int] = field(default_factory=set)  # places in `events`
    live: set[str] = field(default_factory=set)
    parent: dict[Person, Person] = field(default_factory=dict)
    decisions: dict[tuple[Person, Purpose], list[tuple[int, int, bool]]] = field(default_factory=dict)

    def record(self, person: Person, item_id: str, type_name: str, time_us: int) -> bool:
        """Whether it may be kept."""
        if not self.may(person):
            return False
        if item_id in self.live and type_name in TYPES:
            self.counted.add(len(self.events))
        self.events.append((person, item_id, type_name, time_us))
        return True

    def upsert(self, item_id: str) -> None:
        self.live.add(item_id)
        for place, (_, name, type_name, _) in enumerate(self.events):
            if name == item_id and type_name in TYPES:
                self.counted.add(place)

    def remove(self, item_id: str) -> None:
        self.live.discard(item_id)

    def decide(self, person: Person, purpose: Purpose, granted: bool, given_us: int) -> None:
        trail = self.decisions.setdefault((person, purpose), [])
        if all((given, what) != (given_us, granted) for given, _, what in trail):
            trail.append((given_us, len(trail), granted))

    def may(self, person: Person, purpose: Purpose = Purpose.PERSONALISATION) -> bool:
        said = [max(trail)[2] for one in self.way(person) if (trail := self.decisions.get((one, purpose)))]
        return all(said) if said else self.presumed

    def way(self, person: Person) -> list[Person]:
        way = [person]
        while way[-1] in self.parent:
            way.append(self.parent[way[-1]])
        return way

    def can_link(self, source: Person, target: Person) -> bool:
        return source not in self.parent and source not in self.way(target)

    def history(self, person: Person) -> list[tuple[str, str, int]]:
        root = self.way(person)[-1]
        mine = [
            (time_us, place, item_id, type_name)
            for place, (who, item_id, type_name, time_us) in enumerate(self.events)
            if place in self.counted and self.way(who)[-1] == root and self.may(who)
        ]
        return [(item_id, type_name, time_us) for time_us, _, item_id, type_name in sorted(mine)][-self.limit :]
