"""One stream of events of the asynchronous client, over as many calls as it takes."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable

import grpc

from towerbridge._outstanding import Outstanding
from towerbridge._retry import StreamAttempts
from towerbridge.v1 import Event, EventResult, StreamEventsRequest, StreamEventsResponse


class AsyncEventStream:
    """Reads events in a task of its own, sends what is there in one message, and opens a broken stream again."""

    def __init__(
        self,
        method: "grpc.aio.StreamStreamMultiCallable[StreamEventsRequest, StreamEventsResponse]",
        metadata: tuple[tuple[str, str], ...],
        outstanding: Outstanding,
        attempts: StreamAttempts,
    ) -> None:
        self._method = method
        self._metadata = metadata
        self._outstanding = outstanding
        self._attempts = attempts
        self._waiters: list[asyncio.Future[None]] = []
        self._call_number = 0
        self._exhausted = False
        self._failure: BaseException | None = None  # of the caller's iterable

    async def results(self, events: AsyncIterable[Event] | Iterable[Event]) -> AsyncIterator[EventResult]:
        """One result an event, in order. An error of `events` is raised after the results of the events before it."""
        reader = asyncio.ensure_future(self._read(events))
        try:
            while not await self._ended():
                try:
                    async for result in self._one_call():
                        yield result
                except grpc.RpcError as error:
                    await asyncio.sleep(self._attempts.pause_s(error))
            if self._failure is not None:
                raise self._failure
        finally:
            reader.cancel()

    async def _one_call(self) -> AsyncIterator[EventResult]:
        self._outstanding.begin_again()
        self._call_number += 1
        call = self._method(self._messages(self._call_number), metadata=self._metadata)
        try:
            async for response in call:
                self._attempts.succeeded()
                results = self._outstanding.acknowledge(response)
                self._notify()
                for result in results:
                    yield result
        finally:
            self._call_number += 1
            self._notify()
            call.cancel()
        if not await self._ended():
            raise RuntimeError("the server ended the stream without a result for every event")

    async def _messages(self, number: int) -> AsyncIterator[StreamEventsRequest]:
        """What is to be sent on one call."""
        while True:
            await self._until(lambda: number != self._call_number or self._outstanding.waiting or self._exhausted)
            if number != self._call_number or not self._outstanding.waiting:
                return
            yield self._outstanding.next_message()

    async def _read(self, events: AsyncIterable[Event] | Iterable[Event]) -> None:
        try:
            async for event in events if isinstance(events, AsyncIterable) else _each(events):
                await self._until(lambda: not self._outstanding.full)
                self._outstanding.add(event)
                self._notify()
        except Exception as error:
            self._failure = error
        finally:
            self._exhausted = True
            self._notify()

    async def _ended(self) -> bool:
        await self._until(lambda: self._exhausted or not self._outstanding.empty)
        return self._exhausted and self._outstanding.empty

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    def _notify(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


async def _each(events: Iterable[Event]) -> AsyncIterator[Event]:
    for event in events:
        yield event
