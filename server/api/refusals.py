"""Calls that are refused before anything of them is read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

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


def refusing(refusal: Refusal, *, first: Callable[[Any], Awaitable[None]] | None = None) -> Any:
    """A handler that ends the call with the refusal's status. first: what is to be done before.

    For gRPC it takes a stream, whatever the method takes: of a unary one gRPC would read the message first, however large.
    """

    async def refuse(_: object, context: Any) -> None:
        if first is not None:
            await first(context)
        await context.abort(refusal.code, refusal.message, refusal.trailers)

    return grpc.stream_unary_rpc_method_handler(refuse)
