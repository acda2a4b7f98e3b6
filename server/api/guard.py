"""What runs around every handler: room, deadline, decoding, errors, figures, traces and the audit log."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import Message

from server.api.refusals import Refusal
from server.api.requests import Requests
from server.api.status import status_of
from server.api.wire import Context
from server.errors import DeadlineExceeded, ServiceError, Unavailable
from server.overload.limit import Limit
from server.security.audit import AuditLog
from server.security.keys import Caller
from server.security.roles import Role
from server.telemetry.calls import CallFigures, CallRow
from server.telemetry.current import CALL, USER, Call

if TYPE_CHECKING:
    from server.telemetry.otlp import Traces  # which needs OpenTelemetry

_LATE = "the deadline had passed before the call was worked on"
_OK = grpc.StatusCode.OK
Inner = Callable[[Any, Any], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Method:
    """A method of one tenant, and all that its calls need."""

    name: str  # "/towerbridge.v1.EventService/RecordEvents"
    tenant: str
    role: Role
    limit: Limit
    figures: CallFigures
    row: CallRow
    audit: AuditLog | None  # None: its calls are not audited
    traces: Traces | None
    decode: Callable[[bytes], Any]
    encode: Callable[[Any], bytes]


class Guard:
    """Wraps handlers. On the event loop."""

    def __init__(self, caller: Callable[[Any], Caller], draining: Refusal, full: Refusal) -> None:
        self._caller = caller
        self._draining = draining
        self._full = full
        self._drains = False
        self._streams: set[Requests] = set()
        self._watches: set[asyncio.Task[Any]] = set()  # of health, which would go on for ever

    def drain(self) -> None:
        """Takes no more requests of streams."""
        self._drains = True
        for requests in tuple(self._streams):
            requests.stop()

    def end_watches(self) -> None:
        """Ends the calls that only watch."""
        for task in tuple(self._watches):
            task.cancel()

    def guarded(self, method: Method, handler: Any) -> Any:
        """The handler for gRPC, which takes bytes."""
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(self._around(method, _decoded(method, handler.unary_unary)))
        if handler.unary_stream is not None:
            inner = _decoded(method, _written(handler.unary_stream), encoded=False)
            inner = self._watching(inner) if method.role is Role.OPEN else inner
            return grpc.unary_stream_rpc_method_handler(self._around(method, inner), None, method.encode)
        if handler.stream_stream is not None:
            inner = self._reading(method, _written(handler.stream_stream))
            return grpc.stream_stream_rpc_method_handler(self._around(method, inner), None, method.encode)
        raise NotImplementedError(f"{method.name} takes a stream and answers once; no service here did so far")

    async def note(self, method: Method, caller: Caller, context: Any, code: grpc.StatusCode | None, request: Any) -> None:
        """Has a line of the audit log on disk. code: None before the call is worked on. Raises Unavailable if it cannot be."""
        if method.audit is None:
            return
        was = "nothing was done" if code is None else "the call was worked on"
        try:
            outcome = code.name if code is not None else "STARTED"
            await asyncio.wrap_future(
                method.audit.write(caller, method.name, context.peer(), outcome, _details(request) if request else {})
            )
        except OSError as error:
            raise Unavailable(f"the audit log cannot be written: {error.strerror or error}; {was}") from error

    def _around(self, method: Method, inner: Inner) -> Inner:
        limit, row, traces, call = method.limit, method.row, method.traces, Call(method.tenant, method.name)
        if method.audit is not None:
            inner = self._audited(method, inner)

        async def around(data: Any, context: Context) -> Any:
            started = time.monotonic()
            if limit.is_full:  # others that gRPC took at the same moment have come first
                row.done(self._full.code, 0.0)
                method.figures.shed(method.tenant, method.role.value, "limit")
                await context.abort(self._full.code, self._full.message, self._full.trailers)
            CALL.set(call)
            trace = (
                traces.start(method.name, context.invocation_metadata() or (), method.tenant) if traces is not None else None
            )
            limit.enter()
            code = _OK
            try:
                return await inner(data, context)
            except BaseException as error:
                code, message = status_of(method.name, error, context)
                if message is None:
                    raise
                await context.abort(code, message)
            finally:
                limit.leave()
                row.done(code, time.monotonic() - started)
                if trace is not None:
                    trace.end(code)

        return around

    def _audited(self, method: Method, inner: Inner) -> Inner:
        async def audited(data: Any, context: Context) -> Any:
            caller, request = self._caller(context), method.decode(data) if isinstance(data, bytes) else None
            await self.note(method, caller, context, None, request)
            code = _OK
            try:
                return await inner(data, context)
            except BaseException as error:
                code, _ = status_of(method.name, error, context)
                raise
            finally:
                await asyncio.shield(self.note(method, caller, context, code, request))

        return audited

    def _reading(self, method: Method, inner: Inner) -> Inner:
        """A handler of a stream of requests that is told when the server drains."""

        async def reading(_: object, context: Context) -> None:
            requests = Requests(context, method.decode)
            self._streams.add(requests)
            try:
                await inner(requests, context)
            finally:
                self._streams.discard(requests)
            if requests.stopped and not requests.ended:
                raise Unavailable(self._draining.message)

        return reading

    def _watching(self, inner: Inner) -> Inner:
        """A handler that has no end of its own, and is ended when the server drains."""

        async def watching(data: Any, context: Context) -> None:
            task = asyncio.current_task()
            if task is None:
                raise RuntimeError("a handler runs in a task")
            self._watches.add(task)
            try:
                await inner(data, context)
            except asyncio.CancelledError:
                if not self._drains:
                    raise
                raise Unavailable(self._draining.message) from None
            finally:
                self._watches.discard(task)

        return watching


def _details(request: Message, within: str = "") -> dict[str, str]:
    """The texts of a request by field, such as "person.user_id"."""
    found: dict[str, str] = {}
    for field, value in request.ListFields():
        if isinstance(value, Message):
            found |= _details(value, f"{within}{field.name}.")
        elif isinstance(value, str):
            found[f"{within}{field.name}"] = value
    return found


def _person(request: Message) -> str:
    """The id that the request is about; empty if it names none, or several."""
    ids = set(_ids(request))
    return ids.pop() if len(ids) == 1 else ""


def _ids(message: Message) -> Iterator[str]:
    for field, value in message.ListFields():
        if field.name in ("user_id", "visitor_id"):
            yield value
        elif field.message_type is not None:
            for one in (value,) if isinstance(value, Message) else value:
                if isinstance(one, Message):
                    yield from _ids(one)


def _decoded(method: Method, handler: Inner, *, encoded: bool = True) -> Inner:
    """From bytes, if there is time for it. encoded: to bytes again, unless the handler has done it."""
    decode, encode = method.decode, method.encode

    async def decoded(data: bytes, context: Context) -> Any:
        remaining = context.time_remaining()
        if remaining is not None and remaining <= 0.0:
            method.figures.shed(method.tenant, method.role.value, "deadline")
            raise DeadlineExceeded(_LATE)
        request = decode(data)
        try:
            response = await handler(request, context)
        except ServiceError:
            raise
        except Exception:  # will be logged
            USER.set(_person(request))
            raise
        return encode(response) if encoded and type(response) is not bytes else response

    return decoded


def _written(handler: Callable[[Any, Any], Any]) -> Inner:
    """A handler that writes its responses, from one that may yield them."""
    if not inspect.isasyncgenfunction(handler):
        return handler

    async def write(request: Any, context: Context) -> None:
        async for response in handler(request, context):
            await context.write(response)

    return write
