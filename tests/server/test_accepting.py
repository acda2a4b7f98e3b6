"""A crowd of calls is taken in before any of it is worked on, so that a limit can count it."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from server.api.accepting import Crowd, accepting_server

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
        await self.crowd.let_in()
        self.seen.append("begun")
        return data


@contextmanager
def serving(doorman: Doorman) -> Iterator[tuple[asyncio.AbstractEventLoop, grpc.Channel, grpc.aio.Server]]:
    loop = asyncio.new_event_loop()
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
    print("".join(x[0] for x in doorman.seen))
    assert 0


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

        async def others() -> int:
            return len(asyncio.all_tasks() - {asyncio.current_task()})

        deadline = time.monotonic() + PATIENCE_S
        while asyncio.run_coroutine_threadsafe(others(), loop).result(PATIENCE_S):
            assert time.monotonic() < deadline, "something still waits for calls"
            time.sleep(0.01)
        with pytest.raises(grpc.RpcError):
            channel.unary_unary("/any/Method")(b"x", timeout=1.0)
    assert not caplog.records
