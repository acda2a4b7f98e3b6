"""Errors to gRPC statuses, in one place."""

from __future__ import annotations  # grpc's handler types take parameters in their stubs only

import logging
from collections.abc import Awaitable, Callable
from typing import Any, cast

import grpc
from google.protobuf.message import DecodeError
from towerbridge.v1 import common_pb2

from server.errors import InvalidField, ServiceError

_log = logging.getLogger(__name__)
_HEALTH = "/grpc.health.v1.Health/"  # says NOT_SERVING while the server drains
_INTERNAL = "an internal error; the server's log has the details"


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Ends a call with the status of the error that its handler raised.

    Errors that callers may see carry their message; any other is logged whole and reaches the caller as INTERNAL.
    Once `draining` is set every new call but health's ends with UNAVAILABLE, which tells callers to go elsewhere.
    """

    def __init__(self) -> None:
        self.draining = False

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:
            return handler
        decode = handler.request_deserializer or bytes
        inner = cast(Callable[[Any, Any], Awaitable[Any]], handler.unary_unary)  # our handlers are coroutines
        method = handler_call_details.method

        async def guarded(data: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            if self.draining and not method.startswith(_HEALTH):
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is draining; repeat the call on another one")
            try:
                request = decode(data)
            except DecodeError:
                # Left to gRPC this would be UNKNOWN, and a traceback in the log for every broken message.
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the request is not a message of this method, in UTF-8")
            try:
                return await inner(request, context)
            except ServiceError as error:
                await context.abort(error.code, str(error))
            except grpc.aio.AbortError:
                raise  # a handler that ended the call itself, as health does for an unknown service
            except Exception:
                _log.exception("%s failed", method)
                await context.abort(grpc.StatusCode.INTERNAL, _INTERNAL)

        return grpc.unary_unary_rpc_method_handler(guarded, None, handler.response_serializer)


def row_error(error: ServiceError, field: str = "") -> common_pb2.RowError:
    """One row's error, in the answer of a batch."""
    if isinstance(error, InvalidField):
        return common_pb2.RowError(code=error.code.value[0], field=error.field, message=error.problem)
    return common_pb2.RowError(code=error.code.value[0], field=field, message=str(error))
