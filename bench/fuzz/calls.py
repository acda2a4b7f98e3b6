"""How fuzzed requests are sent: as bytes, many at once, over several connections."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc

from bench.fuzz.methods import Method
from bench.fuzz.requests import Request

HANGING_S = 60.0
"""A call that has not ended after so long will not end."""
_OPTIONS = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


@dataclass(frozen=True)
class Answer:
    """How a call ended; code is None if it did not. `responses` are bytes as they came."""

    code: grpc.StatusCode | None
    details: str
    responses: tuple[bytes, ...]


class Caller:
    """Connections to a server; to be made and used on one event loop."""

    def __init__(self, target: str, methods: dict[str, Method], keys: Mapping[str, str], *, connections: int = 4) -> None:
        # Each its own connection: channels of the same target and options share one.
        self._channels = [
            grpc.aio.insecure_channel(target, options=[*_OPTIONS, ("grpc.channel_number", number)])
            for number in range(connections)
        ]
        self._methods, self._keys = methods, keys

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()

    async def send(self, request: Request) -> Answer:
        """Sends one request, and waits for its end."""
        channel = self._channels[request.number % len(self._channels)]
        method = self._methods.get(request.method)
        plain = method is not None and not method.takes_stream and not method.gives_stream and len(request.messages) == 1
        options: dict[str, Any] = {"timeout": request.deadline_s, "metadata": self._metadata(request)}
        if plain:
            unary: Any = channel.unary_unary(request.method)
            call = unary(request.messages[0], **options)
        else:
            stream: Any = channel.stream_stream(request.method)
            call = stream(_messages(request), **options)
        leaving = None
        if request.cancel_after_s is not None:
            leaving = asyncio.get_running_loop().call_later(request.cancel_after_s, call.cancel)
        responses: list[bytes] = []
        try:
            async with asyncio.timeout(HANGING_S):
                await _read(call, plain, responses)
                code, details = await call.code(), await call.details() or ""
                # grpc.aio says so itself, when a call ends while its next message is being sent.
                own = code is grpc.StatusCode.INTERNAL and details == "Internal error from Core"
                return Answer(grpc.StatusCode.CANCELLED if own else code, details, tuple(responses))
        except TimeoutError:
            call.cancel()
            return Answer(None, "", tuple(responses))
        finally:
            if leaving is not None:
                leaving.cancel()

    def _metadata(self, request: Request) -> list[tuple[str, str | bytes]]:
        """With keys in place of their names."""
        keyed = {f"Bearer {name}": f"Bearer {key}" for name, key in self._keys.items()}
        return [(name, keyed.get(value, value) if isinstance(value, str) else value) for name, value in request.metadata]


async def _read(call: Any, plain: bool, responses: list[bytes]) -> None:
    """Takes what comes; how the call ended is to be asked of the call."""
    try:
        if plain:
            responses.append(await call)
        else:
            async for response in call:
                responses.append(response)
    except grpc.aio.AioRpcError:
        pass
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if not call.cancelled() or (task is not None and task.cancelling()):
            raise  # it is not the call alone that was cancelled


async def _messages(request: Request) -> AsyncIterator[bytes]:
    for message in request.messages:
        yield message
    if not request.closes:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(HANGING_S)


async def send_all(caller: Caller, requests: Iterable[Request], at_once: int, ended: Callable[[Request, Answer], None]) -> None:
    """Sends the requests, `at_once` at a time; `ended` is told of each."""
    waiting = iter(requests)

    async def work() -> None:
        for request in waiting:
            ended(request, await caller.send(request))

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(work())
