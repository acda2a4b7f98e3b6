"""A producer of events, straight into a JournalWriter, that remembers what it sent and what was acknowledged."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from random import Random

import apsw

from server.errors import StartupError
from server.journal.database import JournalFile, open_journal
from server.journal.events import USER, VISITOR, Event, Outcome, Person, RecordEvents, Status, StoredEvent, event_hash
from server.journal.writer import JournalWriter

PATIENCE_S = 30.0


class Everyone:
    """Everybody may be recorded. Knows the people of a journal, as the server's directory does."""

    def __init__(self, file: JournalFile) -> None:
        rows = file.connection.execute("SELECT kind, subject_id, person_key FROM people")
        self.keys = {Person(kind, subject_id): key for kind, subject_id, key in rows}

    def find(self, person: Person) -> int | None:
        return self.keys.get(person)

    def refusal(self, event: Event, event_hash: bytes) -> Status | None:
        return None

    def publish(self, new: Sequence[tuple[StoredEvent, Person]]) -> list[Status]:
        for stored, person in new:
            self.keys.setdefault(person, stored.person_key)
        return [Status.ACCEPTED] * len(new)


class Producer:
    """`sent` is every event ever sent, by id; `acknowledged` the positions of those that were acknowledged."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.sent: dict[str, Event] = {}
        self.acknowledged: dict[str, int] = {}

    def batch(self, size: int | None = None) -> list[Event]:
        """New events of a few people, and now and then a repeat."""
        events = [self._event() for _ in range(size or self.random.randint(1, 20))]
        if self.random.random() < 0.3:
            events.append(self.random.choice(list(self.sent.values())))
        return events

    def submit(
        self, writer: JournalWriter, people: Everyone, events: Sequence[Event], received_us: int = 0
    ) -> "Future[list[Outcome]]":
        """Sends events; what comes back is noted before anyone who waits for the future goes on."""
        future: Future[list[Outcome]] = writer.submit(RecordEvents(events, received_us, people, people.publish))
        future.add_done_callback(lambda done: done.exception() or self._note(events, done.result()))
        return future

    def _note(self, events: Sequence[Event], outcomes: Sequence[Outcome]) -> None:
        for event, outcome in zip(events, outcomes, strict=True):
            assert self.acknowledged.setdefault(event.event_id, outcome.position) == outcome.position

    def _event(self) -> Event:
        person = Person(self.random.choice((USER, VISITOR)), f"person-{self.random.randrange(6)}")
        number = len(self.sent)
        event = Event(f"event-{number}-{self.random.getrandbits(64):x}", person, f"item-{number % 50}", "view", 1_000 * number)
        self.sent[event.event_id] = event
        return event


@contextmanager
def journal(directory: Path, vfs: str | None = None) -> Iterator[tuple[JournalFile, JournalWriter, Everyone]]:
    """A journal with its writer running."""
    file = open_journal(directory, vfs=vfs)
    writer = JournalWriter(file)
    writer.start()
    try:
        yield file, writer, Everyone(file)
    finally:
        writer.close()
        file.close()


def problems(directory: Path, sent: dict[str, Event], acknowledged: dict[str, int]) -> list[str]:
    """Opens a journal, sends everything again, and says what is lost, doubled or damaged."""
    try:
        return _problems(directory, sent, acknowledged)
    except (StartupError, apsw.Error) as error:
        return [f"damaged: {error}"]


def _problems(directory: Path, sent: dict[str, Event], acknowledged: dict[str, int]) -> list[str]:
    found: list[str] = []
    with journal(directory) as (file, writer, people):
        whole = file.connection.execute("PRAGMA integrity_check").fetchall()
        if whole != [("ok",)]:
            found.append(f"damaged: {whole[:3]}")
        found += _missing(file, sent, acknowledged)
        outcomes = writer.submit(RecordEvents(list(sent.values()), 0, people, people.publish)).result(PATIENCE_S)
        for event_id, outcome in zip(sent, outcomes, strict=True):
            known = acknowledged.get(event_id)
            if known is not None and outcome != Outcome(Status.DUPLICATE, known):
                found.append(f"{event_id} was acknowledged at {known} and is {outcome} now")
            elif outcome.status not in (Status.DUPLICATE, Status.ACCEPTED):
                found.append(f"{event_id} is {outcome}")
        found += _doubled(file, sent)
    return found


def _missing(file: JournalFile, sent: dict[str, Event], acknowledged: dict[str, int]) -> list[str]:
    sql = (
        "SELECT kind, subject_id, item_id, type, occurred_us, digest, position FROM event_ids"
        " JOIN events USING (person_key, position) JOIN people USING (person_key) WHERE event_ids.event_hash = ?"
    )
    found = []
    for event_id, position in acknowledged.items():
        event = sent[event_id]
        expected = (*event.person, event.item_id, event.type, event.occurred_us, event.digest(), position)
        rows = file.connection.execute(sql, (event_hash(file.event_key, event_id),)).fetchall()
        if rows != [expected]:
            found.append(f"{event_id} was acknowledged at {position} and is {rows} on disk")
    [(largest,)] = file.connection.execute("SELECT coalesce(max(position), 0) FROM events").fetchall()
    if largest > file.head:
        found.append(f"position {largest} is beyond the head, {file.head}")
    return found


def _doubled(file: JournalFile, sent: dict[str, Event]) -> list[str]:
    counts = file.connection.execute(
        "SELECT count(*), count(DISTINCT position), count(DISTINCT event_hash), (SELECT count(*) FROM event_ids) FROM events"
    ).fetchall()
    return [] if counts == [(len(sent),) * 4] else [f"{len(sent)} events were sent, and there are {counts}"]
