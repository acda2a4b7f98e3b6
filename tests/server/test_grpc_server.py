"""Calls on one thread: what has come is let in before any of it is worked on, and whoever waits is woken, or cancelled."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import BytesValue
from hypothesis import given
from hypothesis import strategies as st

from server.api.call_loop import CallLoop
from server.api.context import CallerLeft, Context, Handler, _rest
from server.api.grpc_server import GrpcServer
from server.api.refusals import Refusal
from server.overload.limit import Limit

PATIENCE_S = 20.0
CROWD = 60
REFUSED = Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", pushback_ms=200)

Service = Callable[[Context], Handler | Refusal]


async def echo(data: bytes, context: Context) -> bytes:
    return data


class Serving:
    def __init__(self, loop: CallLoop, server: GrpcServer, channel: grpc.Channel) -> None:
        self.loop = loop
        self.server = server
        self.channel = channel
        self.call = channel.unary_unary("/any/Method")

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(PATIENCE_S)

    @contextmanager
    def held_up(self) -> Iterator[None]:
        """The loop's thread does nothing meanwhile, and half a second longer, in which calls reach the server."""
        holds, go_on = threading.Event(), threading.Event()
        self.loop.call_soon_threadsafe(lambda: (holds.set(), go_on.wait(PATIENCE_S)))
        assert holds.wait(PATIENCE_S)
        yield
        time.sleep(0.5)
        go_on.set()


@contextmanager
def looping() -> Iterator[CallLoop]:
    loop = CallLoop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE_S)
        loop.close()
        assert not thread.is_alive()


@contextmanager
def serving(service: Service | Handler) -> Iterator[Serving]:
    async def start() -> tuple[GrpcServer, int]:
        answer = service if not isinstance(service, Handler) else lambda context: service
        server = GrpcServer(loop, answer, [("grpc.so_reuseport", 0)])
        port = server.add_port("127.0.0.1:0", None)
        server.start()
        return server, port

    with looping() as loop:
        server, port = asyncio.run_coroutine_threadsafe(start(), loop).result(PATIENCE_S)
        try:
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                grpc.channel_ready_future(channel).result(PATIENCE_S)
                yield Serving(loop, server, channel)
        finally:
            asyncio.run_coroutine_threadsafe(server.stop(1.0), loop).result(PATIENCE_S)


def test_what_came_while_the_loop_was_held_up_is_let_in_before_any_of_it_is_begun():
    seen: list[str] = []

    async def begin(data: bytes, context: Context) -> bytes:
        seen.append("begun")
        return data

    def let_in(context: Context) -> Handler:
        seen.append("let in")
        return Handler(begin)

    with serving(let_in) as one:
        assert one.call(b"first", timeout=PATIENCE_S) == b"first"
        seen.clear()
        with one.held_up():
            crowd = [one.call.future(b"%d" % number, timeout=PATIENCE_S) for number in range(CROWD)]
        assert [call.result() for call in crowd] == [b"%d" % number for number in range(CROWD)]
    assert seen == ["let in"] * CROWD + ["begun"] * CROWD


def test_more_than_are_taken_in_at_once_are_all_answered():
    with serving(Handler(echo)) as one:
        with one.held_up():
            crowd = [one.call.future(b"%d" % number, timeout=PATIENCE_S) for number in range(1500)]
        assert [call.result() for call in crowd] == [b"%d" % number for number in range(1500)]


def test_a_refusal_has_its_status_its_message_and_its_trailers_whatever_kind_of_call_it_is():
    with serving(lambda context: REFUSED) as one:
        for call in (one.call, lambda data, timeout: list(one.channel.stream_stream("/a/B")(iter([data]), timeout=timeout))):
            with pytest.raises(grpc.RpcError) as refused:
                call(b"x", timeout=PATIENCE_S)
            assert refused.value.code() is REFUSED.code
            assert refused.value.details() == REFUSED.message
            assert ("grpc-retry-pushback-ms", "200") in [(item.key, item.value) for item in refused.value.trailing_metadata()]


def test_what_fails_unexpectedly_is_logged_and_internal(caplog: pytest.LogCaptureFixture):
    async def fail(data: bytes, context: Context) -> bytes:
        if data == b"later":
            await asyncio.sleep(0)
        raise ValueError("a secret")

    def fail_first(context: Context) -> Handler:
        if context.method == "/no/Handler":
            raise ValueError("a secret")
        return Handler(fail)

    with serving(fail_first) as one:
        for call, data in ((one.call, b"now"), (one.call, b"later"), (one.channel.unary_unary("/no/Handler"), b"")):
            with pytest.raises(grpc.RpcError) as failed:
                call(data, timeout=PATIENCE_S)
            assert failed.value.code() is grpc.StatusCode.INTERNAL
            assert "secret" not in str(failed.value)
    assert caplog.text.count("ValueError: a secret") == 3


def test_a_call_of_one_message_that_brings_none_is_invalid():
    with serving(Handler(echo)) as one, pytest.raises(grpc.RpcError) as refused:
        one.channel.stream_unary("/any/Method")(iter(()), timeout=PATIENCE_S)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_who_leaves_before_the_message_gives_the_place_back():
    limit = Limit(1)
    came = threading.Event()

    def let_in(context: Context) -> Handler:
        context.place = limit.let_in()
        came.set()
        return Handler(echo)

    with serving(let_in) as one:
        never = threading.Event()

        def no_message() -> Iterator[bytes]:
            never.wait(PATIENCE_S)
            yield b""

        call = one.channel.stream_unary("/any/Method").future(no_message(), timeout=PATIENCE_S)
        assert came.wait(PATIENCE_S)
        call.cancel()
        until = time.monotonic() + PATIENCE_S
        while limit._expected and time.monotonic() < until:
            time.sleep(0.005)
        assert not limit._expected
        never.set()


def test_a_handler_that_waits_is_cancelled_when_its_caller_leaves_or_has_no_more_time():
    ended: Future[str] = Future()
    waits = threading.Event()

    async def wait(data: bytes, context: Context) -> bytes:
        try:
            waits.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.set_result("cancelled")
            raise
        return data

    for leave in (True, False):
        with serving(Handler(wait)) as one:
            call = one.call.future(b"x", timeout=PATIENCE_S if leave else 0.2)
            assert waits.wait(PATIENCE_S)
            if leave:
                call.cancel()
            assert ended.result(PATIENCE_S) == "cancelled"
            ended, waits = Future(), threading.Event()


def test_a_handler_whose_caller_left_before_it_first_waited_is_cancelled_too():
    told: Future[str] = Future()

    async def slow_then_wait(data: bytes, context: Context) -> bytes:
        time.sleep(0.5)  # the loop is held up, and the caller's time is over
        try:
            await asyncio.Event().wait()
        except BaseException as error:
            told.set_result(type(error).__name__)
            raise
        return data

    with serving(Handler(slow_then_wait)) as one:
        with pytest.raises(grpc.RpcError) as late:
            one.call(b"x", timeout=0.2)
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert told.result(PATIENCE_S) == "CancelledError"


def test_whatever_a_handler_gives_its_caller_gets_a_status():
    async def give(data: bytes, context: Context) -> Any:
        if data == b"surrogate":
            context.end(grpc.StatusCode.NOT_FOUND, "no \udcff")
        return "no bytes"

    with serving(Handler(give)) as one:
        with pytest.raises(grpc.RpcError) as refused:
            one.call(b"surrogate", timeout=PATIENCE_S)
        assert (refused.value.code(), refused.value.details()) == (grpc.StatusCode.NOT_FOUND, "no ?")
        with pytest.raises(grpc.RpcError) as refused:
            one.call(b"text", timeout=PATIENCE_S)
        assert refused.value.code() is grpc.StatusCode.INTERNAL


@pytest.mark.parametrize("grace_s", [0.0, PATIENCE_S])
def test_stopping_gives_calls_their_time_and_then_cancels_them(grace_s: float):
    waits = threading.Event()

    async def wait(data: bytes, context: Context) -> bytes:
        waits.set()
        await asyncio.sleep(0.2)
        return data

    with serving(Handler(wait)) as one:
        call = one.call.future(b"x", timeout=PATIENCE_S)
        assert waits.wait(PATIENCE_S)
        one.run(one.server.stop(grace_s))
        if grace_s:
            assert call.result() == b"x"
        else:
            assert call.exception().code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)


def test_it_stops_without_a_word_about_the_calls_that_it_still_asked_for(caplog: pytest.LogCaptureFixture):
    with serving(Handler(echo)) as one:
        assert one.call(b"x", timeout=PATIENCE_S) == b"x"
    assert not caplog.records


def test_a_stream_reads_and_writes_in_turn_and_ends_when_its_caller_has_sent_all():
    async def each(_: object, context: Context) -> None:
        while (data := await context.read()) is not None:
            await context.write(BytesValue(value=data * 2))

    with serving(Handler(each, takes_message=False, gives_reply=False)) as one:
        call = one.channel.stream_stream("/any/Stream", response_deserializer=BytesValue.FromString)
        assert [reply.value for reply in call(iter([b"a", b"b", b""]), timeout=PATIENCE_S)] == [b"aa", b"bb", b""]


def test_who_writes_to_a_caller_that_has_left_is_told():
    told: Future[str] = Future()
    left = threading.Event()

    async def write(_: object, context: Context) -> None:
        await context.write(BytesValue(value=b"x"))
        await asyncio.to_thread(left.wait, PATIENCE_S)

    async def stubborn(data: bytes, context: Context) -> None:
        work = asyncio.ensure_future(write(data, context))
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            left.set()
            await work
            try:
                await context.write(BytesValue(value=b"y"))
                told.set_result("nothing")
            except CallerLeft:
                told.set_result("that it has left")
            raise

    with serving(Handler(stubborn, gives_reply=False)) as one:
        call = one.channel.unary_stream("/any/Stream")(b"x", timeout=PATIENCE_S)
        next(call)
        call.cancel()
        assert told.result(PATIENCE_S) == "that it has left"


def test_a_call_knows_its_metadata_its_peer_and_its_time():
    seen: list[Any] = []

    async def look(data: bytes, context: Context) -> bytes:
        seen.append((dict(context.invocation_metadata())["key"], context.peer().split(":")[0], context.time_remaining()))
        return data

    with serving(Handler(look)) as one:
        one.call(b"x", metadata=(("key", "value"),), timeout=PATIENCE_S)
        one.call(b"x", metadata=(("key", "value"),))
    (key, peer, remaining), (_, _, unlimited) = seen
    assert (key, peer) == ("value", "ipv4")
    assert 0.0 < remaining <= PATIENCE_S + 1.0  # the header rounds
    assert unlimited is None


def test_other_threads_wake_the_loop_before_any_call_has_come_and_after():
    def woken(loop: CallLoop) -> None:
        counts = [0] * 4

        def count(thread: int) -> None:
            counts[thread] += 1

        def wake(thread: int) -> None:
            for _ in range(200):
                done = threading.Event()
                loop.call_soon_threadsafe(lambda done=done: (count(thread), done.set()))
                assert done.wait(PATIENCE_S)

        threads = [threading.Thread(target=wake, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert counts == [200] * 4

    with serving(Handler(echo)) as one:
        woken(one.loop)
        one.call(b"x", timeout=PATIENCE_S)
        woken(one.loop)


def test_an_event_that_cannot_be_handled_is_logged_and_the_loop_goes_on(caplog: pytest.LogCaptureFixture):
    def fail(event: Any) -> None:
        raise ValueError("odd")

    with serving(Handler(echo)) as one:
        assert one.call(b"x", timeout=PATIENCE_S) == b"x"
        one.loop.waker.start_server_batch((), fail)
        assert one.call(b"y", timeout=PATIENCE_S) == b"y"
    assert caplog.text.count("ValueError: odd") == 1


def test_whoever_wakes_a_loop_that_has_just_ended_does_no_harm():
    """gRPC's core ends the process if anything is begun after the end of its queue."""
    with serving(Handler(echo)) as one:
        assert one.call(b"x", timeout=PATIENCE_S) == b"x"
    one.loop._sleeps = True  # as another thread saw it a moment ago
    one.loop._write_to_self()


def test_timers_are_kept_while_nothing_comes():
    with looping() as loop:
        began = time.monotonic()
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0.3), loop).result(PATIENCE_S)
        assert time.monotonic() - began >= 0.3


@given(st.lists(st.sampled_from(["turn", "result", "error", "ready"]), max_size=6), st.booleans())
def test_work_that_has_begun_goes_on_as_it_would_in_a_task_of_its_own(waits: list[str], fails: bool):
    async def work() -> list[str]:
        seen = []
        for number, wait in enumerate(waits):
            loop = asyncio.get_running_loop()
            future: asyncio.Future[str] = loop.create_future()
            if wait == "turn":
                await asyncio.sleep(0)
                continue
            if wait == "error":
                loop.call_soon(future.set_exception, ValueError(f"error {number}"))
            elif wait == "result":
                loop.call_soon(future.set_result, f"result {number}")
            else:
                future.set_result(f"ready {number}")
            try:
                seen.append(await future)
            except ValueError as error:
                seen.append(str(error))
        if fails:
            raise ValueError(seen)
        return seen

    async def outcome(whole: Any) -> Any:
        try:
            return await whole
        except ValueError as error:
            return ["failed", *error.args]

    async def begun_here() -> Any:
        one = work()
        try:
            first = one.send(None)
        except StopIteration as done:
            return done.value
        except ValueError as error:
            return ["failed", *error.args]
        return await outcome(asyncio.ensure_future(_rest(one, first)))

    assert asyncio.run(begun_here()) == asyncio.run(outcome(work()))


def test_work_that_is_cancelled_where_it_first_waits_may_wait_again():
    async def work() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            return "cleaned up"
        return "never"

    async def run() -> str:
        one = work()
        task = asyncio.ensure_future(_rest(one, one.send(None)))
        await asyncio.sleep(0)
        task.cancel()
        return await task

    assert asyncio.run(run()) == "cleaned up"
