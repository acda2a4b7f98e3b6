"""gRPC's server for asyncio, which here takes in all the calls that have come."""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]

_AT_ONCE = 64  # calls: what comes while the loop is held up for an eighth of a second at 500 calls a second


def accepting_server(handlers: Sequence[grpc.GenericRpcHandler], options: Sequence[tuple[str, Any]]) -> grpc.aio.Server:
    """grpc.aio.server, which asks gRPC for many calls at a time. To be called on the event loop that will run it.

    Of itself it asks for one, and for the next on a later turn of the event loop. What comes faster waits within gRPC, in the
    order of arrival and without a bound, where no limit counts it: at twice the rate that could be answered every call was
    accepted after its caller had given up.
    """
    plain = cygrpc.AioServer
    cygrpc.AioServer = _Server  # gRPC offers no other way to say so
    try:
        return grpc.aio.server(handlers=handlers, options=options)
    finally:
        cygrpc.AioServer = plain


class _Server(cygrpc.AioServer):  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._accepted: deque[Any] = deque()  # calls, and an error when there will be no more
        self._waiting: asyncio.Future[None] | None = None
        self._askers: list[asyncio.Task[None]] = []

    async def _request_call(self) -> Any:
        """The next call, for gRPC's own loop. A gRPC that asks in another way finds nothing changed."""
        if not self._askers:
            self._askers = [asyncio.ensure_future(self._ask()) for _ in range(_AT_ONCE)]
        while not self._accepted:
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting
        call = self._accepted.popleft()
        if isinstance(call, Exception):
            raise call
        return call

    async def _ask(self) -> None:
        """Until the server stops, which gRPC tells by an error."""
        call: Any = None
        while not isinstance(call, Exception):
            try:
                call = await super()._request_call()
            except Exception as error:
                call = error
            self._accepted.append(call)
            if self._waiting is not None and not self._waiting.done():
                self._waiting.set_result(None)
