"""The journal alone: JournalWriter and RecordEvents, without gRPC and without views of people."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path

from towerbridge import v1

from bench.event_load import Clock
from server.journal.database import JournalFile, open_journal
from server.journal.events import USER, Event, Person, RecordEvents, Status, StoredEvent
from server.journal.writer import JournalWriter


class _Everyone:
    """Everybody may be recorded. Knows the people of the journal, as the server does."""

    def __init__(self, file: JournalFile) -> None:
        rows = file.connection.execute("SELECT kind, subject_id, person_key FROM people")
        self._keys = {Person(kind, subject_id): key for kind, subject_id, key in rows}

    def find(self, person: Person) -> int | None:
        return self._keys.get(person)

    def refusal(self, event: Event, event_hash: bytes) -> Status | None:
        return None

    def publish(self, new: Sequence[tuple[StoredEvent, Person]]) -> list[Status]:
        for stored, person in new:
            self._keys.setdefault(person, stored.person_key)
        return [Status.ACCEPTED] * len(new)


def journal_rate(directory: Path, batches: Sequence[v1.RecordEventsRequest], seconds: float, writers: int) -> Clock:
    """Writes the batches from `writers` threads, each waiting for its batch to be on disk."""
    now_us = time.time_ns() // 1000
    ready = [[_event(event, now_us) for event in batch.events] for batch in batches]
    file = open_journal(directory)
    writer, people, clock = JournalWriter(file), _Everyone(file), Clock(seconds)
    writer.start()
    remaining, lock = iter(ready), threading.Lock()

    def work() -> None:
        while True:
            with lock:
                events = next(remaining, None)
            if events is None:
                return
            outcomes = writer.submit(RecordEvents(events, now_us, people, people.publish)).result()
            if not clock.add(len(outcomes)):
                return

    threads = [threading.Thread(target=work) for _ in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close()
    file.close()
    return clock


def _event(message: v1.Event, now_us: int) -> Event:
    return Event(message.event_id, Person(USER, message.user_id), message.item_id, message.type, now_us, occurred_given=False)
