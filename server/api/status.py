"""Errors to gRPC statuses, in one place."""

from __future__ import annotations  # grpc's handler types take parameters in their stubs only

import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError
from towerbridge.v1 import common_pb2

from server.api.requests import BROKEN_MESSAGE, Requests
from server.api.wire import Context
from server.errors import InvalidField, ServiceError

_log = logging.getLogger(__name__)
_HEALTH = "/grpc.health.v1.Health/"  # says NOT_SERVING while the server drains
_INTERNAL = "an internal error; the server's log has the details"
_DRAINING = "the server is draining; repeat the call on another one"


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Ends a call with the status of the error that its handler raised.

    Errors that callers may see carry their message; any other is logged whole and reaches the caller as INTERNAL.
    After `drain` every new call but health's ends with UNAVAILABLE, which tells callers to go elsewhere; and so does every
    stream of requests, as soon as its handler has dealt with what it read.
    """

    def __init__(self) -> None:
        self._draining = False
        self._streams: set[Requests] = set()

    def drain(self) -> None:
        """Takes no more requests. To be called on the event loop."""
        self._draining = True
        for requests in tuple(self._streams):
            requests.stop()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return None
        method, decode, encode = handler_call_details.method, handler.request_deserializer or bytes, handler.response_serializer
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(self._guarded(method, decode, handler.unary_unary), None, encode)
        if handler.unary_stream is not None:
            inner = _written(handler.unary_stream)
            return grpc.unary_stream_rpc_method_handler(self._guarded(method, decode, inner), None, encode)
        if handler.stream_stream is not None:
            inner = self._reading(decode, _written(handler.stream_stream))
            return grpc.stream_stream_rpc_method_handler(self._guarded(method, _as_it_is, inner), None, encode)
        raise NotImplementedError(f"{method} takes a stream and answers once; no service here did so far")

    def _guarded(
        self, method: str, decode: Callable[[Any], Any], inner: Callable[[Any, Any], Awaitable[Any]]
    ) -> Callable[[Any, Any], Awaitable[Any]]:
        async def guarded(data: Any, context: Context) -> Any:
            if self._draining and not method.startswith(_HEALTH):
                await context.abort(grpc.StatusCode.UNAVAILABLE, _DRAINING)
            try:
                request = decode(data)
            except DecodeError:
                # Left to gRPC this would be UNKNOWN, and a traceback in the log for every broken message.
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, BROKEN_MESSAGE)
            try:
                return await inner(request, context)
            except Exception as error:
                await _abort(method, error, context)

        return guarded

    def _reading(
        self, decode: Callable[[bytes], Any], inner: Callable[[Any, Any], Awaitable[Any]]
    ) -> Callable[[Any, Any], Awaitable[None]]:
        """A handler of a stream of requests that is told when the server drains."""

        async def reading(_: object, context: Context) -> None:
            requests = Requests(context, decode)
            self._streams.add(requests)
            try:
                await inner(requests, context)
            finally:
                self._streams.discard(requests)
            if requests.stopped and not requests.ended:
                await context.abort(grpc.StatusCode.UNAVAILABLE, _DRAINING)

        return reading


async def _abort(method: str, error: Exception, context: Context) -> NoReturn:
    """Ends the call with the error's status."""
    if isinstance(error, grpc.aio.AbortError):
        raise error  # a handler that ended the call itself, as health does for an unknown service
    if isinstance(error, ServiceError):
        await context.abort(error.code, str(error))
    _log.error("%s failed", method, exc_info=error)
    await context.abort(grpc.StatusCode.INTERNAL, _INTERNAL)


def _as_it_is(data: Any) -> Any:
    return data


def _written(handler: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Awaitable[None]]:
    """A handler that writes its responses, from one that may yield them."""
    if not inspect.isasyncgenfunction(handler):
        return handler

    async def write(request: Any, context: Context) -> None:
        async for response in handler(request, context):
            await context.write(response)

    return write


def row_error(error: ServiceError, field: str = "") -> common_pb2.RowError:
    """One row's error, in the answer of a batch."""
    if isinstance(error, InvalidField):
        return common_pb2.RowError(code=error.code.value[0], field=error.field, message=error.problem)
    return common_pb2.RowError(code=error.code.value[0], field=field, message=str(error))
