"""EventService."""

from collections import Counter
from collections.abc import Callable

from towerbridge.v1 import event_pb2, event_pb2_grpc

from server.api.event_rows import EventRows
from server.api.event_stream import EventCollector, EventStream
from server.api.requests import Requests
from server.api.wire import Context, deadline_of
from server.config import Config
from server.fields import ROWS_MAX, check_count
from server.journal.events import Event, Outcome, Status
from server.journal.revision import to_token
from server.journal.writer import JournalWriter
from server.users.directory import Directory
from server.users.intake import EventIntake
from server.waiting import result_of


class EventServicer(event_pb2_grpc.EventServiceServicer):
    def __init__(
        self,
        intake: EventIntake,
        journal: JournalWriter,
        config: Config,
        clock_us: Callable[[], int],
        directory: Directory,
        counts: Counter[Status] | None = None,
    ) -> None:
        """counts: of events by what became of them."""
        self._intake = intake
        self._journal = journal
        self._default_deadline_ms = config.listen.default_deadline_ms
        self._clock_us = clock_us
        self._rows = EventRows(journal.epoch, config.journal.max_event_age_days, directory, counts)
        self._collector = EventCollector(intake.record, clock_us)

    async def RecordEvents(self, request: event_pb2.RecordEventsRequest, context: Context) -> event_pb2.RecordEventsResponse:
        check_count(len(request.events), "events", ROWS_MAX, minimum=1)
        deadline = deadline_of(context, self._default_deadline_ms)
        now_us = self._clock_us()
        events, refused = self._rows.decode(request.events, now_us)
        outcomes = await self._record(events, now_us, deadline)
        results = self._rows.encode(refused, events, outcomes)
        return event_pb2.RecordEventsResponse(results=results, revision=self._revision())

    async def StreamEvents(self, request_iterator: Requests, context: Context) -> None:  # type: ignore[override]
        await EventStream(self._rows, self._collector, self._clock_us, self._revision).run(request_iterator, context)

    async def _record(self, events: list[Event], now_us: int, deadline: float) -> list[Outcome]:
        if not events:
            return []
        late = "the events were not confirmed in time; repeat the call with the same event_ids"
        return await result_of(self._intake.record(events, now_us), deadline, late=late)

    def _revision(self) -> str:
        return to_token(self._journal.epoch, self._journal.revision)
