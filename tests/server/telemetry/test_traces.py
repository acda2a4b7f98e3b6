"""Spans, as a collector receives them."""

import contextvars
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import grpc
import pytest
import towerbridge
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from towerbridge import v1
from towerbridge.v1 import recommendation_pb2_grpc

from server import config
from server.errors import StartupError
from server.telemetry.current import CALL, Call, trace
from server.telemetry.otlp import CallTrace, Traces
from server.telemetry.traces import open_traces
from tests.server.releasing import serving
from tests.server.telemetry.collector import Collector, attributes, collecting

METHOD = "/towerbridge.v1.RecommendationService/Recommend"
NAME = METHOD.removeprefix("/")
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SENT = f"00-{TRACE}-{PARENT}-01"
T = TypeVar("T")


def in_call(work: Callable[[], T]) -> T:
    """As gRPC does: each call has a context of its own."""
    return contextvars.copy_context().run(work)


@contextmanager
def tracing(share: float) -> Iterator[tuple[Collector, Traces]]:
    """Closing the traces sends what waits."""
    with collecting() as collector:
        traces = open_traces(config.Traces(endpoint=collector.endpoint, sampled_share=share))
        assert traces is not None
        with closing(traces):
            yield collector, traces


def test_a_call_is_a_span_of_the_callers_trace_and_its_stages_are_spans_below_it():
    with tracing(0.0) as (collector, traces):

        def call() -> CallTrace | None:
            made = traces.start(METHOD, [("user-agent", "x"), ("traceparent", SENT), ("tracestate", "shop=1")], "shop")
            assert made is not None and trace() is made
            now = made.started_s
            made.stage("rules", now + 0.004, now + 0.005)
            made.in_turn(now + 0.001, ("queue", 500), ("encode", 0), ("search", 1500))
            made.end(grpc.StatusCode.OK)
            return made

        made = in_call(call)
        traces.close()
        spans = collector.take(4)
    root = spans.pop(NAME)
    assert (root.trace_id.hex(), root.parent_span_id.hex(), root.trace_state) == (TRACE, PARENT, "shop=1")
    assert (made.trace_id, made.span_id) == (TRACE, root.span_id.hex())
    assert root.kind == Span.SPAN_KIND_SERVER
    assert attributes(root) == {
        "rpc.system": "grpc",
        "rpc.service": "towerbridge.v1.RecommendationService",
        "rpc.method": "Recommend",
        "rpc.grpc.status_code": 0,
        "towerbridge.tenant": "shop",
    }
    assert set(spans) == {"queue", "search", "rules"}
    for span in spans.values():
        assert (span.trace_id, span.parent_span_id) == (root.trace_id, root.span_id)
    took_us = {name: round((span.end_time_unix_nano - span.start_time_unix_nano) / 1000) for name, span in spans.items()}
    assert took_us == {"queue": 500, "search": 1500, "rules": 1000}
    assert abs(spans["search"].start_time_unix_nano - spans["queue"].end_time_unix_nano) < 1000
    assert round((spans["queue"].start_time_unix_nano - root.start_time_unix_nano) / 1000) == 1000
    assert collector.resources[0]["service.name"] == "towerbridge"


def test_a_traced_recommend_shows_where_its_time_went(bundle_path: Path, tmp_path: Path):
    with collecting() as collector:
        traces_to = {"endpoint": collector.endpoint, "sampled_share": 0.0}
        with serving(bundle_path, tmp_path / "data", traces=traces_to) as served:
            served.client.record_events([towerbridge.event("view", "item-1", user_id="ann")])
            with grpc.insecure_channel(f"127.0.0.1:{served.app.port}") as channel:
                recommend = recommendation_pb2_grpc.RecommendationServiceStub(channel).Recommend
                request = v1.RecommendRequest(subject=v1.Subject(user_id="ann"), limit=3)
                assert recommend(request, metadata=[("traceparent", SENT)], timeout=20).item_ids
        spans: dict[str, Span] = {}
        while not collector.is_empty:  # the server has sent all before it ended
            spans |= collector.take(1)
    root = spans.pop(NAME)
    assert root.trace_id.hex() == TRACE
    assert {"search", "rules"} <= set(spans)
    for span in spans.values():
        assert span.parent_span_id == root.span_id
        assert root.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano <= root.end_time_unix_nano


def test_what_the_caller_has_decided_not_to_trace_is_not_but_its_logs_say_which_trace_it_is_of():
    with tracing(1.0) as (collector, traces):

        def call() -> Call | None:
            assert traces.start(METHOD, [("traceparent", SENT[:-1] + "0")], "shop") is None
            assert trace() is None
            return CALL.get()

        assert in_call(call) == Call("shop", METHOD, TRACE)
        traces.close()
        assert collector.is_empty


def test_without_the_callers_decision_the_configured_share_is_traced():
    with tracing(0.25) as (_, traces):
        made = [in_call(lambda: traces.start(METHOD, (), "shop")) for _ in range(2000)]
    traced = [one for one in made if one is not None]
    assert 380 < len(traced) < 620  # 500, give or take 6 standard deviations
    assert len({one.trace_id for one in traced}) == len(traced)


@pytest.mark.parametrize(
    "broken",
    [
        "",
        "nonsense",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-0",
        f"00-{TRACE}-{PARENT}-01x",
    ],
)
def test_a_broken_traceparent_is_as_none(broken: str):
    with tracing(0.0) as (_, traces):
        assert in_call(lambda: traces.start(METHOD, [("traceparent", broken)], "shop")) is None


def test_a_traceparent_of_a_later_version_is_understood():
    with tracing(0.0) as (_, traces):
        made = in_call(lambda: traces.start(METHOD, [("traceparent", f"01-{TRACE}-{PARENT}-01-more")], "shop"))
        assert made is not None and made.trace_id == TRACE


def test_the_servers_faults_are_errors_and_the_callers_are_not():
    with tracing(1.0) as (collector, traces):
        for code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT):
            made = in_call(partial(traces.start, f"/x.Y/{code.name}", (), "shop"))
            assert made is not None
            made.end(code)
        traces.close()
        spans = collector.take(2)
    assert spans["x.Y/INTERNAL"].status.code == Status.STATUS_CODE_ERROR
    assert spans["x.Y/INTERNAL"].status.message == "INTERNAL"
    assert spans["x.Y/INVALID_ARGUMENT"].status.code == Status.STATUS_CODE_UNSET
    assert attributes(spans["x.Y/INVALID_ARGUMENT"])["rpc.grpc.status_code"] == 3


def test_without_a_collector_calls_go_on_and_closing_ends_the_thread():
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        nowhere = f"http://127.0.0.1:{taken.getsockname()[1]}"
    before = set(threading.enumerate())
    traces = open_traces(config.Traces(endpoint=nowhere, sampled_share=1.0))
    assert traces is not None
    made = in_call(lambda: traces.start(METHOD, (), "shop"))
    assert made is not None
    made.end(grpc.StatusCode.OK)
    traces.close()
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("Otel")]


@pytest.mark.parametrize("endpoint", ["localhost:4317", "http://", "ftp://somewhere:1", "4317"])
def test_an_endpoint_that_is_none_is_refused_with_an_example(endpoint: str):
    with pytest.raises(StartupError, match=r"^traces\.endpoint: .* is no address; give one such as http://localhost:4317$"):
        open_traces(config.Traces(endpoint=endpoint))


def test_nothing_of_opentelemetry_is_imported_without_an_endpoint():
    run("assert open_traces(config.Traces()) is None; assert not [one for one in sys.modules if 'opentelemetry' in one]")


def test_without_the_extra_the_start_says_what_to_install():
    said = run(
        "sys.modules['opentelemetry'] = None\n"
        "try: open_traces(config.Traces(endpoint='http://localhost:4317'))\n"
        "except StartupError as error: print(error)"
    )
    assert said.strip() == (
        'traces.endpoint: needs OpenTelemetry, which is not installed; pip install "towerbridge[traces]", or unset it'
    )


def run(code: str) -> str:
    """In a process of its own; what it prints."""
    code = (
        f"import sys\nfrom server import config\nfrom server.errors import StartupError\n"
        f"from server.telemetry.traces import open_traces\n{code}"
    )
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120).stdout
