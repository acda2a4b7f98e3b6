"""Errors to gRPC statuses, in one place."""

import asyncio
import logging

import grpc
from google.protobuf.message import DecodeError
from towerbridge.v1 import common_pb2

from server.api.requests import BROKEN_MESSAGE
from server.api.wire import Context
from server.errors import InvalidField, ServiceError

_log = logging.getLogger(__name__)
_INTERNAL = "an internal error; the server's log has the details"
_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}


def status_of(method: str, error: BaseException, context: Context) -> tuple[grpc.StatusCode, str | None]:
    """The status that a call ends with, and the message for its caller; no message if it has been ended already.

    Errors that callers may see carry their message; any other is logged whole and reaches the caller as INTERNAL.
    """
    if isinstance(error, ServiceError):
        return error.code, str(error)
    if isinstance(error, DecodeError):
        # Left to gRPC this would be UNKNOWN, and a traceback in the log for every broken message.
        return grpc.StatusCode.INVALID_ARGUMENT, BROKEN_MESSAGE
    if isinstance(error, grpc.aio.AbortError):  # a handler ended the call itself, as health does for an unknown service
        code = context.code()
        return (code if isinstance(code, grpc.StatusCode) else _BY_NUMBER.get(code, grpc.StatusCode.UNKNOWN)), None
    if isinstance(error, (asyncio.CancelledError, grpc.aio.InternalError)):
        # The latter is how gRPC tells a handler that writes, or ends its call, that its caller has just left.
        return grpc.StatusCode.CANCELLED, None
    _log.error("%s failed", method, exc_info=error)
    return grpc.StatusCode.INTERNAL, _INTERNAL


def row_error(error: ServiceError, field: str = "") -> common_pb2.RowError:
    """One row's error, in the answer of a batch."""
    if isinstance(error, InvalidField):
        return common_pb2.RowError(code=error.code.value[0], field=error.field, message=error.problem)
    return common_pb2.RowError(code=error.code.value[0], field=field, message=str(error))
