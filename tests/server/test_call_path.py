"""What happens to a call before its handler: room, deadline, keys, and what a refusal costs nobody."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
import towerbridge
from grpc_health.v1 import health_pb2, health_pb2_grpc
from towerbridge import v1
from towerbridge.v1 import event_pb2, event_pb2_grpc, recommendation_pb2_grpc, release_pb2_grpc

from server.app import App
from server.config import Config
from tests.server.conftest import PRESUMED, Serve, Served

PATIENCE_S = 20.0
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@contextmanager
def channel_to(port: int) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel


@contextmanager
def busy_engine(served: Served) -> Iterator[None]:
    """Calls that need the engine stay in flight meanwhile."""
    let_go, reached = threading.Event(), threading.Event()

    def hold() -> None:
        reached.set()
        let_go.wait(PATIENCE_S)

    served.app.tenant._engine.call(hold)
    assert reached.wait(PATIENCE_S)
    try:
        yield
    finally:
        let_go.set()


def wait_until_queued(served: Served, count: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while len(served.app.tenant._engine._queries) != count:
        assert time.monotonic() < deadline, "they never came"
        time.sleep(0.005)


def by_vector(limit: int = 1) -> v1.RecommendRequest:
    return v1.RecommendRequest(subject=v1.Subject(vector=v1.UserVector(values=[1.0] * 8)), limit=limit)


def test_over_the_limit_a_read_is_refused_with_a_time_to_wait_and_writes_and_administration_go_on(serve: Serve):
    served = serve(overload={"max_reads": 2})
    with channel_to(served.app.port) as channel:
        reads = recommendation_pb2_grpc.RecommendationServiceStub(channel)
        with busy_engine(served):
            in_flight = [reads.Recommend.future(by_vector(), timeout=PATIENCE_S) for _ in range(2)]
            wait_until_queued(served, 2)
            with pytest.raises(grpc.RpcError) as refused:
                reads.Recommend(by_vector(), timeout=PATIENCE_S)
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert int(dict(refused.value.trailing_metadata())["grpc-retry-pushback-ms"]) > 0
            assert served.client.record_events([towerbridge.event("view", "item-1", user_id="a")]).results
            releases = release_pb2_grpc.ReleaseServiceStub(channel)
            assert releases.ListReleases(v1.ListReleasesRequest(), timeout=PATIENCE_S).releases
        assert [len(one.result().item_ids) for one in in_flight] == [1, 1]
    assert served.app.tenant.limits.reads.in_flight == 0


def test_calls_whose_caller_left_make_room_again(serve: Serve):
    served = serve(overload={"max_reads": 2})
    with channel_to(served.app.port) as channel:
        reads = recommendation_pb2_grpc.RecommendationServiceStub(channel)
        with busy_engine(served):
            for call in [reads.Recommend.future(by_vector(), timeout=PATIENCE_S) for _ in range(2)]:
                call.cancel()
        deadline = time.monotonic() + PATIENCE_S
        while served.app.tenant.limits.reads.taken:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        assert reads.Recommend(by_vector(), timeout=PATIENCE_S).item_ids


def test_a_call_whose_time_is_over_when_its_turn_comes_is_not_worked_on(shared: Served):
    """The loop is held, so that the call's deadline has passed before its handler can begin."""
    asked: list[object] = []
    engine = shared.app.tenant._engine
    before = engine.ask, engine.ask_here
    engine.ask = engine.ask_here = lambda query: asked.append(query)  # type: ignore
    try:
        with channel_to(shared.app.port) as channel:
            stub = recommendation_pb2_grpc.RecommendationServiceStub(channel)
            grpc.channel_ready_future(channel).result(PATIENCE_S)
            shared.app._edge._loop.call_soon_threadsafe(time.sleep, 0.5)
            with pytest.raises(grpc.RpcError) as caught:
                stub.Recommend(by_vector(), timeout=0.2)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            time.sleep(0.5)
    finally:
        engine.ask, engine.ask_here = before  # type: ignore[method-assign]
    assert asked == []


def test_a_refused_call_is_answered_before_its_message_has_come(serve: Serve):
    """A caller who may not call cannot make the server take in what it sends."""
    served = serve(overload={"max_ingests": 1})
    limit = served.app.tenant.limits.ingests
    limit.enter(limit.let_in())
    with channel_to(served.app.port) as channel:
        started = threading.Event()

        def forever() -> Iterator[bytes]:
            started.set()
            time.sleep(PATIENCE_S)
            yield b""

        call = channel.stream_unary("/towerbridge.v1.EventService/RecordEvents")
        with pytest.raises(grpc.RpcError) as refused:
            call(forever(), timeout=5.0)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_call_whose_message_comes_late_is_refused_if_others_have_its_place_meanwhile(serve: Serve):
    served = serve(overload={"max_ingests": 1})
    limit = served.app.tenant.limits.ingests
    with channel_to(served.app.port) as channel:
        come = threading.Event()

        def late() -> Iterator[bytes]:
            come.wait(PATIENCE_S)
            yield event_pb2.RecordEventsRequest().SerializeToString()

        came, let_in = threading.Event(), limit.let_in
        limit.let_in = lambda: (let_in(), came.set())[0]
        call = channel.stream_unary("/towerbridge.v1.EventService/RecordEvents").future(late(), timeout=PATIENCE_S)
        assert came.wait(PATIENCE_S)
        limit.let_in = let_in
        deadline = time.monotonic() + PATIENCE_S
        while limit.taken:  # its message does not come
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert limit.enter(limit.let_in())
        come.set()
        assert call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert int(dict(call.trailing_metadata())["grpc-retry-pushback-ms"]) > 0


def test_until_everything_is_loaded_the_process_is_live_and_not_ready(bundle_path: Path, tmp_path: Path):
    app = App(Config(bundle=bundle_path, data=tmp_path / "data", listen={"port": 0}, consent=PRESUMED))  # type: ignore[arg-type]
    try:
        with channel_to(app.port) as channel:
            health = health_pb2_grpc.HealthStub(channel)

            def status(service: str) -> int:
                answer: int = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE_S).status
                return answer

            assert status("towerbridge.live") == SERVING
            assert status("") == status("towerbridge.v1.RecommendationService") == NOT_SERVING
            with pytest.raises(grpc.RpcError) as refused:
                event_pb2_grpc.EventServiceStub(channel).RecordEvents(v1.RecordEventsRequest(), timeout=PATIENCE_S)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE and "loading" in refused.value.details()
            app.start()
            assert status("") == status("towerbridge.v1.RecommendationService") == status("towerbridge.live") == SERVING
    finally:
        app.stop()


def test_no_call_that_was_taken_is_lost_when_the_server_stops(serve: Serve):
    """Callers keep calling over the stop: each call has its whole answer, or a status that says to go elsewhere."""
    served = serve(listen={"drain_seconds": 10.0})
    elsewhere = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
    outcomes: list[grpc.StatusCode] = []
    acknowledged: list[str] = []

    def caller(name: str) -> None:
        with channel_to(served.app.port) as channel:
            events = event_pb2_grpc.EventServiceStub(channel)
            reads = recommendation_pb2_grpc.RecommendationServiceStub(channel)
            for number in range(100_000):
                event = v1.Event(event_id=f"{name}-{number}", user_id=name, item_id="item-1", type="view")
                try:
                    events.RecordEvents(v1.RecordEventsRequest(events=[event]), timeout=PATIENCE_S)
                    acknowledged.append(event.event_id)
                    assert len(reads.Recommend(by_vector(3), timeout=PATIENCE_S).item_ids) == 3
                except grpc.RpcError as error:
                    outcomes.append(error.code())
                    return

    callers = [threading.Thread(target=caller, args=(f"caller-{number}",)) for number in range(8)]
    for thread in callers:
        thread.start()
    while len(acknowledged) < 50:
        time.sleep(0.005)
    serve.stop(served)  # type: ignore[attr-defined]
    for thread in callers:
        thread.join(PATIENCE_S)
    assert len(outcomes) == len(callers) and set(outcomes) <= elsewhere
    again = serve()
    results = again.client.record_events(
        [towerbridge.event("view", "item-1", user_id=one.rpartition("-")[0], event_id=one) for one in acknowledged]
    ).results
    assert [one.status for one in results] == [event_pb2.EVENT_STATUS_DUPLICATE] * len(acknowledged)
