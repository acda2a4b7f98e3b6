"""The gRPC server: one event loop in a thread of its own."""

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import grpc
import uvloop
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from server.api.status import ErrorInterceptor
from server.config import Listen
from server.errors import StartupError

T = TypeVar("T")
_IN_USE = "cannot listen on {address}; is another server running there? Choose another --port"
_REFUSE_SECONDS = 0.1
_CHANGES_AT_ONCE = 8  # catalogue changes in flight; they wait for encoder, engine and disk in threads


def check_port(listen: Listen) -> None:
    """Raises StartupError if nothing can listen there now."""
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    try:
        socket.create_server((listen.host.strip("[]"), listen.port), family=family).close()
    except OSError as error:
        address = f"{listen.host}:{listen.port}"
        raise StartupError(f"{_IN_USE.format(address=address)} ({error.strerror or error})") from None


class Edge:
    """Listens, and runs the servicers, which are coroutines. asyncio with uvloop: see ARCHITECTURE.md for the measurement.

    The port is bound at construction and answers nothing before `start`.
    """

    def __init__(self, listen: Listen, register: Callable[[grpc.aio.Server], None], services: Sequence[str]) -> None:
        """register: adds the servicers. services: their full names, for health and reflection. Raises StartupError."""
        self._listen = listen
        self._services = services
        self._health = health.aio.HealthServicer()
        self._interceptor = ErrorInterceptor()
        self._loop = uvloop.new_event_loop()
        self._loop.set_default_executor(ThreadPoolExecutor(_CHANGES_AT_ONCE, thread_name_prefix="changes"))
        self._thread = threading.Thread(target=self._loop.run_forever, name="rpc-loop", daemon=True)
        self._thread.start()
        try:
            self._server, self.port = self._run(self._bind(register))
        except BaseException:
            self._end_loop()
            raise

    def start(self) -> None:
        """Serves; health says SERVING for every service."""
        self._run(self._start())

    def not_serving(self) -> None:
        """Health says NOT_SERVING from now on. Any thread may call it; it does not wait."""
        if not self._loop.is_closed():
            asyncio.run_coroutine_threadsafe(self._health.enter_graceful_shutdown(), self._loop)

    def stop(self) -> None:
        """Takes no new calls, gives those in flight the configured time to end, and ends."""
        self._run(self._drain())
        self._end_loop()

    async def _bind(self, register: Callable[[grpc.aio.Server], None]) -> tuple[grpc.aio.Server, int]:
        listen = self._listen
        server = grpc.aio.server(
            interceptors=[self._interceptor],
            maximum_concurrent_rpcs=listen.max_concurrent_rpcs,
            options=[
                ("grpc.max_receive_message_length", listen.max_message_bytes),
                ("grpc.max_send_message_length", listen.max_message_bytes),
                # Two servers on one port would share its connections silently.
                ("grpc.so_reuseport", 0),
            ],
        )
        host = f"[{listen.host}]" if ":" in listen.host and not listen.host.startswith("[") else listen.host  # IPv6
        address = f"{host}:{listen.port}"
        try:
            port = server.add_insecure_port(address)
        except RuntimeError:
            port = 0
        if not port:
            raise StartupError(_IN_USE.format(address=address))
        register(server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (*self._services, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        return server, port

    async def _start(self) -> None:
        await self._server.start()
        for service in ("", *self._services):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)

    async def _drain(self) -> None:
        await self._health.enter_graceful_shutdown()
        # gRPC ends calls that arrive while it stops with CANCELLED, which nobody repeats: so they are refused first.
        self._interceptor.drain()
        await asyncio.sleep(_REFUSE_SECONDS)
        await self._server.stop(self._listen.drain_seconds)

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _end_loop(self) -> None:
        self._run(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
