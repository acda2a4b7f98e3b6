"""The events of a stream that have no result yet. No I/O: Client and AsyncClient drive the same class."""

import re
from collections import deque

from towerbridge.v1 import Event, EventResult, StreamEventsRequest, StreamEventsResponse

# What the server takes in one message.
_ROWS_MAX = 1_000
_ROW = re.compile(r"events\[(\d+)\]")


class Outstanding:
    """Events in the order in which they are sent, from when they are added until their result is here."""

    def __init__(self, limit: int) -> None:
        """limit: how many events may be without a result; ValueError if it is less than 1."""
        if limit < 1:
            raise ValueError(f"outstanding must be at least 1, not {limit}")
        self._limit = limit
        self._unsent: deque[Event] = deque()
        self._sent: deque[Event] = deque()
        self._before = 0  # results that came before the present call
        self._results = 0

    @property
    def full(self) -> bool:
        """Whether no event may be added before another result is here."""
        return len(self._unsent) + len(self._sent) >= self._limit

    @property
    def empty(self) -> bool:
        """Whether every event has its result."""
        return not self._unsent and not self._sent

    @property
    def waiting(self) -> bool:
        """Whether there is something to be sent."""
        return bool(self._unsent)

    def add(self, event: Event) -> None:
        if not isinstance(event, Event):
            raise TypeError(f"stream_events takes events, made with event, not {event!r}")
        self._unsent.append(event)

    def next_message(self) -> StreamEventsRequest:
        """All that is to be sent, up to the size of a message."""
        events = [self._unsent.popleft() for _ in range(min(_ROWS_MAX, len(self._unsent)))]
        self._sent.extend(events)
        return StreamEventsRequest(events=events)

    def acknowledge(self, response: StreamEventsResponse) -> list[EventResult]:
        """The results of the next events; fields in errors count over all calls of the stream."""
        results = list(response.results)
        if len(results) > len(self._sent):
            raise RuntimeError(f"the server sent {len(results)} results for {len(self._sent)} events")
        for result in results:
            self._sent.popleft()
            if self._before and result.HasField("error"):
                result.error.field = _ROW.sub(lambda row: f"events[{int(row[1]) + self._before}]", result.error.field, count=1)
        self._results += len(results)
        return results

    def begin_again(self) -> None:
        """For a new call: every event without a result is to be sent again."""
        self._unsent.extendleft(reversed(self._sent))
        self._sent.clear()
        self._before = self._results
