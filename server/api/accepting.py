"""gRPC's server for asyncio, which here takes in all the calls that have come before it works on any."""

import asyncio
import threading
import time
from collections import deque
from functools import partial
from typing import Any

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]

_AT_ONCE = 128  # calls: what comes while the loop is held up for a quarter of a second at 500 calls a second
_patching = threading.Lock()


class Crowd:
    """The calls that gRPC has handed over, until each is let in, or refused. On the event loop."""

    def __init__(self) -> None:
        self._calls: deque[tuple[Any, float]] = deque()
        self._next: asyncio.Future[Any] | None = None  # who waits for a call
        self._over: Exception | None = None
        self._waiting: list[asyncio.Future[None]] = []
        self._left = 0  # calls to be let in until those who wait go on
        self.since = 0.0
        """time.monotonic seconds: when the one that is let in came, or one just after it; 0 if gRPC asks in another way."""

    def put(self, call: Any) -> None:
        """One more."""
        if self._over is None:
            self._calls.append((call, time.monotonic()))
            self._hand_over()

    def end(self, error: Exception) -> None:
        """There will be no more; those that are there end as gRPC ends calls that come while it stops."""
        self._over = error
        self._calls.clear()
        self._go_on()
        self._hand_over()

    def take(self) -> asyncio.Future[Any]:
        """The next one, to be let in."""
        following: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self._calls or self._over is not None:
            self._give(following)
        else:
            self._next = following
        return following

    async def all_let_in(self) -> None:
        """Waits until as many were let in as were there when the first of those who wait began to: not for all that come."""
        if self._calls:
            if not self._waiting:
                self._left = len(self._calls)
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            await waiter

    def _hand_over(self) -> None:
        if self._next is not None and not self._next.done():
            following, self._next = self._next, None
            self._give(following)

    def _give(self, following: asyncio.Future[Any]) -> None:
        if self._over is not None:
            following.set_exception(self._over)
            return
        call, self.since = self._calls.popleft()
        following.set_result(call)
        self._left -= 1
        if self._left <= 0 or not self._calls:
            self._go_on()

    def _go_on(self) -> None:
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)


def accepting_server(handler: grpc.GenericRpcHandler, crowd: Crowd, options: list[tuple[str, Any]]) -> grpc.aio.Server:
    """grpc.aio.server, which asks gRPC for many calls at a time. To be called on the event loop that will run it.

    Of itself it asks for one, and for the next on a later turn of the event loop. What comes faster waits within gRPC, in the
    order of arrival and without a bound, where no limit counts it: at twice the rate that could be answered every call was
    accepted after its caller had given up.
    """
    with _patching:
        plain = cygrpc.AioServer
        cygrpc.AioServer = partial(_Server, crowd)  # gRPC offers no other way to say so
        try:
            return grpc.aio.server(handlers=[handler], options=options)
        finally:
            cygrpc.AioServer = plain


class _Server(cygrpc.AioServer):  # type: ignore[misc]
    def __init__(self, crowd: Crowd, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._crowd = crowd
        self._askers: list[asyncio.Task[None]] = []

    def _make_request_call_future(self, method: bytes | None = None) -> asyncio.Future[Any]:
        """The next call, for gRPC's own loop. A gRPC that asks in another way finds nothing changed.

        method: for one that is registered by name, as none is here.
        """
        if method is not None:
            registered: asyncio.Future[Any] = super()._make_request_call_future(method)
            return registered
        if not self._askers:
            self._askers = [asyncio.ensure_future(self._ask()) for _ in range(_AT_ONCE)]
        return self._crowd.take()

    async def _ask(self) -> None:
        """Until the server stops, which gRPC tells by an error."""
        while True:
            try:
                self._crowd.put(await self._request_call())
            except Exception as error:
                if not self.is_running() or isinstance(error, grpc.aio.InternalError):
                    self._crowd.end(error)
                    return
