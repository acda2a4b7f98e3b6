"""A method that is offered, and what wraps its handler."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from server.overload.limit import Limit
from server.security.audit import AuditLog
from server.security.roles import Role
from server.telemetry.calls import CallFigures, CallRow

if TYPE_CHECKING:
    from server.telemetry.otlp import Traces  # which needs OpenTelemetry


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
    reply_bytes_max: int


def look_at_error(task: asyncio.Future[Any]) -> None:
    """Else asyncio would log that nobody has."""
    if not task.cancelled():
        task.exception()
