"""Every kind of write, at random, into a journal, with the states that the journal went through."""

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from random import Random
from typing import Any

import apsw

from server.errors import FailedPrecondition, StartupError
from server.journal.database import open_journal
from server.journal.erase import ErasePeople, bring_up_to_date
from server.journal.events import Event, Outcome, Person, RecordEvents, Status, StoredEvent, event_hash
from server.journal.items import ItemContent, RemoveItems, SetAvailability, UpsertItems
from server.journal.people import LinkPeople, SetConsent, SetProfile, UnlinkPeople
from server.journal.tombstones import open_tombstones
from server.journal.verify import verify
from server.journal.writer import JournalWriter, Transaction, Write
from server.users.admission import Admission
from server.users.directory import Decision, Directory, Purpose
from tests.server.producer import PATIENCE_S

TABLES = ("people", "events", "event_ids", "links", "consents", "profiles", "items")
DAY_US = 86_400_000_000


class Sent:
    """What was sent over all lives of a journal, and what was acknowledged: positions by event_id."""

    def __init__(self, key_file: Path) -> None:
        """key_file: the tombstones' key."""
        self.key_file = key_file
        self.events: dict[str, Event] = {}
        self.acknowledged: dict[str, int] = {}
        self.erased: set[str] = set()  # event_ids of people whose erasure was acknowledged
        self.now_us = 1_800_000_000_000_000

    def snapshot(self) -> "Sent":
        """What had been sent and acknowledged by now."""
        taken = Sent(self.key_file)
        taken.events, taken.acknowledged, taken.erased = dict(self.events), dict(self.acknowledged), set(self.erased)
        taken.now_us = self.now_us
        return taken


class Life:
    """One life of a journal, from opening to closing. `states` are digests of the rows after each commit, the first one now."""

    def __init__(self, directory: Path, sent: Sent, random: Random) -> None:
        self.sent = sent
        self.kinds: Counter[str] = Counter()
        self._random = random
        self._file = open_journal(directory)
        self.event_key = self._file.event_key
        self._tombstones = open_tombstones(directory, sent.key_file)
        bring_up_to_date(self._file, self._tombstones)
        self.connection = self._file.connection
        self.states = [digest(self.connection)]
        self._directory = Directory({Purpose.PERSONALISATION: True}, self._tombstones.waiting)
        self._directory.load(self.connection)
        self._names = {
            key: Person(*row) for key, *row in self.connection.execute("SELECT person_key, kind, subject_id FROM people")
        }
        self._admission = Admission(self._directory, self._tombstones)
        self.writer = JournalWriter(self._file)
        self.writer.start()

    def close(self) -> None:
        self.writer.close()
        self._tombstones.close()
        self._file.close()

    def group(self) -> None:
        """Some writes at once. What is refused is refused; all else is acknowledged."""
        makers = (self._events, self._events, self._events, self._consent, self._profile, self._link, self._unlink, self._items)
        futures = [self._submit(self._random.choice(makers)) for _ in range(self._random.randint(1, 4))]
        if self._random.random() < 0.05:
            futures.append(self._submit(self._erase))
        for future in futures:
            with suppress(FailedPrecondition):
                future.result(PATIENCE_S)
        # An erasure leaves emptying the log to the server's background work.
        self.connection.wal_autocheckpoint(25)

    def is_erased(self, event: Event) -> bool:
        """Whether the event is of somebody who has been erased since it happened."""
        erased_us = self._tombstones.erased_us(event.person)
        return erased_us is not None and event.occurred_us <= erased_us

    def again(self, events: Sequence[Event]) -> list[Outcome]:
        """Sends events again."""
        return self.writer.submit(RecordEvents(events, self.sent.now_us, self._admission, self._recorded)).result(PATIENCE_S)

    def _submit(self, make: Callable[[], tuple[Write[Any], Callable[[Any], None]]]) -> Future[Any]:
        self.sent.now_us += 1_000
        write, note = make()
        future = self.writer.submit(_Observed(write, self, note))
        self.kinds[type(write).__name__] += 1
        return future

    def _events(self) -> tuple[Write[Any], Callable[[Any], None]]:
        events = [self._event() for _ in range(self._random.randint(1, 20))]
        if self._random.random() < 0.3:
            events.append(self._random.choice(list(self.sent.events.values())))

        def note(outcomes: list[Outcome]) -> None:
            for event, outcome in zip(events, outcomes, strict=True):
                if outcome.status in (Status.ACCEPTED, Status.DUPLICATE):
                    known = self.sent.acknowledged.setdefault(event.event_id, outcome.position)
                    assert known == outcome.position

        return RecordEvents(events, self.sent.now_us, self._admission, self._recorded), note

    def _event(self) -> Event:
        number = len(self.sent.events)
        event_id = f"event-{number}-{self._random.getrandbits(64):x}"
        event = Event(event_id, self._person(), f"item-{self._random.randrange(30)}", "view", self.sent.now_us)
        self.sent.events[event_id] = event
        return event

    def _person(self) -> Person:
        return Person(self._random.randrange(2), f"person-{self._random.randrange(12)}")

    def _recorded(self, new: Sequence[tuple[StoredEvent, Person]]) -> list[Status]:
        for stored, person in new:
            self._know(person, stored.person_key)
        return [Status.ACCEPTED] * len(new)

    def _consent(self) -> tuple[Write[Any], Callable[[Any], None]]:
        granted = self._random.random() < 0.8
        decision = Decision(self._random.choice(list(Purpose)), granted, "soak", self.sent.now_us)

        def publish(decided: Any) -> None:
            self._know(decided.person, decided.key)
            for purpose, what in decided.decisions:
                self._directory.decide(decided.key, purpose, what)

        return SetConsent(self._person(), [decision], self.sent.now_us, publish, self._tombstones), _nothing

    def _profile(self) -> tuple[Write[Any], Callable[[Any], None]]:
        person = self._person()
        profile = None if self._random.random() < 0.2 else f'{{"n": {self._random.randrange(10**6)}}}'
        write = SetProfile(person, profile, self.sent.now_us, self._directory, lambda key: self._know(person, key))
        return write, _nothing

    def _link(self) -> tuple[Write[Any], Callable[[Any], None]]:
        def publish(pair: Any) -> None:
            if pair is not None:
                for person, key in pair:
                    self._know(person, key)
                self._directory.link(pair.source[1], pair.target[1])

        return LinkPeople(self._person(), self._person(), self.sent.now_us, self._directory, publish), _nothing

    def _unlink(self) -> tuple[Write[Any], Callable[[Any], None]]:
        parents = [(key, self._directory.parent(key)) for key in list(self._names)]
        linked = [(self._names[key], self._names[parent]) for key, parent in parents if parent is not None]
        source, target = self._random.choice(linked) if linked else (self._person(), self._person())

        def publish(pair: Any) -> None:
            if pair is not None:
                self._directory.unlink(pair[0])

        return UnlinkPeople(source, target, self._directory, publish), _nothing

    def _know(self, person: Person, key: int) -> None:
        self._directory.add(person, key)
        self._names[key] = person

    def _items(self) -> tuple[Write[Any], Callable[[Any], None]]:
        item_id, kind = f"item-{self._random.randrange(30)}", self._random.randrange(3)
        if kind == 0:
            return RemoveItems([item_id], lambda removed: None), _nothing
        if kind == 1:
            return SetAvailability([(item_id, self._random.random() < 0.5)], lambda changes: None), _nothing
        text = "text " * self._random.randrange(400)
        return UpsertItems(
            [ItemContent(item_id, text=text, vector=self._random.randbytes(512))], lambda outcomes: None
        ), _nothing

    def _erase(self) -> tuple[Write[Any], Callable[[Any], None]]:
        def publish(erased: Any, events: Any) -> Any:
            self._directory.erase(zip(erased.people, erased.keys, strict=False))
            return erased

        def note(erased: Any) -> None:
            gone = {event_id for event_id, event in self.sent.events.items() if event.person in erased.people}
            self.sent.erased |= gone & self.sent.acknowledged.keys()
            for event_id in gone:
                self.sent.acknowledged.pop(event_id, None)

        write = ErasePeople(
            self._person(),
            self._file,
            self._tombstones,
            self._directory,
            clock_us=lambda: self.sent.now_us,
            retry_us=30 * DAY_US,
            publish=publish,
        )
        return write, note


class _Observed:
    """A write, after whose commit the journal's state is noted, on the thread that writes."""

    def __init__(self, write: Write[Any], life: Life, note: Callable[[Any], None]) -> None:
        self.rows, self.alone = write.rows, write.alone
        self._write, self._life, self._note = write, life, note

    def commit(self, transaction: Transaction) -> None:
        self._write.commit(transaction)

    def publish(self) -> Any:
        state = digest(self._life.connection)
        if state != self._life.states[-1]:
            self._life.states.append(state)
        done = self._write.publish()
        self._note(done)
        return done


def digest(connection: apsw.Connection) -> bytes:
    """Of every row of every table but meta and the log of exports.

    Of a decision what was decided and when: the next start writes a withdrawal that was cut short without more than that.
    """
    hashed = blake2b(digest_size=16)
    for table in TABLES:
        columns = "person_key, purpose, granted, given_us" if table == "consents" else "*"
        for row in connection.execute(f"SELECT {columns} FROM {table}"):
            hashed.update(repr(row).encode())
    return hashed.digest()


def problems(directory: Path, sent: Sent, allowed: Sequence[bytes]) -> list[str]:
    """Opens what a power loss left, and says what is lost, doubled, damaged or back.

    allowed: digests of the states that it may be in: the last one acknowledged, and the one that was being written.
    """
    try:
        life = Life(directory, sent, Random(0))
    except (StartupError, apsw.Error) as error:
        return [f"damaged: {error}"]
    try:
        found = [] if life.states[0] in allowed else ["lost or doubled: the rows are of no state that it may be in"]
        found += _lost(life, sent)
        found += _repeated(life, sent)
    finally:
        life.close()
    return found + [f"damaged: {problem}" for problem in verify(directory / "journal.sqlite").problems]


def _lost(life: Life, sent: Sent) -> list[str]:
    """Acknowledged events that are not there as they were sent, unless their person's erasure had begun."""
    found = []
    for event_id, position in sent.acknowledged.items():
        event = sent.events[event_id]
        rows = life.connection.execute(
            "SELECT kind, subject_id, item_id, type, occurred_us, digest, position FROM event_ids"
            " JOIN events USING (person_key, position) JOIN people USING (person_key) WHERE event_ids.event_hash = ?",
            (event_hash(life.event_key, event_id),),
        ).fetchall()
        content = (*event.person, event.item_id, event.type, event.occurred_us, event.digest())
        if rows != [(*content, position)] and not life.is_erased(event):
            found.append(f"lost: {event_id} of {position} is {rows}")
    return found


def _repeated(life: Life, sent: Sent) -> list[str]:
    """A producer repeats everything: what was acknowledged is known, at its place, and what was erased is refused."""
    repeated = [*sent.acknowledged, *sorted(sent.erased)]
    outcomes = life.again([sent.events[event_id] for event_id in repeated])
    found = []
    for event_id, outcome in zip(repeated, outcomes, strict=True):
        if event_id in sent.erased or life.is_erased(sent.events[event_id]):
            expected = Outcome(Status.ERASED, 0)
        else:
            expected = Outcome(Status.DUPLICATE, sent.acknowledged[event_id])
        if outcome != expected:
            found.append(f"doubled or back: {event_id} is {outcome}, not {expected}")
    return found


def _nothing(done: Any) -> None:
    pass
