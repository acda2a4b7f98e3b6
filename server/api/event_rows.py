"""Events and their results, between the wire and the journal."""

from __future__ import annotations  # an enum's values have a type in its stubs only

from collections import Counter
from collections.abc import Sequence

from towerbridge.v1 import event_pb2

from server.api.status import row_error
from server.errors import AlreadyExists, FailedPrecondition, InvalidField, ServiceError
from server.fields import check_event_time, check_id, check_type
from server.journal.events import USER, VISITOR, Event, Outcome, Person, Status
from server.journal.revision import to_token
from server.users.directory import Directory, Purpose

_WRITTEN = {
    Status.ACCEPTED: event_pb2.EVENT_STATUS_ACCEPTED,
    Status.DUPLICATE: event_pb2.EVENT_STATUS_DUPLICATE,
    Status.UNKNOWN_ITEM: event_pb2.EVENT_STATUS_ACCEPTED_UNKNOWN_ITEM,
    Status.UNKNOWN_TYPE: event_pb2.EVENT_STATUS_ACCEPTED_UNKNOWN_TYPE,
}
_DROPPED = {
    Status.NO_CONSENT: event_pb2.EVENT_STATUS_DROPPED_NO_CONSENT,
    Status.ERASED: event_pb2.EVENT_STATUS_DROPPED_ERASED,
}
Result = event_pb2.EventResult


class EventRows:
    """Decodes events and encodes their results; counts events by what became of them, CLASH for all that were rejected."""

    def __init__(self, epoch: str, max_age_days: int, directory: Directory, counts: Counter[Status] | None = None) -> None:
        """directory: says why somebody's events were dropped."""
        self._epoch = epoch
        self._directory = directory
        self._max_age_days = max_age_days
        self._counts: Counter[Status] = counts if counts is not None else Counter()

    def decode(
        self, messages: Sequence[event_pb2.Event], now_us: int, first: int = 0
    ) -> tuple[list[Event], list[Result | None]]:
        """The good events, and a result for each row: that of a bad one, None for a good one.

        first: the first row's number, for field names.
        """
        events = []
        results: list[Result | None] = []
        for place, message in enumerate(messages, first):
            try:
                events.append(self._event(message, now_us))
                results.append(None)
            except InvalidField as error:
                self._counts[Status.CLASH] += 1
                results.append(_refused(event_pb2.EVENT_STATUS_REJECTED, error.under(f"events[{place}]")))
        return events, results

    def encode(
        self, results: Sequence[Result | None], events: Sequence[Event], outcomes: Sequence[Outcome], first: int = 0
    ) -> list[Result]:
        """A result for each row: what became of the good events, in their places."""
        fresh = iter(zip(events, outcomes, strict=True))
        return [result or self._result(*next(fresh), place) for place, result in enumerate(results, first)]

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

    def _result(self, event: Event, outcome: Outcome, place: int) -> Result:
        status, position = outcome
        self._counts[status] += 1
        written = _WRITTEN.get(status)
        if written is not None:
            return Result(status=written, revision=to_token(self._epoch, position))
        if status is Status.CLASH:
            problem = f"{event.event_id!r} is taken by an event with other content; give each event an id of its own"
            return _refused(event_pb2.EVENT_STATUS_REJECTED, AlreadyExists(problem), f"events[{place}].event_id")
        actor = "user_id" if event.person.kind == USER else "visitor_id"
        return _refused(
            _DROPPED[status], FailedPrecondition(f"this {actor} {self._why(event, status)}"), f"events[{place}].{actor}"
        )

    def _why(self, event: Event, status: Status) -> str:
        if status is Status.NO_CONSENT:
            return self._directory.why_not(event.person, Purpose.PERSONALISATION)
        return "was erased after the event happened; don't send it again"


def _refused(status: event_pb2.EventStatus.ValueType, error: ServiceError, field: str = "") -> Result:
    return Result(status=status, error=row_error(error, field))
