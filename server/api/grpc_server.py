"""gRPC's server, whose calls are taken and answered on one thread: the event loop's."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import grpc
from grpc._cython.cygrpc import Server

from server.api.call_loop import CallLoop
from server.api.context import Context, Handler
from server.api.refusals import Refusal

_ASKED_FOR = 16  # calls that gRPC may hand over before it is asked for more
_PENDING = 20_000  # calls that came while the loop did other things, which are then let in, or refused
# Else gRPC's core ends what goes beyond 1,000 with CANCELLED, by chance, and nobody is told to come back later.
_ALL_THAT_COME = (("grpc.server.max_pending_requests", _PENDING), ("grpc.server.max_pending_requests_hard_limit", 2 * _PENDING))


class GrpcServer:
    """Gives every call that comes to `service`, which says what answers it. All on the event loop.

    It stands on what gRPC's own server for threads stands on, and neither on that nor on the one for asyncio: both hand every
    call from thread to thread. All that has come is given to `service` before any of it is worked on.
    """

    def __init__(
        self, loop: CallLoop, service: Callable[[Context], Handler | Refusal], options: Sequence[tuple[str, Any]]
    ) -> None:
        """options: gRPC's channel arguments."""
        self._loop = loop
        self._service = service
        self._core = Server((*options, *_ALL_THAT_COME), False)  # not configured by xDS
        self._core.register_completion_queue(loop.queue)
        self._running: set[asyncio.Task[Any]] = set()
        self._stops = False

    def add_port(self, address: str, credentials: grpc.ServerCredentials | None) -> int:
        """Listens; returns the port. credentials: None: without TLS. Raises RuntimeError if it cannot."""
        # As gRPC's own servers do: there is no public way from credentials to its core's.
        secured = () if credentials is None else (credentials._credentials,)  # type: ignore[attr-defined]
        port: int = self._core.add_http2_port(address.encode(), *secured)
        if port == 0:
            raise RuntimeError(f"gRPC cannot listen on {address}")
        return port

    def start(self) -> None:
        """Takes calls."""
        self._core.start()
        for _ in range(_ASKED_FOR):
            self._ask()

    async def stop(self, grace_s: float) -> None:
        """Takes no more calls, and ends when those in flight have; they are cancelled after the time given. Once is enough."""
        if self._stops:
            return
        self._stops = True
        over: asyncio.Future[None] = self._loop.create_future()
        self._core.shutdown(self._loop.queue, lambda event: over.set_result(None))
        done, _ = await asyncio.wait((over,), timeout=grace_s)
        if not done:
            self._core.cancel_all_calls()
            await over
        while self._running:
            await asyncio.wait(tuple(self._running))
        self._core.destroy()

    def _ask(self) -> None:
        self._core.request_call(self._loop.queue, self._loop.queue, self._came)

    def _came(self, event: Any) -> None:
        if not self._stops:
            self._ask()
        if not event.success:  # the server stops
            return
        self._loop.waker = event.call
        context = Context(event, self._loop, self._running)
        try:
            answer = self._service(context)
            if isinstance(answer, Refusal):
                context.end(answer.code, answer.message, answer.trailers)
            else:
                context.answer(answer)
        except Exception as error:
            context.fail(error)
