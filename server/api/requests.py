"""The requests of a caller's stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.message import DecodeError

from server.api.context import Context
from server.errors import InvalidRequest

BROKEN_MESSAGE = "the request is not a message of this method, in UTF-8"


class Requests:
    """Decoded messages, in order. `ended`: the caller has sent all. `stopped`: the server drains, and wants no more.

    A read cannot be called back: gRPC's core has been asked for the message. So whoever must stop at once reads in a task of
    its own and leaves it to itself: it ends with the call.
    """

    def __init__(self, context: Context, decode: Callable[[bytes], Any]) -> None:
        self._context = context
        self._decode = decode
        self._on_stop: Callable[[], None] = lambda: None
        self.ended = False
        self.stopped = False

    def __aiter__(self) -> Requests:
        return self

    async def __anext__(self) -> Any:
        """Raises InvalidRequest if it is not a message of the method."""
        data = await self._context.read()
        if data is None:
            self.ended = True
        if data is None or self.stopped:
            raise StopAsyncIteration
        try:
            return self._decode(data)
        except DecodeError:
            raise InvalidRequest(BROKEN_MESSAGE) from None

    def when_stopped(self, on_stop: Callable[[], None]) -> None:
        """Has `on_stop` called as soon as the server drains."""
        self._on_stop = on_stop

    def stop(self) -> None:
        """Takes no more of them."""
        self.stopped = True
        self._on_stop()
