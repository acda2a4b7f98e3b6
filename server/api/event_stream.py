"""StreamEvents: reads ahead of the disk, up to a limit, and acknowledges in order."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress

from towerbridge.v1 import event_pb2

from server.api.event_rows import EventRows, Result
from server.api.requests import Requests
from server.api.wire import Context
from server.errors import ServiceError
from server.fields import ROWS_MAX, check_count
from server.journal.events import Event, Outcome

_readers: set["asyncio.Task[None]"] = set()  # tasks that nobody else holds

UNACKNOWLEDGED_MAX = 1_024
"""Events of one stream without a sent result; no message is read beyond."""
_SUBMISSION_ROWS = 1_024  # so that a crowd of streams does not keep other writes waiting
_SUBMISSIONS = 2  # one that is being written, and one that waits for its turn


class Chunk:
    """The events of one message, until their results are sent. `outcomes` is None until they are known."""

    __slots__ = ("error", "events", "first", "on_settled", "outcomes", "refused")

    def __init__(self, first: int, events: list[Event], refused: list[Result | None], on_settled: Callable[[], None]) -> None:
        self.first = first  # the number of its first event in the stream
        self.events = events
        self.refused = refused
        self.on_settled = on_settled
        self.outcomes: Sequence[Outcome] | None = None if events else ()
        self.error: BaseException | None = None


class EventCollector:
    """Hands what all streams have read to the journal, together: a future a group, not an event. For the event loop only."""

    def __init__(self, record: Callable[[Sequence[Event], int], "Future[list[Outcome]]"], clock_us: Callable[[], int]) -> None:
        self._record = record
        self._clock_us = clock_us
        self._waiting: deque[Chunk] = deque()
        self._submissions = 0
        self._scheduled = False

    def add(self, chunk: Chunk) -> None:
        """Queues a chunk; it is settled in the order in which chunks came."""
        self._waiting.append(chunk)
        self._schedule()

    def _schedule(self) -> None:
        """Has what waits submitted after what the event loop does now: more may come in until then."""
        if self._waiting and not self._scheduled and self._submissions < _SUBMISSIONS:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._submit)

    def _submit(self) -> None:
        self._scheduled = False
        chunks = [self._waiting.popleft()]
        events = list(chunks[0].events)
        while self._waiting and len(events) < _SUBMISSION_ROWS:
            chunks.append(self._waiting.popleft())
            events += chunks[-1].events
        try:
            future = self._record(events, self._clock_us())
        except ServiceError as error:
            self._settle(chunks, None, error)
        else:
            self._submissions += 1
            loop = asyncio.get_running_loop()
            future.add_done_callback(lambda done: _call(loop, self._finished, chunks, done))
        self._schedule()

    def _finished(self, chunks: list[Chunk], done: "Future[list[Outcome]]") -> None:
        self._submissions -= 1
        error = done.exception()
        self._settle(chunks, None if error is not None else done.result(), error)
        self._schedule()

    def _settle(self, chunks: list[Chunk], outcomes: Sequence[Outcome] | None, error: BaseException | None) -> None:
        begin = 0
        for chunk in chunks:
            end = begin + len(chunk.events)
            chunk.error = error
            chunk.outcomes = outcomes[begin:end] if outcomes is not None else None
            chunk.on_settled()
            begin = end


class EventStream:
    """One call. A reader of its own takes messages in; `run` sends results and ends the call."""

    def __init__(
        self, rows: EventRows, collector: EventCollector, clock_us: Callable[[], int], revision: Callable[[], str]
    ) -> None:
        self._rows = rows
        self._collector = collector
        self._clock_us = clock_us
        self._revision = revision
        self._chunks: deque[Chunk] = deque()
        self._read = 0
        self._acknowledged = 0
        self._reading = True
        self._failure: Exception | None = None  # of the reader
        self._changed = asyncio.Event()
        self._room = asyncio.Event()

    async def run(self, requests: Requests, context: Context) -> None:
        """Raises what ends the call, after results for all that was read before."""
        requests.when_stopped(self._changed.set)
        reader = asyncio.create_task(self._take_all(requests))
        _readers.add(reader)
        reader.add_done_callback(_readers.discard)
        try:
            while True:
                self._changed.clear()
                results = self._ready()
                if results:
                    await self._send(results, context)
                elif self._chunks and self._chunks[0].error is not None:
                    raise self._chunks[0].error
                elif self._chunks or (self._reading and not requests.stopped):
                    await self._changed.wait()
                else:
                    break
        finally:
            self._reading = False
            self._room.set()  # the reader, if it waits, goes on and leaves
        if self._failure is not None and not requests.stopped:
            raise self._failure

    async def _take_all(self, requests: Requests) -> None:
        try:
            async for request in requests:
                if not self._reading or requests.stopped:
                    return
                check_count(len(request.events), "events", ROWS_MAX, minimum=1)
                self._take(request)
                while self._reading and self._read - self._acknowledged >= UNACKNOWLEDGED_MAX:
                    self._room.clear()
                    await self._room.wait()
        except Exception as error:
            self._failure = error
        finally:
            self._reading = False
            self._changed.set()

    def _take(self, request: event_pb2.StreamEventsRequest) -> None:
        events, refused = self._rows.decode(request.events, self._clock_us(), self._read)
        chunk = Chunk(self._read, events, refused, self._changed.set)
        self._read += len(refused)
        self._chunks.append(chunk)
        if events:
            self._collector.add(chunk)
        else:
            self._changed.set()

    def _ready(self) -> list[Result]:
        """Results of the next events, as far as they are known."""
        results: list[Result] = []
        while self._chunks and (outcomes := self._chunks[0].outcomes) is not None:
            chunk = self._chunks.popleft()
            results += self._rows.encode(chunk.refused, chunk.events, outcomes, chunk.first)
        return results

    async def _send(self, results: list[Result], context: Context) -> None:
        acknowledged = self._acknowledged + len(results)
        response = event_pb2.StreamEventsResponse(results=results, revision=self._revision(), acknowledged=acknowledged)
        await context.write(response)
        self._acknowledged = acknowledged
        self._room.set()


def _call(loop: asyncio.AbstractEventLoop, callback: Callable[..., None], *arguments: object) -> None:
    with suppress(RuntimeError):  # the loop has ended, and with it every stream
        loop.call_soon_threadsafe(callback, *arguments)
