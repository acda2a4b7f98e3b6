"""Calls and times on the wire."""

import math
import time
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]
else:  # grpc's types take parameters in their stubs only
    Context = grpc.aio.ServicerContext
"""A call as generated code types it. What servicers are given is server.api.context.Context, which has what they use of it."""

_LONGEST_SECONDS = 3600.0  # longer than anyone waits, and within what clocks and threads can wait for


def deadline_of(context: Context, default_ms: int) -> float:
    """When the caller's patience ends, in time.monotonic seconds."""
    remaining = context.time_remaining()
    if remaining is None or not math.isfinite(remaining):
        remaining = default_ms / 1000
    return time.monotonic() + min(remaining, _LONGEST_SECONDS)


def to_timestamp(us: int) -> Timestamp:
    """Microseconds since 1970 as a Timestamp."""
    return Timestamp(seconds=us // 1_000_000, nanos=us % 1_000_000 * 1000)
