"""The call that the running task works for, so that what is logged meanwhile can name it."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from server.telemetry.otlp import CallTrace


@dataclass(frozen=True, slots=True)
class Call:
    """A call as logs name it. trace_id and span_id: hexadecimal; empty if there is no trace, or it is another's to record."""

    tenant: str
    method: str
    trace_id: str = ""
    span_id: str = ""
    trace: CallTrace | None = None


CALL: ContextVar[Call | None] = ContextVar("towerbridge_call", default=None)
"""Set by the path that every call takes. gRPC runs each call in a task of its own, so nobody has to take it back."""

USER: ContextVar[str] = ContextVar("towerbridge_user", default="")
"""The id that the call is about, as received; logs show a keyed hash of it. Empty: none, or several."""


def trace() -> CallTrace | None:
    """The trace of the call, if it is being recorded."""
    call = CALL.get()
    return call.trace if call is not None else None
