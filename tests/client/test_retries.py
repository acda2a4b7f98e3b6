"""What is sent again, how often, and what is not."""

import asyncio
import time
from typing import Any

import grpc
import pytest
import towerbridge

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
RESOURCE_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
NEVER_RETRIED = [code for code in grpc.StatusCode if code not in (grpc.StatusCode.OK, UNAVAILABLE, grpc.StatusCode.CANCELLED)]


def call_async(target: str) -> Any:
    async def call() -> Any:
        async with towerbridge.AsyncClient(target, timeout_s=10.0) as client:
            return await client.get_release()

    return asyncio.run(call())


def test_an_unavailable_server_is_asked_again(client: Any, script: Any) -> None:
    script.fail(UNAVAILABLE, times=2)
    assert client.get_release().dim == 4
    assert len(script.calls) == 3


def test_an_unavailable_server_is_asked_again_by_the_async_client(server: Any) -> None:
    server.script.fail(UNAVAILABLE, times=2)
    assert call_async(server.target).dim == 4
    assert len(server.script.calls) == 3


def test_a_server_that_stays_unavailable_is_asked_three_times(client: Any, script: Any) -> None:
    script.fail(UNAVAILABLE, times=9)
    with pytest.raises(towerbridge.Unavailable):
        client.get_release()
    assert len(script.calls) == 3


@pytest.mark.parametrize("max_attempts", [1, 2])
def test_the_number_of_attempts_is_a_setting(max_attempts: int, server: Any) -> None:
    server.script.fail(UNAVAILABLE, times=9)
    with (
        towerbridge.Client(server.target, max_attempts=max_attempts, timeout_s=10.0) as client,
        pytest.raises(towerbridge.Unavailable),
    ):
        client.get_release()
    assert len(server.script.calls) == max_attempts


@pytest.mark.parametrize("code", NEVER_RETRIED, ids=lambda code: code.name)
def test_no_other_error_is_sent_again(code: grpc.StatusCode, client: Any, script: Any) -> None:
    script.fail(code)
    with pytest.raises(towerbridge.TowerbridgeError):
        client.get_release()
    assert len(script.calls) == 1


def test_an_event_keeps_its_id_over_a_retry(client: Any, server: Any) -> None:
    server.script.fail(UNAVAILABLE)
    client.record_events([towerbridge.event("view", "1", user_id="ann")])
    first, second = server.script.calls
    assert first.request == second.request
    assert second.metadata["grpc-previous-rpc-attempts"] == "1"
    assert list(server.events.known) == [first.request.events[0].event_id]


def test_an_event_that_is_recorded_again_by_hand_is_a_duplicate(client: Any) -> None:
    events = [towerbridge.event("view", "1", user_id="ann")]
    statuses = [client.record_events(events).results[0].status for _ in range(2)]
    known = towerbridge.v1.EventStatus
    assert statuses == [known.EVENT_STATUS_ACCEPTED, known.EVENT_STATUS_DUPLICATE]


def test_all_attempts_share_one_deadline(server: Any) -> None:
    server.script.fail(UNAVAILABLE, times=4)
    with towerbridge.Client(server.target, timeout_s=10.0, max_attempts=5) as client:
        client.get_release()
    left = [call.seconds_left for call in server.script.calls]
    # Four back-offs of 0.75 s together, each ± 20 %; on the wire a deadline is rounded up to 0.1 s.
    assert len(left) == 5
    assert left[-1] < left[0] - 0.4


def test_a_pushed_back_call_is_sent_again_when_the_server_said(server: Any) -> None:
    server.script.fail(RESOURCE_EXHAUSTED, pushback_ms="400")
    with towerbridge.Client(server.target, timeout_s=10.0) as client:
        started = time.monotonic()
        assert client.get_release().dim == 4
        assert time.monotonic() - started >= 0.4
    first, second = (call.seconds_left for call in server.script.calls)
    assert second < first - 0.2


def test_a_pushed_back_call_is_sent_again_by_the_async_client(server: Any) -> None:
    server.script.fail(RESOURCE_EXHAUSTED, pushback_ms="10")
    assert call_async(server.target).dim == 4
    assert len(server.script.calls) == 2


def test_a_call_that_is_pushed_back_for_ever_is_given_up(client: Any, script: Any) -> None:
    script.fail(RESOURCE_EXHAUSTED, times=9, pushback_ms="1")
    with pytest.raises(towerbridge.ResourceExhausted):
        client.get_release()
    assert len(script.calls) == 3


def test_a_push_back_beyond_the_deadline_is_not_waited_for(client: Any, script: Any) -> None:
    script.fail(RESOURCE_EXHAUSTED, pushback_ms="60000")
    started = time.monotonic()
    with pytest.raises(towerbridge.ResourceExhausted) as caught:
        client.get_release()
    assert time.monotonic() - started < 9.0
    assert caught.value.retry_after_s == 60.0


def test_a_server_that_says_never_is_not_asked_again(client: Any, script: Any) -> None:
    script.fail(RESOURCE_EXHAUSTED, pushback_ms="-1")
    with pytest.raises(towerbridge.ResourceExhausted):
        client.get_release()
    assert len(script.calls) == 1


def test_a_client_that_is_mostly_pushed_back_stops_retrying(client: Any, script: Any) -> None:
    script.fail(RESOURCE_EXHAUSTED, times=99, pushback_ms="0")
    attempts = []
    for _ in range(6):
        before = len(script.calls)
        with pytest.raises(towerbridge.ResourceExhausted):
            client.get_release()
        attempts.append(len(script.calls) - before)
    # Ten tokens, one for each push-back; a retry needs more than five: 3 + 2 attempts, then single ones.
    assert attempts == [3, 2, 1, 1, 1, 1]


def test_a_client_that_was_served_again_retries_again(client: Any, script: Any) -> None:
    script.fail(RESOURCE_EXHAUSTED, times=6, pushback_ms="0")
    for _ in range(3):
        with pytest.raises(towerbridge.ResourceExhausted):
            client.get_release()
    for _ in range(30):
        client.get_release()
    before = len(script.calls)
    script.fail(RESOURCE_EXHAUSTED, pushback_ms="0")
    client.get_release()
    assert len(script.calls) - before == 2
