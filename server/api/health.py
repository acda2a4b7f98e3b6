"""Health, as grpc.health.v1 says it.

Not grpcio-health-checking's own servicer: there, the watchers of a service hear nothing more once one of them has left, and a
shutdown takes every name with it, that of the process itself too.
"""

import asyncio
from collections.abc import Iterable
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from server.errors import NotFound

NAME = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
LIVE = "towerbridge.live"
"""The name of the process itself: SERVING from the moment that the port is open, to the end."""
_Status = health_pb2.HealthCheckResponse


class HealthServicer(health_pb2_grpc.HealthServicer):
    """Whether each service serves. On the event loop."""

    def __init__(self, services: Iterable[str]) -> None:
        """services: their full names. They do not serve yet; the process lives."""
        self._services = ("", *services)
        self._status = dict.fromkeys(self._services, _Status.NOT_SERVING) | {LIVE: _Status.SERVING}
        self._changed = asyncio.Event()
        self._over = False

    def serving(self) -> None:
        """Every service serves, unless it is over with that."""
        if not self._over:
            self._set(_Status.SERVING)

    def not_serving(self) -> None:
        """No service serves any more, for good."""
        self._over = True
        self._set(_Status.NOT_SERVING)

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> health_pb2.HealthCheckResponse:
        status = self._status.get(request.service)
        if status is None:
            raise NotFound(f"there is no service {request.service!r} here; leave it empty for the server as a whole")
        return _Status(status=status)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:
        last = None
        while True:
            changed, status = self._changed, self._status.get(request.service, _Status.SERVICE_UNKNOWN)
            if status != last:
                last = status
                await context.write(_Status(status=status))
            else:
                await changed.wait()

    def _set(self, status: Any) -> None:
        self._status |= dict.fromkeys(self._services, status)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
