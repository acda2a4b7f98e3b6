"""From start to stop: health, reflection, draining, overload, and errors that nobody foresaw."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import towerbridge
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from towerbridge import v1
from towerbridge.v1 import event_pb2_grpc, recommendation_pb2_grpc

from server.journal.database import open_journal
from server.journal.migrations import event_hash
from server.telemetry.logs import JsonLines, hashed
from tests.server.conftest import Serve, Served

PATIENCE_S = 20.0
SERVICES = [f"towerbridge.v1.{name}Service" for name in ("Audience", "Event", "Item", "Recommendation", "Release", "User")]
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
# A call that comes in at the very moment of shutdown is ended by gRPC itself, as CANCELLED.
REFUSALS = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
INTERNAL_MESSAGE = "an internal error; the server's log has the details"


@contextmanager
def channel_to(served: Served) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{served.app.port}") as channel:
        yield channel


def health_of(channel: grpc.Channel, service: str) -> int:
    request = health_pb2.HealthCheckRequest(service=service)
    response: health_pb2.HealthCheckResponse = health_pb2_grpc.HealthStub(channel).Check(request, timeout=PATIENCE_S)
    return response.status


class Busy:
    """Holds the engine, so that calls that need it stay in flight."""

    def __init__(self, served: Served) -> None:
        self._let_go = threading.Event()
        reached = threading.Event()

        def hold() -> None:
            reached.set()
            self._let_go.wait(PATIENCE_S)

        served.app.tenant._engine.call(hold)
        assert reached.wait(PATIENCE_S)

    def let_go(self) -> None:
        self._let_go.set()


class InThread:
    """A call made by another thread."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._outcome: Any = None
        self._function = function
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._outcome = self._function()
        except Exception as error:
            self._outcome = error

    def outcome(self) -> Any:
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        return self._outcome


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)


def by_vector(served: Served) -> v1.RecommendResponse:
    return served.client.recommend(vector=[1.0] * 8, limit=1)


def test_health_says_serving_for_the_server_and_each_service_and_knows_no_others(shared: Served):
    with channel_to(shared) as channel:
        assert [health_of(channel, service) for service in ("", *SERVICES)] == [SERVING] * (1 + len(SERVICES))
        with pytest.raises(grpc.RpcError) as caught:
            health_of(channel, "towerbridge.v1.NoSuchService")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_lists_every_service(shared: Served, version: str):
    with channel_to(shared) as channel:
        ask = channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            reflection_pb2.ServerReflectionRequest.SerializeToString,
            reflection_pb2.ServerReflectionResponse.FromString,
        )
        [answer] = ask(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=PATIENCE_S)
        listed = sorted(service.name for service in answer.list_services_response.service)
    assert listed == ["grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection", *SERVICES]


def test_stopping_says_not_serving_takes_no_new_calls_and_ends_those_in_flight(serve: Serve):
    served = serve(listen={"drain_seconds": 10.0})
    with channel_to(served) as channel:
        request = health_pb2.HealthCheckRequest(service=SERVICES[0])
        watch = health_pb2_grpc.HealthStub(channel).Watch(request, timeout=PATIENCE_S)
        assert next(watch).status == SERVING
        busy = Busy(served)
        stub = recommendation_pb2_grpc.RecommendationServiceStub(channel)
        subject = v1.Subject(vector=v1.UserVector(values=[1.0] * 8))
        in_flight = stub.Recommend.future(v1.RecommendRequest(subject=subject, limit=3), timeout=PATIENCE_S)
        wait_until(lambda: len(served.app.tenant._engine._queries) == 1)
        event = towerbridge.event("view", "item-1", user_id="a")
        acknowledged = served.client.record_events([event])
        stopping = InThread(lambda: serve.stop(served))  # type: ignore[attr-defined]
        assert next(watch).status == NOT_SERVING
        with pytest.raises(grpc.RpcError) as ended:
            next(watch)  # it would hold up the stop for ever
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        assert _refusal(served) in REFUSALS
        busy.let_go()
        assert len(in_flight.result().item_ids) == 3
    stopping.outcome()
    again = serve()
    assert again.client.record_events([event]).results[0].revision == acknowledged.results[0].revision


def _refusal(served: Served) -> grpc.StatusCode:
    """How a new connection is refused, from the moment that it is."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        with channel_to(served) as late:
            try:
                late.unary_unary("/towerbridge.v1.ReleaseService/GetRelease")(b"", timeout=5)
            except grpc.RpcError as error:
                code: grpc.StatusCode = error.code()
                return code
    raise AssertionError("the server takes calls for ever")


def test_nothing_is_left_running_or_open_after_stopping(serve: Serve, text_bundle_path: Path, tmp_path: Path):
    before = {thread.ident for thread in threading.enumerate()}
    served = serve(bundle=text_bundle_path)
    served.client.record_events([towerbridge.event("view", "item-1", user_id="a")])
    served.client.recommend(user_id="a", limit=1)
    [worker] = served.app.tenant._texts._workers.values()
    assert worker._process.is_alive()
    serve.stop(served)  # type: ignore[attr-defined]
    assert not worker._process.is_alive()
    left = [one.name for one in threading.enumerate() if one.ident not in before]
    assert not {"engine", "journal-writer"} & set(left)
    open_files = [str(entry.readlink()) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    assert [name for name in open_files if str(tmp_path) in name] == []


def test_an_error_that_nobody_foresaw_is_logged_whole_and_told_to_nobody(serve: Serve, caplog: pytest.LogCaptureFixture):
    served = serve()

    def broken(query: object) -> None:
        raise ZeroDivisionError("the password is hunter2")

    served.app.tenant._engine.ask = served.app.tenant._engine.ask_here = broken  # type: ignore
    for call in (lambda: by_vector(served), lambda: served.client.search_vectors([[1.0] * 8], limit=1)):
        caplog.clear()
        with pytest.raises(towerbridge.Internal) as caught:
            call()
        assert INTERNAL_MESSAGE in str(caught.value) and "hunter2" not in str(caught.value)
        assert "ZeroDivisionError: the password is hunter2" in caplog.text
        assert "/towerbridge.v1.RecommendationService/" in caplog.text
    assert served.client.get_release().release_id, "the server goes on"


@pytest.mark.parametrize(
    ("events", "about"),
    [
        ([towerbridge.event("view", "item-1", user_id="anna")] * 2, "anna"),
        ([towerbridge.event("view", "item-1", visitor_id="v")], "v"),
        ([towerbridge.event("view", "item-1", user_id=one) for one in ("anna", "bob")], None),
    ],
)
def test_in_json_it_is_logged_with_a_hash_of_the_one_id_that_the_call_was_about(
    serve: Serve, events: list[v1.Event], about: str | None
):
    served = serve()

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(JsonLines().format(record))  # type: ignore[method-assign]
    served.app.tenant._journal.submit = broken  # type: ignore[assignment, method-assign]
    logging.getLogger("server.api.status").addHandler(handler)
    try:
        with pytest.raises(towerbridge.Internal):
            served.client.record_events(events)
    finally:
        logging.getLogger("server.api.status").removeHandler(handler)
    [line] = map(json.loads, lines)
    assert line["method"] == "/towerbridge.v1.EventService/RecordEvents"
    assert line.get("user") == (hashed(about) if about is not None else None)


def test_one_call_more_than_allowed_is_refused_at_once(serve: Serve):
    served = serve(overload={"max_reads": 2})
    busy = Busy(served)
    in_flight = [InThread(lambda: by_vector(served)) for _ in range(2)]
    wait_until(lambda: len(served.app.tenant._engine._queries) == 2)
    started = time.monotonic()
    with pytest.raises(towerbridge.ResourceExhausted):
        served.client.get_release()
    assert time.monotonic() - started < 1.0
    busy.let_go()
    assert [len(call.outcome().item_ids) for call in in_flight] == [1, 1]
    wait_until(lambda: _answers(served))


def _answers(served: Served) -> bool:
    try:
        return bool(served.client.get_release().release_id)
    except towerbridge.ResourceExhausted:
        return False  # the place of an ended call is given back a moment after its answer


class Fatal(BaseException):
    """Nothing that an except Exception catches."""


def test_the_engines_death_turns_health_over_and_fails_calls_at_once(serve: Serve, caplog: pytest.LogCaptureFixture):
    served = serve()

    def die() -> None:
        raise Fatal("the device is gone")

    served.app.tenant._engine.call(die)
    with channel_to(served) as channel:
        wait_until(lambda: {health_of(channel, service) for service in ("", *SERVICES)} == {NOT_SERVING})
    with pytest.raises(towerbridge.Unavailable, match="the engine has stopped"):
        served.client.recommend(vector=[1.0] * 8, limit=1, timeout_s=2.0)
    assert "the engine died" in caplog.text


def test_the_journals_death_turns_health_over_and_answers_without_writes_go_on(serve: Serve, caplog: pytest.LogCaptureFixture):
    served = serve()

    class Unpublishable:
        rows = 1
        alone = False

        def commit(self, transaction: object) -> None:
            pass

        def publish(self) -> None:
            raise RuntimeError("views are broken")

    with pytest.raises(Exception, match="must be restarted"):
        served.app.tenant._journal.submit(Unpublishable()).result(PATIENCE_S)
    with channel_to(served) as channel:
        wait_until(lambda: health_of(channel, "") == NOT_SERVING)
    with pytest.raises(towerbridge.Unavailable, match="takes no more writes"):
        served.client.record_events([towerbridge.event("view", "item-1", user_id="a")], timeout_s=2.0)
    assert by_vector(served).item_ids
    assert "the journal's writer died" in caplog.text


def test_a_terminated_process_drains_exits_0_and_keeps_every_acknowledged_event(bundle_path: Path, tmp_path: Path):
    data = tmp_path / "data"
    command = [sys.executable, "-m", "server", "--bundle", str(bundle_path), "--data", str(data), "--port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOWERBRIDGE__CONSENT__PERSONALISATION": "opt_out"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    assert process.stdout is not None
    try:
        ready = process.stdout.readline()
        assert ready.startswith("towerbridge is ready on port "), ready
        port = int(ready.split(":")[0].rpartition(" ")[2])
        acknowledged, failed = _record_until_refused(port, lambda: process.send_signal(signal.SIGTERM))
        assert process.wait(PATIENCE_S) == 0
        assert process.stdout.read() == "draining\n"
    finally:
        process.kill()
        process.stdout.close()
        process.wait()
    assert failed in REFUSALS, "an answer or a refusal, nothing in between"
    written = [data, *data.rglob("*")]
    assert {"journal.sqlite", "tombstones.sqlite"} <= {path.name for path in written}
    assert not [path for path in written if path.stat().st_mode & 0o077], "other accounts may not read it"
    file = open_journal(data / "default")
    kept = {hashed for (hashed,) in file.connection.execute("SELECT event_hash FROM events")}
    file.close()
    assert len(acknowledged) >= 30
    assert {event_hash(file.event_key, event_id) for event_id in acknowledged} <= kept


def _record_until_refused(port: int, terminate: Callable[[], None]) -> tuple[set[str], grpc.StatusCode]:
    """Sends events one after the other and terminates the server in between: what was acknowledged, and how it ended."""
    acknowledged: set[str] = set()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = event_pb2_grpc.EventServiceStub(channel)
        for number in range(100_000):
            event = v1.Event(event_id=f"e{number}", user_id="a", item_id="item-1", type="view")
            if number == 30:
                terminate()
            try:
                stub.RecordEvents(v1.RecordEventsRequest(events=[event]), timeout=PATIENCE_S)
            except grpc.RpcError as error:
                return acknowledged, error.code()
            acknowledged.add(event.event_id)
    raise AssertionError("the server never stopped")
