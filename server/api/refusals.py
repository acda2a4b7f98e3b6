"""Calls that are refused before anything of them is read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import cache
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

    For gRPC it takes a stream, whatever the method takes: of a unary one gRPC would read the message first, however large. It
    gives a stream too, of nothing: the status alone is sent. `abort` would say the same by an error, which gRPC catches at a
    fifth of a refusal's price, and which leaves a circle of references to be collected.
    """
    return _refusing(refusal) if first is None else _handler(refusal, first)


@cache
def _refusing(refusal: Refusal) -> Any:
    return _handler(refusal, None)


def _handler(refusal: Refusal, first: Callable[[Any], Awaitable[None]] | None) -> Any:
    trailers = refusal.trailers

    async def refuse(_: object, context: Any) -> None:
        if first is not None:
            await first(context)
        context.set_code(refusal.code)
        context.set_details(refusal.message)
        context.set_trailing_metadata(trailers)

    return grpc.stream_stream_rpc_method_handler(refuse)
