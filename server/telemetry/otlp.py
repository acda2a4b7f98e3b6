"""A span for each traced call and one for each of its stages, sent in batches by a thread of OpenTelemetry's.

The decision whether a call is traced is made here, before OpenTelemetry is asked: its own way to say no takes longer than a
good answer's whole reply.
"""

import random
import re
import time
import uuid
from collections.abc import Iterable

import grpc
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    TraceState,
    set_span_in_context,
)

from server.telemetry.current import CALL, Call

_EXPORT_SECONDS = 3.0  # for one batch, tries and all: what a stop may have to wait for
# https://www.w3.org/TR/trace-context/: version, trace, parent, flags; later versions may add fields.
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
# What is the server's fault and not the caller's, as OpenTelemetry's conventions for gRPC have it.
_FAULTS = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)


class CallTrace:
    """One traced call. Times are time.monotonic seconds. Any thread may call, but for `end` once, and last."""

    def __init__(self, tracer: Tracer, span: Span, started_s: float, clock_offset_ns: int) -> None:
        """clock_offset_ns: what is to be added to time.monotonic_ns to have nanoseconds since 1970."""
        self._tracer = tracer
        self._span = span
        self._offset_ns = clock_offset_ns
        self.started_s = started_s
        context = span.get_span_context()
        self.trace_id = f"{context.trace_id:032x}"
        self.span_id = f"{context.span_id:016x}"

    def stage(self, name: str, start_s: float, end_s: float) -> None:
        """A part of the call that has ended."""
        span = self._tracer.start_span(name, set_span_in_context(self._span, Context()), start_time=self._epoch_ns(start_s))
        span.end(self._epoch_ns(end_s))

    def in_turn(self, start_s: float, *stages: tuple[str, int]) -> None:
        """Stages that followed each other: names and microseconds. What took no time is left out."""
        for name, microseconds in stages:
            end_s = start_s + microseconds / 1e6
            if microseconds:
                self.stage(name, start_s, end_s)
            start_s = end_s

    def end(self, code: grpc.StatusCode) -> None:
        """The call has ended."""
        number: int = code.value[0]
        self._span.set_attribute("rpc.grpc.status_code", number)
        if code in _FAULTS:
            self._span.set_status(Status(StatusCode.ERROR, code.name))
        self._span.end()

    def _epoch_ns(self, monotonic_s: float) -> int:
        return int(monotonic_s * 1e9) + self._offset_ns


class Traces:
    """Makes and sends spans. What cannot be sent in time, or waits beside 2,048 others, is dropped: calls never wait for it.

    OpenTelemetry's environment variables say the rest: OTEL_EXPORTER_OTLP_HEADERS, OTEL_EXPORTER_OTLP_CERTIFICATE,
    OTEL_RESOURCE_ATTRIBUTES, OTEL_BSP_SCHEDULE_DELAY.
    """

    def __init__(self, endpoint: str, sampled_share: float) -> None:
        """sampled_share: of the calls whose caller has not decided, how many are traced."""
        self._share = sampled_share
        resource = Resource.create({"service.name": "towerbridge", "service.instance.id": str(uuid.uuid4())})
        self._provider = TracerProvider(ALWAYS_ON, resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint, timeout=_EXPORT_SECONDS)))
        self._tracer = self._provider.get_tracer("towerbridge")

    def start(self, method: str, metadata: Iterable[tuple[str, str | bytes]], tenant: str) -> CallTrace | None:
        """A call has come in: its full method name, and its metadata. None if it is not traced.

        Where the caller sends a trace, or one begins here, CALL is set, so that logs name it, recorded or not.
        """
        parent, state = "", ""
        for key, value in metadata:
            if key == "traceparent" and isinstance(value, str):
                parent = value
            elif key == "tracestate" and isinstance(value, str):
                state = value
        sent = _TRACEPARENT.fullmatch(parent) if parent else None
        if sent is None:
            return self._begin(method, tenant, Context()) if random.random() < self._share else None
        trace_id, span_id, flags = sent.groups()
        if not int(flags, 16) & TraceFlags.SAMPLED:
            CALL.set(Call(tenant, method, trace_id))
            return None
        caller = SpanContext(
            int(trace_id, 16), int(span_id, 16), True, TraceFlags(TraceFlags.SAMPLED), TraceState.from_header([state])
        )
        return self._begin(method, tenant, set_span_in_context(NonRecordingSpan(caller), Context()))

    def close(self) -> None:
        """Sends what waits, if that is possible within seconds, and ends the thread."""
        self._provider.shutdown()

    def _begin(self, method: str, tenant: str, parent: Context) -> CallTrace:
        service, _, name = method.removeprefix("/").rpartition("/")
        started_ns, offset_ns = time.monotonic_ns(), time.time_ns() - time.monotonic_ns()
        span = self._tracer.start_span(
            f"{service}/{name}",
            parent,
            SpanKind.SERVER,
            {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name, "towerbridge.tenant": tenant},
            start_time=started_ns + offset_ns,
        )
        trace = CallTrace(self._tracer, span, started_ns / 1e9, offset_ns)
        CALL.set(Call(tenant, method, trace.trace_id, trace.span_id, trace))
        return trace
