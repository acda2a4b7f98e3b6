"""The gRPC server: one event loop in a thread of its own."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from server.api import health
from server.api.call_loop import CallLoop
from server.api.calls import Calls, Served
from server.api.grpc_server import GrpcServer
from server.api.handlers import Handlers
from server.config import Listen, Overload
from server.errors import StartupError
from server.overload.limits import Limits

T = TypeVar("T")
_IN_USE = "cannot listen on {address}; is another server running there? Choose another --port, or a --host of this machine"
_REFLECTION = "/grpc.reflection.{}.ServerReflection/ServerReflectionInfo"
_OR_UNFIT = "; if none is, gRPC does not take the TLS certificate: its keyUsage, where it has one, needs digitalSignature"
_REFUSE_SECONDS = 0.1
_CHANGES_AT_ONCE = 8  # catalogue changes in flight; they wait for encoder, engine and disk in threads
_BEAT_SECONDS = 0.01
_GRACE_OF_AGE_MS = 60_000  # for the calls of a connection that is closed for its age


class Edge:
    """Listens, and runs the servicers, which are coroutines. One thread for all: see ARCHITECTURE.md for the measurement.

    The port is open from construction on; until `serve` only health is answered, and any other call is UNAVAILABLE.
    """

    def __init__(
        self,
        listen: Listen,
        overload: Overload,
        credentials: grpc.ServerCredentials | None,
        calls: Calls,
        services: Sequence[str],
    ) -> None:
        """credentials: None: without TLS. services: their full names, for health and reflection. Raises StartupError."""
        self._listen = listen
        self._services = services
        self._calls = calls
        self._health = health.HealthServicer(services)
        self._lagged: Callable[[float], None] = lambda seconds: None
        self._stopped = False
        self._loop = CallLoop()
        self._loop.set_default_executor(ThreadPoolExecutor(_CHANGES_AT_ONCE, thread_name_prefix="changes"))
        self._thread = threading.Thread(target=self._loop.run_forever, name="rpc-loop", daemon=True)
        self._thread.start()
        try:
            self._server, self.port = self._run(self._bind(credentials, Limits(overload)))
        except BaseException:
            self._end_loop()
            raise

    def serve(self, tenants: Mapping[str, Served]) -> None:
        """Answers calls; health says SERVING for every service."""
        self._run(self._serve(tenants))

    def not_serving(self) -> None:
        """Health says NOT_SERVING from now on. Any thread may call it; it does not wait."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._health.not_serving)

    def stop(self) -> None:
        """Takes no new calls, gives those in flight the configured time to end, and ends. Once; again does nothing."""
        if self._stopped:
            return
        self._stopped = True
        self._run(self._drain())
        self._end_loop()

    async def _bind(self, credentials: grpc.ServerCredentials | None, limits: Limits) -> tuple[GrpcServer, int]:
        listen = self._listen
        server = GrpcServer(
            self._loop,
            self._calls.service,
            [
                ("grpc.max_receive_message_length", listen.max_message_bytes),
                ("grpc.max_send_message_length", listen.max_message_bytes),
                ("grpc.max_connection_age_ms", listen.max_connection_age_s * 1000),
                ("grpc.max_connection_age_grace_ms", _GRACE_OF_AGE_MS),
                # Two servers on one port would share its connections silently.
                ("grpc.so_reuseport", 0),
            ],
        )
        host = f"[{listen.host}]" if ":" in listen.host and not listen.host.startswith("[") else listen.host  # IPv6
        address = f"{host}:{listen.port}"
        try:
            port = server.add_port(address, credentials)
        except RuntimeError:
            raise StartupError(_IN_USE.format(address=address) + (_OR_UNFIT if credentials else "")) from None
        own = Handlers()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, cast(grpc.aio.Server, own))
        names = (*self._services, health.NAME, reflection.SERVICE_NAME)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(  # type: ignore[no-untyped-call]
            reflection.aio.ReflectionServicer(names), cast(grpc.aio.Server, own)
        )
        # Version 1 is the same under another name, and what newer tools ask for first.
        own[_REFLECTION.format("v1")] = own[_REFLECTION.format("v1alpha")]
        self._calls.offer(own, limits)
        server.start()
        return server, port

    async def _serve(self, tenants: Mapping[str, Served]) -> None:
        all_limits = [served.limits for served in tenants.values()]

        def lagged(seconds: float) -> None:
            for limits in all_limits:
                limits.loop_lagged(seconds)

        self._lagged = lagged
        self._beat(self._loop.time() + _BEAT_SECONDS)
        self._calls.serve(tenants)
        self._health.serving()

    def _beat(self, due: float) -> None:
        """Tells the limits how late the loop comes to what is due: that is how long a call waits for it."""
        now = self._loop.time()
        self._lagged(max(0.0, now - due))
        self._loop.call_at(now + _BEAT_SECONDS, self._beat, now + _BEAT_SECONDS)

    async def _drain(self) -> None:
        self._health.not_serving()
        # gRPC ends calls that arrive while it stops with CANCELLED, which nobody repeats: so they are refused first.
        self._calls.drain()
        await asyncio.sleep(_REFUSE_SECONDS)
        self._calls.end_watches()
        await self._server.stop(self._listen.drain_seconds)
        await self._calls.finish()

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _end_loop(self) -> None:
        self._run(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
