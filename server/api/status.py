"""Errors to gRPC statuses, in one place."""

import asyncio
import logging

import grpc
from google.protobuf.message import DecodeError
from towerbridge.v1 import common_pb2

from server.api.context import INTERNAL, CallerLeft
from server.api.requests import BROKEN_MESSAGE
from server.errors import InvalidField, ServiceError

_log = logging.getLogger(__name__)


def status_of(method: str, error: BaseException) -> tuple[grpc.StatusCode, str | None]:
    """The status that a call ends with, and the message for its caller; no message if the caller has left.

    Errors that callers may see carry their message; any other is logged whole and reaches the caller as INTERNAL.
    """
    if isinstance(error, ServiceError):
        return error.code, str(error)
    if isinstance(error, DecodeError):
        # Left to gRPC this would be UNKNOWN, and a traceback in the log for every broken message.
        return grpc.StatusCode.INVALID_ARGUMENT, BROKEN_MESSAGE
    if isinstance(error, (asyncio.CancelledError, CallerLeft)):
        return grpc.StatusCode.CANCELLED, None
    _log.error("%s failed", method, exc_info=error)
    return grpc.StatusCode.INTERNAL, INTERNAL


def row_error(error: ServiceError, field: str = "") -> common_pb2.RowError:
    """One row's error, in the answer of a batch."""
    if isinstance(error, InvalidField):
        return common_pb2.RowError(code=error.code.value[0], field=error.field, message=error.problem)
    return common_pb2.RowError(code=error.code.value[0], field=field, message=str(error))
