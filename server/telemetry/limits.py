"""How many calls are in flight, and how many may be."""

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from server.overload.limits import Limits
from server.security.roles import Role

_LABELS = ("tenant", "role", "kind")


class LimitFigures(Collector):
    """Reads a tenant's limits."""

    def __init__(self, tenant: str, limits: Limits) -> None:
        unary, streams = (
            {role: limits.of(role, stream=stream) for role in (Role.READ, Role.INGEST)} for stream in (False, True)
        )
        self._rows = [
            *((tenant, role.value, "unary", limit) for role, limit in unary.items()),
            *((tenant, role.value, "stream", limit) for role, limit in streams.items()),
            (tenant, Role.ADMIN.value, "any", limits.of(Role.ADMIN, stream=False)),  # audience's calls are among them
        ]

    def collect(self) -> Iterator[Metric]:
        in_flight = GaugeMetricFamily("towerbridge_calls_in_flight", "Calls that are being answered.", labels=_LABELS)
        limit = GaugeMetricFamily("towerbridge_calls_limit", "How many may be; one more is refused.", labels=_LABELS)
        for *labels, one in self._rows:
            in_flight.add_metric(labels, one.in_flight)
            limit.add_metric(labels, one.limit)
        yield in_flight
        yield limit
