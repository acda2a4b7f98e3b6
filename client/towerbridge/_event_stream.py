"""One stream of events of the synchronous client, over as many calls as it takes."""

import threading
import time
from collections.abc import Iterable, Iterator

import grpc

from towerbridge._outstanding import Outstanding
from towerbridge._retry import StreamAttempts
from towerbridge.v1 import Event, EventResult, StreamEventsRequest, StreamEventsResponse


class EventStream:
    """Reads events in a thread of its own, sends what is there in one message, and opens a broken stream again."""

    def __init__(
        self,
        method: "grpc.StreamStreamMultiCallable[StreamEventsRequest, StreamEventsResponse]",
        metadata: tuple[tuple[str, str], ...],
        outstanding: Outstanding,
        attempts: StreamAttempts,
    ) -> None:
        self._method = method
        self._metadata = metadata
        self._outstanding = outstanding
        self._attempts = attempts
        self._changed = threading.Condition()  # guards all below, and the outstanding events
        self._call_number = 0
        self._exhausted = False
        self._left = False
        self._failure: BaseException | None = None  # of the caller's iterable

    def results(self, events: Iterable[Event]) -> Iterator[EventResult]:
        """One result an event, in order. An error of `events` is raised after the results of the events before it."""
        threading.Thread(target=self._read, args=(events,), name="towerbridge-events", daemon=True).start()
        try:
            while not self._ended():
                try:
                    yield from self._one_call()
                except grpc.RpcError as error:
                    time.sleep(self._attempts.pause_s(error))
            if self._failure is not None:
                raise self._failure
        finally:
            with self._changed:
                self._left = True
                self._changed.notify_all()

    def _one_call(self) -> Iterator[EventResult]:
        with self._changed:
            self._outstanding.begin_again()
            self._call_number += 1
            number = self._call_number
        call = self._method(self._messages(number), metadata=self._metadata)
        try:
            for response in call:
                self._attempts.succeeded()
                with self._changed:
                    results = self._outstanding.acknowledge(response)
                    self._changed.notify_all()
                yield from results
        finally:
            with self._changed:
                self._call_number += 1
                self._changed.notify_all()
            call.cancel()
        if not self._ended():
            raise RuntimeError("the server ended the stream without a result for every event")

    def _messages(self, number: int) -> Iterator[StreamEventsRequest]:
        """What is to be sent on one call; runs in a thread of gRPC's."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: number != self._call_number or self._outstanding.waiting or self._exhausted)
                if number != self._call_number or not self._outstanding.waiting:
                    return
                message = self._outstanding.next_message()
            yield message

    def _read(self, events: Iterable[Event]) -> None:
        try:
            for event in events:
                with self._changed:
                    self._changed.wait_for(lambda: self._left or not self._outstanding.full)
                    if self._left:
                        return
                    self._outstanding.add(event)
                    self._changed.notify_all()
        except BaseException as error:
            self._failure = error
        finally:
            with self._changed:
                self._exhausted = True
                self._changed.notify_all()

    def _ended(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._exhausted or not self._outstanding.empty)
            return self._exhausted and self._outstanding.empty
