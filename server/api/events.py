"""EventService."""

from collections.abc import Callable

from towerbridge.v1 import event_pb2, event_pb2_grpc

from server.api.status import row_error
from server.api.wire import Context, deadline_of
from server.config import Config
from server.errors import AlreadyExists, InvalidField
from server.fields import ROWS_MAX, check_count, check_event_time, check_id, check_type
from server.journal.events import USER, VISITOR, Event, Outcome, Person, Status
from server.journal.revision import to_token
from server.journal.writer import JournalWriter
from server.users.intake import EventIntake
from server.waiting import result_of

_STATUS = {
    Status.ACCEPTED: event_pb2.EVENT_STATUS_ACCEPTED,
    Status.DUPLICATE: event_pb2.EVENT_STATUS_DUPLICATE,
    Status.UNKNOWN_ITEM: event_pb2.EVENT_STATUS_ACCEPTED_UNKNOWN_ITEM,
    Status.UNKNOWN_TYPE: event_pb2.EVENT_STATUS_ACCEPTED_UNKNOWN_TYPE,
}


class EventServicer(event_pb2_grpc.EventServiceServicer):
    def __init__(self, intake: EventIntake, journal: JournalWriter, config: Config, clock_us: Callable[[], int]) -> None:
        self._intake = intake
        self._journal = journal
        self._max_age_days = config.journal.max_event_age_days
        self._default_deadline_ms = config.listen.default_deadline_ms
        self._clock_us = clock_us

    async def RecordEvents(self, request: event_pb2.RecordEventsRequest, context: Context) -> event_pb2.RecordEventsResponse:
        check_count(len(request.events), "events", ROWS_MAX, minimum=1)
        deadline = deadline_of(context, self._default_deadline_ms)
        now_us = self._clock_us()
        results: list[event_pb2.EventResult | None] = []
        events = []
        for place, message in enumerate(request.events):
            try:
                events.append(self._event(message, now_us))
                results.append(None)
            except InvalidField as error:
                results.append(_rejected(error.under(f"events[{place}]")))
        outcomes = iter(await self._record(events, now_us, deadline))
        filled = [
            result or self._result(next(outcomes), message.event_id, place)
            for place, (result, message) in enumerate(zip(results, request.events, strict=True))
        ]
        revision = to_token(self._journal.epoch, self._journal.revision)
        return event_pb2.RecordEventsResponse(results=filled, revision=revision)

    async def _record(self, events: list[Event], now_us: int, deadline: float) -> list[Outcome]:
        if not events:
            return []
        late = "the events were not confirmed in time; repeat the call with the same event_ids"
        return await result_of(self._intake.record(events, now_us), deadline, late=late)

    def _event(self, message: event_pb2.Event, now_us: int) -> Event:
        event_id = check_id(message.event_id, "event_id")
        actor = message.WhichOneof("actor")
        if actor is None:
            raise InvalidField("actor", "set user_id or visitor_id")
        person = Person(USER if actor == "user_id" else VISITOR, check_id(getattr(message, actor), actor))
        item_id = check_id(message.item_id, "item_id")
        type_name = check_type(message.type, "type")
        if not message.HasField("occurred_at"):
            return Event(event_id, person, item_id, type_name, now_us, occurred_given=False)
        occurred_us = check_event_time(message.occurred_at, "occurred_at", now_us=now_us, max_age_days=self._max_age_days)
        return Event(event_id, person, item_id, type_name, occurred_us)

    def _result(self, outcome: Outcome, event_id: str, place: int) -> event_pb2.EventResult:
        if outcome.status is Status.CLASH:
            field = f"events[{place}].event_id"
            error = AlreadyExists(f"{event_id!r} is taken by an event with other content; give each event an id of its own")
            return event_pb2.EventResult(status=event_pb2.EVENT_STATUS_REJECTED, error=row_error(error, field))
        return event_pb2.EventResult(status=_STATUS[outcome.status], revision=to_token(self._journal.epoch, outcome.position))


def _rejected(error: InvalidField) -> event_pb2.EventResult:
    return event_pb2.EventResult(status=event_pb2.EVENT_STATUS_REJECTED, error=row_error(error))
