"""Calls that are refused before anything of them is read."""

from __future__ import annotations

from typing import NamedTuple

import grpc

PUSHBACK = "grpc-retry-pushback-ms"
"""The trailer by which a server tells a client that retries how long to wait (gRFC A6)."""


class Refusal(NamedTuple):
    """A status, what it says, and when the call may be repeated here."""

    code: grpc.StatusCode
    message: str
    pushback_ms: int | None = None

    @property
    def trailers(self) -> tuple[tuple[str, str], ...]:
        return () if self.pushback_ms is None else ((PUSHBACK, str(self.pushback_ms)),)
