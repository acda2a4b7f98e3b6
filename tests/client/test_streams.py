"""stream_events: one result an event, in order, over as many calls as it takes."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import pytest
import towerbridge
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from towerbridge import v1
from towerbridge._retry import StreamAttempts

ACCEPTED, DUPLICATE = v1.EventStatus.EVENT_STATUS_ACCEPTED, v1.EventStatus.EVENT_STATUS_DUPLICATE


def events(count: int) -> list[v1.Event]:
    return [towerbridge.event("view", str(number), user_id="ann") for number in range(count)]


def sync_results(target: str, sent: Any, **arguments: Any) -> list[v1.EventResult]:
    with towerbridge.Client(target) as client:
        return list(client.stream_events(sent, **arguments))


def async_results(target: str, sent: Any, **arguments: Any) -> list[v1.EventResult]:
    async def call() -> list[v1.EventResult]:
        async with towerbridge.AsyncClient(target) as client:
            return [result async for result in client.stream_events(sent, **arguments)]

    return asyncio.run(call())


BOTH = pytest.mark.parametrize("results", [sync_results, async_results], ids=["sync", "async"])
Results = Callable[..., list[v1.EventResult]]


@BOTH
def test_every_event_has_its_result(results: Results, server: Any) -> None:
    sent = events(2_500)
    assert [result.status for result in results(server.target, sent)] == [ACCEPTED] * len(sent)
    assert list(server.events.known) == [event.event_id for event in sent]
    assert sum(server.events.messages) == len(sent)
    assert max(server.events.messages) <= 1_000


@BOTH
def test_no_events_are_no_results(results: Results, server: Any) -> None:
    assert results(server.target, []) == []


@BOTH
def test_a_stream_of_one_event_at_a_time_is_served(results: Results, server: Any) -> None:
    assert len(results(server.target, events(50), outstanding=1)) == 50
    assert server.events.messages == [1] * 50


@BOTH
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    count=st.integers(0, 40),
    outstanding=st.integers(1, 20),
    breaks=st.lists(st.integers(0, 12).flatmap(lambda take: st.tuples(st.just(take), st.integers(0, take))), max_size=4),
)
def test_whatever_breaks_every_event_has_one_result_and_is_there_once(
    results: Results, server: Any, count: int, outstanding: int, breaks: list[tuple[int, int]]
) -> None:
    server.events.known.clear()
    server.events.breaks.clear()
    # A server that waits for more than the client may send would wait for ever.
    server.events.breaks.extend((min(take, answer + outstanding), answer) for take, answer in breaks)
    sent = events(count)
    if count > 3:
        sent[3].item_id = ""  # rejected by the server
    got = results(server.target, sent, outstanding=outstanding)
    assert len(got) == count
    assert [event.item_id for event in server.events.known.values()] == [event.item_id for event in sent if event.item_id]
    if count > 3:
        [(place, result)] = [(place, result) for place, result in enumerate(got) if result.HasField("error")]
        assert (place, result.error.field) == (3, "events[3].item_id")


@BOTH
def test_a_stream_that_brings_no_result_is_given_up(results: Results, server: Any) -> None:
    server.script.fail(grpc.StatusCode.UNAVAILABLE, times=99)
    started = time.monotonic()
    with pytest.raises(towerbridge.Unavailable):
        results(server.target, events(3), patience_s=0.4)
    assert time.monotonic() - started < 3.0


def test_a_status_that_grpc_lost_is_raised_as_the_broken_stream_that_it_is() -> None:
    # What grpc.aio makes of a call that ends while a message is being written; a race, so not asked for from a server.
    nothing = grpc.aio.Metadata()
    lost = grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, nothing, nothing, details="Internal error from Core")
    assert StreamAttempts(patience_s=5.0, max_attempts=2).pause_s(lost) < 1.0
    with pytest.raises(towerbridge.Unavailable, match="while an event was being sent"):
        StreamAttempts(patience_s=5.0, max_attempts=1).pause_s(lost)


@BOTH
def test_other_errors_end_the_stream(results: Results, server: Any) -> None:
    server.script.fail(grpc.StatusCode.INVALID_ARGUMENT, "events: must have 1 to 1000 entries")
    with pytest.raises(towerbridge.InvalidArgument) as caught:
        results(server.target, events(3))
    assert caught.value.field == "events"
    assert len(server.script.calls) == 1


def test_without_retries_the_first_break_is_raised(server: Any) -> None:
    server.events.breaks.append((2, 1))
    with towerbridge.Client(server.target, max_attempts=1) as client, pytest.raises(towerbridge.Unavailable):
        list(client.stream_events(events(5)))


def test_what_the_iterable_raises_comes_after_the_results_of_what_it_gave(server: Any) -> None:
    def failing() -> Iterator[v1.Event]:
        yield from events(3)
        raise OSError("the log is gone")

    got = []
    with towerbridge.Client(server.target) as client, pytest.raises(OSError, match="the log is gone"):
        for result in client.stream_events(failing()):
            got.append(result.status)
    assert got == [ACCEPTED] * 3


@BOTH
def test_something_that_is_no_event_is_refused(results: Results, server: Any) -> None:
    with pytest.raises(TypeError, match="stream_events takes events"):
        results(server.target, ["view"])
    with pytest.raises(ValueError, match="outstanding must be at least 1"):
        results(server.target, [], outstanding=0)


def test_no_more_than_the_limit_is_read_ahead_of_the_results(server: Any) -> None:
    server.events.answering.clear()
    read = []

    def endless() -> Iterator[v1.Event]:
        while True:
            read.append(towerbridge.event("view", "1", user_id="ann"))
            yield read[-1]

    with towerbridge.Client(server.target) as client:
        stream: Any = client.stream_events(endless(), outstanding=10)
        taken = threading.Thread(target=lambda: next(stream))
        taken.start()
        time.sleep(0.5)
        assert len(read) <= 11  # the one that waits for room
        server.events.answering.set()
        taken.join(10)
        stream.close()


def test_leaving_the_loop_ends_the_call(server: Any) -> None:
    with towerbridge.Client(server.target) as client:
        for _ in client.stream_events(iter(events(10_000)), outstanding=5):
            break
        until = time.monotonic() + 5
        while not server.events.ended and time.monotonic() < until:
            time.sleep(0.01)
        assert server.events.ended == ["over"]
        assert client.get_release().dim == 4


def test_an_async_source_is_read_across_a_break(server: Any) -> None:
    server.events.breaks.append((3, 1))
    sent = events(8)

    async def slowly() -> AsyncIterator[v1.Event]:
        for event in sent:
            await asyncio.sleep(0.01)
            yield event

    statuses = [result.status for result in async_results(server.target, slowly())]
    assert len(statuses) == 8
    assert list(server.events.known) == [event.event_id for event in sent]
