"""How a call's failure reaches the caller."""

import asyncio
import pickle
import threading
from typing import Any

import grpc
import pytest
import towerbridge

CLASSES = {
    "INVALID_ARGUMENT": towerbridge.InvalidArgument,
    "NOT_FOUND": towerbridge.NotFound,
    "ALREADY_EXISTS": towerbridge.AlreadyExists,
    "FAILED_PRECONDITION": towerbridge.FailedPrecondition,
    "DEADLINE_EXCEEDED": towerbridge.DeadlineExceeded,
    "RESOURCE_EXHAUSTED": towerbridge.ResourceExhausted,
    "UNAVAILABLE": towerbridge.Unavailable,
    "UNAUTHENTICATED": towerbridge.Unauthenticated,
    "PERMISSION_DENIED": towerbridge.PermissionDenied,
    "UNIMPLEMENTED": towerbridge.Unimplemented,
    "CANCELLED": towerbridge.Cancelled,
}
CODES = [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.name)
def test_each_code_is_an_error_of_its_class(code: grpc.StatusCode, server: Any) -> None:
    server.script.fail(code, "what is wrong; what to do")
    with (
        towerbridge.Client(server.target, max_attempts=1) as client,
        pytest.raises(towerbridge.TowerbridgeError) as caught,
    ):
        client.get_release()
    assert type(caught.value) is CLASSES.get(code.name, towerbridge.Internal)
    assert (caught.value.code, caught.value.message) == (code, "what is wrong; what to do")
    assert str(caught.value) == f"{code.name}: what is wrong; what to do"
    assert isinstance(caught.value.__cause__, grpc.RpcError)
    assert caught.value.field is None


def test_an_async_call_raises_the_same_errors(server: Any) -> None:
    server.script.fail(grpc.StatusCode.NOT_FOUND, "no such item", pushback_ms="40")

    async def call() -> None:
        async with towerbridge.AsyncClient(server.target) as client:
            await client.find_similar_items("1")

    with pytest.raises(towerbridge.NotFound) as caught:
        asyncio.run(call())
    assert (caught.value.message, caught.value.retry_after_s) == ("no such item", 0.04)
    assert isinstance(caught.value.__cause__, grpc.aio.AioRpcError)


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ("limit: must be 1 to 1,000", "limit"),
        ("events[3].item_id: must not be empty", "events[3].item_id"),
        ("items[0].attributes[title].string_value: too long", "items[0].attributes[title].string_value"),
        ("the batch is empty: send 1 to 1,000 events", None),
        ("Nothing to do", None),
    ],
)
def test_an_invalid_argument_names_its_field(message: str, field: str | None, client: Any, script: Any) -> None:
    script.fail(grpc.StatusCode.INVALID_ARGUMENT, message)
    with pytest.raises(towerbridge.InvalidArgument) as caught:
        client.recommend(user_id="ann", limit=0)
    assert (caught.value.field, caught.value.message) == (field, message)


@pytest.mark.parametrize(("pushback_ms", "retry_after_s"), [("250", 0.25), ("-1", None), ("soon", None), (None, None)])
def test_an_overloaded_server_says_when_to_come_back(pushback_ms: str | None, retry_after_s: float | None, server: Any) -> None:
    server.script.fail(grpc.StatusCode.RESOURCE_EXHAUSTED, pushback_ms=pushback_ms)
    with (
        towerbridge.Client(server.target, max_attempts=1) as client,
        pytest.raises(towerbridge.ResourceExhausted) as caught,
    ):
        client.get_release()
    assert caught.value.retry_after_s == retry_after_s


def test_a_server_that_is_not_there_is_unavailable() -> None:
    # Port 9 is "discard": nothing listens on it, and an unprivileged process cannot start to.
    with towerbridge.Client("127.0.0.1:9") as client, pytest.raises(towerbridge.Unavailable):
        client.get_release()


def test_an_answer_that_takes_too_long_is_a_deadline_exceeded(server: Any) -> None:
    answer = threading.Event()
    server.script.before_answering = lambda: answer.wait(5)
    with towerbridge.Client(server.target) as client, pytest.raises(towerbridge.DeadlineExceeded):
        client.get_release(timeout_s=0.1)
    answer.set()
    assert len(server.script.calls) == 1


def test_a_cancelled_task_is_cancelled_and_no_error_of_ours(server: Any) -> None:
    arrived, answer = threading.Event(), threading.Event()

    def arrive_and_wait() -> None:
        arrived.set()
        answer.wait(5)

    server.script.before_answering = arrive_and_wait

    async def call() -> None:
        async with towerbridge.AsyncClient(server.target) as client:
            task = asyncio.create_task(client.get_release(timeout_s=10.0))
            assert await asyncio.to_thread(arrived.wait, 5)
            task.cancel()
            await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(call())
    answer.set()


def test_a_call_in_flight_ends_as_cancelled_when_its_client_is_closed(server: Any) -> None:
    answer = threading.Event()
    client = towerbridge.Client(server.target, timeout_s=10.0)

    def close_and_wait() -> None:
        client.close()
        answer.wait(5)

    server.script.before_answering = close_and_wait
    with pytest.raises(towerbridge.Cancelled):
        client.get_release()
    answer.set()


def test_a_task_with_a_call_in_flight_is_cancelled_when_its_client_is_closed(server: Any) -> None:
    arrived, answer = threading.Event(), threading.Event()

    def arrive_and_wait() -> None:
        arrived.set()
        answer.wait(5)

    server.script.before_answering = arrive_and_wait

    async def call() -> bool:
        client = towerbridge.AsyncClient(server.target, timeout_s=10.0)
        task = asyncio.create_task(client.get_release())
        assert await asyncio.to_thread(arrived.wait, 5)
        await client.close()
        await asyncio.wait([task])
        return task.cancelled()

    assert asyncio.run(call())
    answer.set()


def test_an_error_survives_the_way_between_processes() -> None:
    error = towerbridge.InvalidArgument(grpc.StatusCode.INVALID_ARGUMENT, "limit: too large", "limit", 0.5)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is towerbridge.InvalidArgument
    assert (copy.code, copy.message, copy.field, copy.retry_after_s) == (error.code, "limit: too large", "limit", 0.5)
