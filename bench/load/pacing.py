"""Waking up at a time, to some tens of microseconds: asyncio's own timers are rounded to milliseconds."""

import asyncio
import ctypes
import os
import struct
import sys
import time
from typing import Any, Self

_MONOTONIC = 1
_NONBLOCK = 0o4000
_SPEC = struct.Struct("qqqq")  # interval and first expiry, each seconds and nanoseconds


class Pacer:
    """Waits until times of time.monotonic(), on the running loop. One waiter at a time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._libc: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
        self._timer = self._libc.timerfd_create(_MONOTONIC, _NONBLOCK) if self._libc else -1
        self._waiter: asyncio.Future[None] | None = None
        if self._timer >= 0:
            self._loop.add_reader(self._timer, self._wake)

    async def until(self, due: float) -> None:
        """Returns at `due`, or at once if that is over."""
        wait_s = due - time.monotonic()
        if wait_s <= 0:
            return
        if self._timer < 0:
            await asyncio.sleep(wait_s)
            return
        self._waiter = self._loop.create_future()
        seconds, part = divmod(wait_s, 1)
        self._libc.timerfd_settime(self._timer, 0, _SPEC.pack(0, 0, int(seconds), max(1, int(part * 1e9))), None)
        await self._waiter

    def _wake(self) -> None:
        try:
            os.read(self._timer, 8)
        except BlockingIOError:
            return
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def close(self) -> None:
        if self._timer >= 0:
            self._loop.remove_reader(self._timer)
            os.close(self._timer)
            self._timer = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
