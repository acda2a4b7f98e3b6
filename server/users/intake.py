"""Events in: to the journal, then to the histories, then to the refresher."""

import time
from collections.abc import Sequence
from concurrent.futures import Future

from server.catalogue.catalogue import Catalogue
from server.engine.engine import Engine
from server.journal.events import Event, Outcome, Person, RecordEvents, Status, StoredEvent
from server.journal.writer import JournalWriter
from server.users.admission import Admission
from server.users.people import People
from server.users.refresher import Refresher

_COMPANY_SECONDS = 0.01
"""How long a person's vector waits for others to be computed with it, unless an answer needs it before.

By itself each takes the engine's thread, and the processor's cache, from the answers that are under way.
"""


class EventIntake:
    """Makes events durable and visible, in this order."""

    def __init__(
        self,
        journal: JournalWriter,
        people: People,
        admission: Admission,
        catalogue: Catalogue,
        refresher: Refresher,
        engine: Engine,
    ) -> None:
        self._journal = journal
        self._people = people
        self._admission = admission
        self._catalogue = catalogue
        self._refresher = refresher
        self._engine = engine

    def record(self, events: Sequence[Event], received_us: int) -> Future[list[Outcome]]:
        """The outcomes, one for each event; the future ends when all of them are on disk and in the histories."""
        return self._journal.submit(RecordEvents(events, received_us, self._admission, self._publish))

    def _publish(self, events: Sequence[tuple[StoredEvent, Person]]) -> list[Status]:
        committed = time.monotonic()
        statuses = self._people.add(events, self._ordinal)
        for (event, _), status in zip(events, statuses, strict=True):
            if status is Status.ACCEPTED:
                self._refresher.mark(self._people.directory.root(event.person_key), committed)
        if Status.ACCEPTED in statuses:
            self._engine.poke(after=_COMPANY_SECONDS)
        return statuses

    def _ordinal(self, item_id: str) -> int:
        item = self._catalogue.get(item_id)
        return item.ordinal if item is not None else -1


def now_us() -> int:
    """The clock: microseconds since 1970, UTC."""
    return time.time_ns() // 1000
