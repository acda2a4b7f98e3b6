"""StreamEvents: acknowledged in order once on disk, bounded, resumed without doubles."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
import towerbridge
from towerbridge import v1
from towerbridge.v1 import event_pb2_grpc

from tests.server.conftest import Serve, Served
from tests.server.test_events import good


def test_every_event_of_a_stream_gets_its_result_in_order(shared: Served):
    events = [towerbridge.event("view", f"item-{n % 50}", user_id=f"streamer {n % 3}") for n in range(3_000)]
    results = list(shared.client.stream_events(events))
    assert {result.status for result in results} == {v1.EventStatus.EVENT_STATUS_ACCEPTED}
    positions = [int(result.revision.rpartition("-")[2], 16) for result in results]
    assert positions == sorted(positions)
    assert len(set(positions)) == len(events)
    assert sum(shared.client.get_user(user_id=f"streamer {n}").event_count for n in range(3)) == len(events)


def requests(*batches: list[v1.Event]) -> Iterator[v1.StreamEventsRequest]:
    return (v1.StreamEventsRequest(events=batch) for batch in batches)


def raw_stream(served: Served, messages: Iterator[v1.StreamEventsRequest]) -> Any:
    channel = grpc.insecure_channel(f"127.0.0.1:{served.app.port}")
    return event_pb2_grpc.EventServiceStub(channel).StreamEvents(messages, timeout=20)


def test_a_bad_event_is_refused_in_its_place_and_its_field_counts_from_the_first(shared: Served):
    events = [towerbridge.event("view", "" if n == 1500 else "item-1", user_id="bad rows") for n in range(2_000)]
    results = list(shared.client.stream_events(events))
    [(place, error)] = [(place, result.error) for place, result in enumerate(results) if result.HasField("error")]
    assert (place, error.code, error.field) == (1500, 3, "events[1500].item_id")


def test_a_repeat_within_and_across_streams_is_a_duplicate_with_the_first_revision(shared: Served):
    event = towerbridge.event("view", "item-1", user_id="repeater")
    first, second = shared.client.stream_events([event, event])
    [third] = shared.client.stream_events([event])
    assert first.status == v1.EventStatus.EVENT_STATUS_ACCEPTED
    assert {second.status, third.status} == {v1.EventStatus.EVENT_STATUS_DUPLICATE}
    assert first.revision == second.revision == third.revision
    assert shared.client.get_user(user_id="repeater").event_count == 1


@pytest.mark.parametrize("count", [0, 1001])
def test_a_message_of_the_wrong_size_ends_the_stream_after_results_for_what_was_before(shared: Served, count: int):
    good = [towerbridge.event("view", "item-1", user_id="sizes")]
    call = raw_stream(shared, requests(good, good * count))
    results = []
    with pytest.raises(grpc.RpcError) as caught:
        for response in call:
            results += response.results
    assert len(results) == 1
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == f"events: must have 1 to 1000 entries, has {count}"


def test_a_message_that_cannot_be_decoded_is_an_invalid_argument(shared: Served):
    channel = grpc.insecure_channel(f"127.0.0.1:{shared.app.port}")
    call = channel.stream_stream("/towerbridge.v1.EventService/StreamEvents")(iter([b"\xff\xff"]), timeout=20)
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


class Held:
    """A write that keeps the disk busy until it is let go."""

    rows, alone = 1, False

    def __init__(self) -> None:
        self.let_go = threading.Event()

    def commit(self, transaction: object) -> None:
        self.let_go.wait(30)

    def publish(self) -> None:
        return None


def test_a_sender_that_is_faster_than_the_disk_is_held_up(serve: Serve):
    served = serve()
    held, sent = Held(), 0

    def endless() -> Iterator[v1.StreamEventsRequest]:
        nonlocal sent
        while sent < 100_000:
            sent += 50
            numbers = range(sent, sent + 50)
            yield v1.StreamEventsRequest(events=[good(f"{n:0250}", item_id="x" * 250) for n in numbers])

    served.app.tenant._journal.submit(held)
    call = raw_stream(served, endless())
    before = -1
    until = time.monotonic() + 15
    while before != sent and time.monotonic() < until:
        before = sent
        time.sleep(1.0)
    # 1,024 that the server has read, and what is on the way in the buffers of HTTP/2.
    assert 1_024 <= before == sent < 50_000
    held.let_go.set()
    next(call)
    call.cancel()


def test_acknowledged_and_revision_grow_with_the_stream(shared: Served):
    batches = [[towerbridge.event("view", "item-1", user_id="growing") for _ in range(10)] for _ in range(20)]
    acknowledged = [response.acknowledged for response in raw_stream(shared, requests(*batches))]
    assert acknowledged == sorted(acknowledged)
    assert acknowledged[-1] == 200


def test_a_draining_server_acknowledges_what_it_read_and_says_unavailable(serve: Serve):
    served = serve(listen={"drain_seconds": 10.0})
    gate = threading.Event()

    def messages() -> Iterator[v1.StreamEventsRequest]:
        yield from requests([towerbridge.event("view", "item-1", user_id="drained") for _ in range(3)])
        gate.wait(20)

    call = raw_stream(served, messages())
    assert len(next(call).results) == 3
    stopping = threading.Thread(target=served.app.stop)
    started = time.monotonic()
    stopping.start()
    with pytest.raises(grpc.RpcError) as caught:
        next(call)
    gate.set()
    stopping.join()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "draining" in caught.value.details()
    assert time.monotonic() - started < 8.0  # the stream did not use up the time to drain
    served.app.stop = lambda: None  # type: ignore[method-assign]


def test_a_stream_goes_on_after_a_restart_without_doubles(serve: Serve):
    first = serve()
    port = first.app.port
    halfway = threading.Event()
    again = threading.Event()

    def events() -> Iterator[v1.Event]:
        for number in range(400):
            if number == 200:
                halfway.set()
                again.wait(30)
            yield towerbridge.event("view", f"item-{number % 50}", user_id="restarted")

    def restart() -> None:
        halfway.wait(30)
        serve.stop(first)  # type: ignore[attr-defined]
        again.set()
        time.sleep(0.3)
        serve(listen={"port": port})

    restarting = threading.Thread(target=restart)
    restarting.start()
    with towerbridge.Client(f"127.0.0.1:{port}", timeout_s=20) as client:
        results = list(client.stream_events(events()))
        restarting.join()
        assert len(results) == 400
        assert not any(result.HasField("error") for result in results)
        assert client.get_user(user_id="restarted").event_count == 400


def test_events_without_consent_are_dropped_and_the_caller_is_told(serve: Serve):
    served = serve(consent={"personalisation": "opt_in"})
    event = towerbridge.event("view", "item-1", user_id="undecided")
    [streamed] = served.client.stream_events([event])
    [recorded] = served.client.record_events([event]).results
    assert streamed == recorded
    assert recorded.status == v1.EventStatus.EVENT_STATUS_DROPPED_NO_CONSENT
    assert (recorded.error.code, recorded.error.field) == (9, "events[0].user_id")
    assert "SetConsent" in recorded.error.message
    served.client.set_consent(user_id="undecided", personalisation=True, source="test")
    [result] = served.client.stream_events([event])
    assert result.status == v1.EventStatus.EVENT_STATUS_ACCEPTED
