"""What runs around every handler: room, deadline, decoding, errors, figures and traces."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
from google.protobuf.message import Message

from server.api.auditing import Auditing
from server.api.context import NO_MESSAGE, Context, Handler, Inner
from server.api.method import Method, look_at_error
from server.api.refusals import Refusal
from server.api.requests import Requests
from server.api.status import status_of
from server.errors import DeadlineExceeded, InvalidField, InvalidRequest, ServiceError, Unavailable
from server.security.roles import Role
from server.telemetry.current import CALL, USER, Call

_LATE = "the deadline had passed before the call was worked on"
_SIZING = ("requests", "item_ids", "limit")  # what says how much an answer holds
_TOO_LARGE = "the answer would have {size:.1f} MiB, more than listen.max_message_bytes ({most:.1f} MiB); ask for fewer"
_MESSAGE_SECONDS = 5.0
_OK = grpc.StatusCode.OK


class Guard:
    """Wraps handlers. On the event loop."""

    def __init__(self, auditing: Auditing, draining: Refusal, full: Refusal) -> None:
        self._auditing = auditing
        self._draining = draining
        self._full = full
        self._drains = False
        self._streams: set[Requests] = set()
        self._watches: set[Context] = set()  # of health, which would go on for ever

    def drain(self) -> None:
        """Takes no more requests of streams."""
        self._drains = True
        for requests in tuple(self._streams):
            requests.stop()

    def end_watches(self) -> None:
        """Ends the calls that only watch."""
        for context in tuple(self._watches):
            context.cancel()

    def guarded(self, method: Method, handler: grpc.RpcMethodHandler[Any, Any]) -> Handler:
        """The handler, which takes bytes, for the server."""
        if handler.unary_unary is not None and method.role is Role.OPEN:
            return Handler(self._around(method, _read(_decoded(method, handler.unary_unary))), takes_message=False)
        if handler.unary_unary is not None:
            return Handler(self._around(method, _decoded(method, handler.unary_unary), unary=True))
        if handler.unary_stream is not None:
            inner = _decoded(method, _written(handler.unary_stream), encoded=False)
            inner = self._watching(inner) if method.role is Role.OPEN else inner
            return Handler(self._around(method, inner), gives_reply=False)
        if handler.stream_stream is not None:
            inner = self._reading(method, _written(handler.stream_stream))
            return Handler(self._around(method, inner), takes_message=False, gives_reply=False)
        raise NotImplementedError(f"{method.name} takes a stream and answers once; no service here did so far")

    def _around(self, method: Method, inner: Inner, *, unary: bool = False) -> Inner:
        limit, row, traces, call = method.limit, method.row, method.traces, Call(method.tenant, method.name)
        if method.audit is not None:
            inner = self._auditing.audited(method, inner, unary=unary)

        async def around(data: Any, context: Context) -> Any:
            started = time.monotonic()
            place = context.place
            if place is None:
                raise RuntimeError("a call is worked on that was not let in")
            if not limit.enter(place):  # its message was so long in coming that others have its place
                row.refused(self._full.code)
                method.figures.shed(method.tenant, method.role.value, "limit")
                context.end(self._full.code, self._full.message, self._full.trailers)
                return None
            CALL.set(call)
            trace = traces.start(method.name, context.invocation_metadata(), method.tenant) if traces is not None else None
            code = _OK
            try:
                return await inner(data, context)
            except BaseException as error:
                code, message = status_of(method.name, error)
                if message is None:
                    raise
                context.end(code, message)
                return None
            finally:
                limit.leave()
                row.done(code, time.monotonic() - started)
                if trace is not None:
                    trace.end(code)

        return around

    def _reading(self, method: Method, inner: Inner) -> Inner:
        """A handler of a stream of requests that is told when the server drains."""

        async def reading(_: object, context: Context) -> None:
            requests = Requests(context, method.decode)
            self._streams.add(requests)
            if self._drains:  # since the call was let in
                requests.stop()
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
            self._watches.add(context)
            try:
                await inner(data, context)
            except asyncio.CancelledError:
                if not self._drains:
                    raise
                raise Unavailable(self._draining.message) from None
            finally:
                self._watches.discard(context)

        return watching


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


def _sizing(request: Message) -> str:
    """The field that makes the answer large."""
    return next((name for name in _SIZING if name in request.DESCRIPTOR.fields_by_name), "request")


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
        reply = encode(response) if encoded and type(response) is not bytes else response
        if encoded and len(reply) > method.reply_bytes_max:
            raise InvalidField(
                _sizing(request), _TOO_LARGE.format(size=len(reply) / 2**20, most=method.reply_bytes_max / 2**20)
            )
        return reply

    return decoded


def _read(inner: Inner) -> Inner:
    """For methods that anybody may call: the message is read within the call's limit, and not for ever."""

    async def read(_: object, context: Context) -> Any:
        # In a task of its own, which ends with the call: a read cannot be called back (see `Requests`).
        reading = asyncio.ensure_future(context.read())
        reading.add_done_callback(look_at_error)
        done, _pending = await asyncio.wait((reading,), timeout=_MESSAGE_SECONDS)
        if not done:
            raise DeadlineExceeded(f"the call's message was not there after {_MESSAGE_SECONDS:g} s")
        data = reading.result()
        if data is None:
            raise InvalidRequest(NO_MESSAGE)
        return await inner(data, context)

    return read


def _written(handler: Callable[[Any, Any], Any]) -> Inner:
    """A handler that writes its responses, from one that may yield them."""
    if not inspect.isasyncgenfunction(handler):
        return handler

    async def write(request: Any, context: Context) -> None:
        async for response in handler(request, context):
            await context.write(response)

    return write
