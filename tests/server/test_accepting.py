"""A crowd of calls is taken in before any of it is worked on, so that a limit can count it."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from server.api.accepting import Crowd, accepting_server
from server.api.event_loop import EventLoop

PATIENCE_S = 20.0
CROWD = 60


class Doorman(grpc.GenericRpcHandler):
    """Notes which calls were let in, and which were begun, in order."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.crowd = Crowd()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        self.seen.append("let in")
        return grpc.unary_unary_rpc_method_handler(self._begin)

    async def _begin(self, data: bytes, context: Any) -> bytes:
        await self.crowd.all_let_in()
        self.seen.append("begun")
        return data


@contextmanager
def serving(doorman: Doorman) -> Iterator[tuple[asyncio.AbstractEventLoop, grpc.Channel, grpc.aio.Server]]:
    loop = EventLoop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> tuple[grpc.aio.Server, int]:
        server = accepting_server(doorman, doorman.crowd, [("grpc.so_reuseport", 0)])
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server, port

    try:
        server, port = asyncio.run_coroutine_threadsafe(start(), loop).result(PATIENCE_S)
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            grpc.channel_ready_future(channel).result(PATIENCE_S)
            yield loop, channel, server
        asyncio.run_coroutine_threadsafe(server.stop(1.0), loop).result(PATIENCE_S)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_what_came_while_the_loop_was_held_up_is_let_in_before_any_of_it_is_begun():
    doorman = Doorman()
    with serving(doorman) as (loop, channel, _):
        call = channel.unary_unary("/any/Method")
        assert call(b"first", timeout=PATIENCE_S) == b"first"
        doorman.seen.clear()
        loop.call_soon_threadsafe(time.sleep, 1.0)
        crowd = [call.future(b"%d" % number, timeout=PATIENCE_S) for number in range(CROWD)]
        assert [one.result() for one in crowd] == [b"%d" % number for number in range(CROWD)]
    assert doorman.seen[: CROWD - 2] == ["let in"] * (CROWD - 2)  # the last one takes a turn or two of the loop to be seen


def test_more_than_it_asks_for_at_once_are_all_answered():
    doorman = Doorman()
    with serving(doorman) as (loop, channel, _):
        call = channel.unary_unary("/any/Method")
        loop.call_soon_threadsafe(time.sleep, 0.5)
        crowd = [call.future(b"%d" % number, timeout=PATIENCE_S) for number in range(500)]
        assert [one.result() for one in crowd] == [b"%d" % number for number in range(500)]
    assert doorman.seen.count("begun") == 500


def test_it_stops_without_a_word_about_the_calls_that_it_still_asked_for(caplog: pytest.LogCaptureFixture):
    doorman = Doorman()
    with serving(doorman) as (loop, channel, server):
        assert channel.unary_unary("/any/Method")(b"x", timeout=PATIENCE_S) == b"x"
        asyncio.run_coroutine_threadsafe(server.stop(1.0), loop).result(PATIENCE_S)

        async def others_end() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            await asyncio.wait_for(asyncio.gather(*others, return_exceptions=True), PATIENCE_S)

        asyncio.run_coroutine_threadsafe(others_end(), loop).result(2 * PATIENCE_S)
        with pytest.raises(grpc.RpcError):
            channel.unary_unary("/any/Method")(b"x", timeout=1.0)
    assert not caplog.records


def test_wake_ups_that_came_together_wake_the_loop_once_and_later_ones_again():
    loop = EventLoop()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    woken: list[bytes] = []
    try:
        loop.add_reader(ours, lambda: woken.append(ours.recv(1)))
        for count in (5, 1, 2000):
            theirs.send(b"1" * count)
            for _ in range(3):
                loop.run_until_complete(asyncio.sleep(0.01))
        loop.remove_reader(ours)
    finally:
        loop.close()
        ours.close()
        theirs.close()
    assert woken == [b"1"] * 3


@pytest.mark.parametrize("crowd_size", [1, 5])
def test_who_waits_for_a_crowd_to_be_let_in_waits_for_no_later_one(crowd_size: int):
    async def run() -> list[str]:
        crowd, seen = Crowd(), []
        for number in range(crowd_size):
            crowd.put(f"call {number}")

        async def begin() -> None:
            await crowd.all_let_in()
            seen.append("begun")

        beginning = asyncio.ensure_future(begin())
        await asyncio.sleep(0)
        for number in range(crowd_size):
            crowd.put(f"later {number}")  # as many as there are let in, for ever
            seen.append(await crowd.take())
        await asyncio.sleep(0)
        await beginning
        return seen

    assert asyncio.run(run()) == [*(f"call {number}" for number in range(crowd_size)), "begun"]


def test_when_there_will_be_no_more_calls_nobody_waits_for_them():
    async def run() -> None:
        crowd = Crowd()
        crowd.put("call")
        beginning = asyncio.ensure_future(crowd.all_let_in())
        await asyncio.sleep(0)
        crowd.end(RuntimeError("over"))
        crowd.put("too late")
        await asyncio.wait_for(beginning, PATIENCE_S)
        await asyncio.wait_for(crowd.all_let_in(), PATIENCE_S)
        with pytest.raises(RuntimeError, match="over"):
            await crowd.take()

    asyncio.run(run())
