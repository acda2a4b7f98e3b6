"""One call, from its headers to its status."""

from __future__ import annotations

import asyncio
import logging
import time
import types
from collections.abc import Callable, Coroutine, Generator
from contextvars import copy_context
from functools import partial
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import Message
from grpc._cython.cygrpc import (
    ReceiveCloseOnServerOperation,
    ReceiveMessageOperation,
    SendInitialMetadataOperation,
    SendMessageOperation,
    SendStatusFromServerOperation,
)

from server.overload.limit import Place

_log = logging.getLogger(__name__)
_NO_FLAGS = 0
_NEVER_SECONDS = 2.0**60  # since 1970: what gRPC gives as the deadline of a call that has none is beyond
NO_MESSAGE = "the call had no message"
"""What a caller is told who sent none."""
INTERNAL = "an internal error; the server's log has the details"
"""What a caller is told of an error that nobody expected."""
_Batch = tuple[Any, ...]
Inner = Callable[[Any, Any], Coroutine[Any, Any, Any]]
"""Works on a call: of its message, or of nothing where it reads by itself, and its Context."""


class Handler(NamedTuple):
    """What answers the calls of a method."""

    work: Inner
    """It begins outside of any task, so nothing that needs one may come before its first wait, such as `asyncio.timeout`."""
    takes_message: bool = True
    """The call's one message is there when the work begins; False: the work reads what it wants, and is given None."""
    gives_reply: bool = True
    """The bytes that the work returns are the answer's one message; False: the work writes what it wants."""


class CallerLeft(Exception):
    """What was to be written reaches nobody any more."""


class Context:
    """A call, as its handler sees it. On the event loop.

    It ends with the status that `end` is given, else when the handler has returned, with OK. If its caller leaves, the handler
    is cancelled wherever it waits.
    """

    __slots__ = (
        "_core",
        "_details",
        "_ended",
        "_handler",
        "_headed",
        "_loop",
        "_metadata",
        "_running",
        "_task",
        "_watched",
        "method",
        "place",
    )

    def __init__(self, event: Any, loop: asyncio.AbstractEventLoop, running: set[asyncio.Task[Any]]) -> None:
        """event: of gRPC's, that the call has come. running: holds the tasks of calls while they go on."""
        self._core = event.call
        self._details = event.call_details
        self._metadata = event.invocation_metadata
        self._loop = loop
        self._running = running
        self._task: asyncio.Task[Any] | None = None
        self._headed = False  # whether the answer has begun
        self._ended = False  # whether it has a status
        self._watched = False  # whether gRPC will tell that the caller has left
        self.method = self._details.method.decode(errors="replace")
        """The full name, such as "/towerbridge.v1.EventService/RecordEvents"."""
        self.place: Place | None = None
        """Among the calls that may be worked on; None: it needs none."""

    def invocation_metadata(self) -> tuple[Any, ...]:
        """Pairs of key and value, as the caller sent them."""
        metadata: tuple[Any, ...] = self._metadata
        return metadata

    def time_remaining(self) -> float | None:
        """Seconds until the caller's deadline, at least 0; None: there is none."""
        deadline = self._details.deadline
        return None if deadline > _NEVER_SECONDS else max(0.0, deadline - time.time())

    def peer(self) -> str:
        """Where the caller is, such as "ipv4:10.0.0.7:51034"."""
        peer: bytes = self._core.peer()
        return peer.decode(errors="replace")

    async def read(self) -> bytes | None:
        """The caller's next message; None: there are no more. One at a time."""
        read: asyncio.Future[bytes | None] = self._loop.create_future()
        self._start((ReceiveMessageOperation(_NO_FLAGS),), partial(_give, read))
        return await read

    async def write(self, message: Message) -> None:
        """Sends a message, and waits until gRPC has room for another. One at a time. Raises CallerLeft."""
        data = message.SerializeToString()
        if self._ended:
            raise CallerLeft
        sent: asyncio.Future[bool] = self._loop.create_future()
        self._start((*self._head(), SendMessageOperation(data, _NO_FLAGS)), partial(_tell, sent))
        if not await sent:
            raise CallerLeft

    def end(self, code: grpc.StatusCode, message: str, trailers: tuple[tuple[str, str], ...] = ()) -> None:
        """Ends the call with a status, if it has none."""
        self._end((), trailers, code.value[0], message.encode(errors="replace"))

    def fail(self, error: BaseException) -> None:
        """Ends the call because of an error, which is logged unless it says that the caller has left."""
        if isinstance(error, (asyncio.CancelledError, CallerLeft)):
            self.end(grpc.StatusCode.CANCELLED, "")
        else:
            _log.error("%s failed", self.method, exc_info=error)
            self.end(grpc.StatusCode.INTERNAL, INTERNAL)

    def cancel(self) -> None:
        """Cancels the handler where it waits."""
        if self._task is not None:
            # Once the task has begun: one that is cancelled before never runs, and its handler would not be told.
            self._loop.call_soon(self._task.cancel)

    def answer(self, handler: Handler) -> None:
        """Has the handler answer, when the message is there, if it takes one."""
        self._handler: Handler = handler
        if handler.takes_message:
            self._start((ReceiveMessageOperation(_NO_FLAGS),), self._received)
        else:
            self._loop.call_soon(self._begin, None, context=copy_context())

    def _received(self, event: Any) -> None:
        message = event.batch_operations[0].message()
        if message is not None:
            self._loop.call_soon(self._begin, message, context=copy_context())
            return
        if self.place is not None:
            self.place.give_back()
        self.end(grpc.StatusCode.INVALID_ARGUMENT, NO_MESSAGE)  # which nobody hears if it was the caller who left

    def _begin(self, message: bytes | None) -> None:
        """Runs the handler until it waits, without a task if it never does."""
        work = self._handler.work(message, self)
        try:
            waits_for = work.send(None)
        except StopIteration as done:
            self._reply(done.value)
        except (Exception, asyncio.CancelledError) as error:
            self.fail(error)
        else:
            self._watch()
            self._task = task = self._loop.create_task(_rest(work, waits_for))
            self._running.add(task)
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        self._task = None  # else both would be garbage in a circle
        if task.cancelled():
            self.fail(asyncio.CancelledError())
        elif (error := task.exception()) is not None:
            self.fail(error)
        else:
            self._reply(task.result())

    def _reply(self, message: Any) -> None:
        if self._ended:
            return
        try:
            self._end((SendMessageOperation(message, _NO_FLAGS),) if self._handler.gives_reply else (), (), 0, b"")
        except Exception as error:
            self.fail(error)

    def _end(self, messages: _Batch, trailers: tuple[tuple[str, str], ...], code: int, message: bytes) -> None:
        if self._ended:
            return
        self._ended = True
        status = SendStatusFromServerOperation(trailers, code, message, _NO_FLAGS)
        # gRPC wants to be asked once in every call whether the caller has left.
        close = () if self._watched else (ReceiveCloseOnServerOperation(_NO_FLAGS),)
        self._watched = True
        try:
            self._start((*self._head(), *messages, status, *close), _ignore)
        except BaseException:  # else nobody would ever answer
            self._core.cancel()
            raise

    def _head(self) -> _Batch:
        """What the answer begins with, once."""
        if self._headed:
            return ()
        self._headed = True
        return (SendInitialMetadataOperation((), _NO_FLAGS),)

    def _watch(self) -> None:
        self._watched = True
        self._start((ReceiveCloseOnServerOperation(_NO_FLAGS),), self._closed)

    def _closed(self, event: Any) -> None:
        if event.batch_operations[0].cancelled():
            self.cancel()

    def _start(self, batch: _Batch, tag: Callable[[Any], None]) -> None:
        if self._loop.is_closed():  # what is left of a handler ends with it; gRPC would end the process
            return
        error = self._core.start_server_batch(batch, tag)
        if error:
            raise RuntimeError(f"gRPC's core refuses to go on with a call of {self.method}: error {error}")


async def _rest(work: Coroutine[Any, Any, Any], waits_for: Any) -> Any:
    """What is left of work that has begun, and waits."""
    return await _resumed(work, waits_for)


@types.coroutine
def _resumed(work: Coroutine[Any, Any, Any], waits_for: Any) -> Generator[Any, Any, Any]:
    while True:
        try:
            yield waits_for
        except BaseException as error:
            try:
                waits_for = work.throw(error)
            except StopIteration as done:
                return done.value
        else:
            return (yield from work)  # a coroutine that has begun, as await would


def _give(read: asyncio.Future[bytes | None], event: Any) -> None:
    if not read.done():  # as it is if whoever reads was cancelled
        read.set_result(event.batch_operations[0].message())


def _tell(sent: asyncio.Future[bool], event: Any) -> None:
    if not sent.done():
        sent.set_result(event.success)


def _ignore(event: Any) -> None:
    """The call is over."""
