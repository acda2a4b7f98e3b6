"""Figures of calls: how many of each method ended how, how long they took, and what was shed."""

from collections import Counter
from collections.abc import Iterator
from typing import Literal

import grpc
from google.protobuf import descriptor_pool
from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from server.telemetry.histogram import Histogram, family

Kind = Literal["unary", "server_stream", "bidi_stream"]
Reason = Literal["limit", "deadline", "draining"]

_OK = grpc.StatusCode.OK
# Seconds. From 100 us: what is usual elsewhere starts where a good answer has long been given.
_BOUNDS = (
    1e-4,
    2.5e-4,
    5e-4,
    1e-3,
    2e-3,
    3e-3,
    5e-3,
    7.5e-3,
    0.01,
    0.015,
    0.02,
    0.03,
    0.05,
    0.1,
    0.2,
    0.5,
    1.0,
    2.0,
    5.0,
    10.0,
)
_LABELS = ("grpc_type", "grpc_service", "grpc_method", "tenant")
_SHED_LABELS = ("tenant", "role", "reason")


def kind_of(method: str) -> Kind:
    """Of a method by its full name, "/package.Service/Method"; unary if it is not known."""
    service, _, name = method.removeprefix("/").rpartition("/")
    try:
        found = descriptor_pool.Default().FindMethodByName(f"{service}.{name}")
    except KeyError:
        return "unary"
    return "bidi_stream" if found.client_streaming else "server_stream" if found.server_streaming else "unary"


class CallRow:
    """What became of one method's calls for one tenant. Made once, by `CallFigures.row`, and kept beside the handler."""

    __slots__ = ("_failed", "_observe", "labels", "ok", "seconds")

    def __init__(self, labels: tuple[str, str, str, str]) -> None:
        """labels: kind, service, method, tenant."""
        self.labels = labels
        self.ok = 0
        self.seconds = Histogram(_BOUNDS)
        self._failed: Counter[grpc.StatusCode] = Counter()
        self._observe = self.seconds.observe

    def done(self, code: grpc.StatusCode, seconds: float) -> None:
        """A call has ended. seconds: since its message, or a stream's start, was there."""
        if code is _OK:  # by itself: to find an enum's member in a dict runs Python
            self.ok += 1
        else:
            self._failed[code] += 1
        self._observe(seconds)

    def refused(self, code: grpc.StatusCode) -> None:
        """A call has ended before it was worked on, which says nothing of how long calls take."""
        self._failed[code] += 1

    def codes(self) -> dict[str, int]:
        """How many calls ended with each code: OK, and those that there were."""
        return {"OK": self.ok, **{code.name: count for code, count in dict(self._failed).items()}}


class CallFigures(Collector):
    """The figures of all methods and tenants, under the names that gRPC servers usually give them.

    Written on the event loop's thread only; a scrape reads them on another.
    """

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str, str, str], CallRow] = {}
        self._shed: Counter[tuple[str, str, str]] = Counter()

    def row(self, tenant: str, method: str, kind: Kind) -> CallRow:
        """The row of a method by its full name, "/package.Service/Method". The same row every time."""
        service, _, name = method.removeprefix("/").rpartition("/")
        labels = (kind, service, name, tenant)
        return self._rows.setdefault(labels, CallRow(labels))

    def shed(self, tenant: str, role: str, reason: Reason) -> None:
        """A call was refused so that others are answered in time: over the limit, out of time, or while the server drains."""
        self._shed[tenant, role, reason] += 1

    def collect(self) -> Iterator[Metric]:
        rows = list(self._rows.values())
        handled = CounterMetricFamily(
            "grpc_server_handled",
            "Calls that ended, by code, whatever they ended with.",
            labels=(*_LABELS[:3], "grpc_code", "tenant"),
        )
        for row in rows:
            *method, tenant = row.labels
            for code, count in row.codes().items():
                handled.add_metric([*method, code, tenant], count)
        yield handled
        yield family(
            "grpc_server_handling_seconds",
            "From when a call's message had come to the end of the work on it. Calls that were refused before are not in it.",
            _LABELS,
            ((row.labels, row.seconds) for row in rows),
        )
        shed = CounterMetricFamily(
            "towerbridge_shed", "Calls that were refused so that others are answered in time.", labels=_SHED_LABELS
        )
        for labels, count in dict(self._shed).items():
            shed.add_metric(labels, count)
        yield shed
