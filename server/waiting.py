"""Waiting for the engine and the journal from the event loop."""

import asyncio
import threading
import time
from collections import deque
from concurrent.futures import Future
from typing import Generic, TypeVar

from server.errors import DeadlineExceeded

T = TypeVar("T")


class InPlace(Generic[T]):
    """A future of what the thread that wants it computes itself: nobody waits for it, so it needs no lock."""

    __slots__ = ("_error", "_result")

    def __init__(self) -> None:
        self._result: T | None = None
        self._error: Exception | None = None

    def set_running_or_notify_cancel(self) -> bool:
        return True

    def done(self) -> bool:
        return self._result is not None or self._error is not None

    def set_result(self, result: T) -> None:
        self._result = result

    def set_exception(self, error: Exception) -> None:
        self._error = error

    def result(self) -> T:
        """Raises what failed."""
        if self._result is None:
            raise self._error or RuntimeError("it was not computed")
        return self._result


async def result_of(future: Future[T] | InPlace[T], deadline: float, *, late: str) -> T:
    """The future's result. deadline: time.monotonic seconds.

    If it does not come in time, or the caller is gone, work that has not begun is cancelled. Raises DeadlineExceeded with the
    message `late`.
    """
    if isinstance(future, InPlace) or future.done():
        return future.result()
    # asyncio.timeout around asyncio.wrap_future would say the same, at five times the price.
    wakes = _wakes()
    waiter: asyncio.Future[bool] = wakes.loop.create_future()
    timer = wakes.loop.call_later(max(0.0, deadline - time.monotonic()), _end, waiter, False)
    future.add_done_callback(lambda _: wakes.wake(waiter))
    try:
        if await waiter or future.done():
            return future.result()
    except asyncio.CancelledError:
        future.cancel()
        raise
    finally:
        timer.cancel()
    future.cancel()
    raise DeadlineExceeded(late)


class _Wakes:
    """Wakes those who wait on a loop from other threads: with one wake-up of the loop for all that are due meanwhile."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._due: deque[asyncio.Future[bool]] = deque()
        self._called = False

    def wake(self, waiter: asyncio.Future[bool]) -> None:
        """On any thread. Nothing if the loop has ended: nobody waits there."""
        self._due.append(waiter)
        if not self._called and not self.loop.is_closed():
            self._called = True
            self.loop.call_soon_threadsafe(self._run)

    def _run(self) -> None:
        self._called = False  # first: whoever is due from now on is taken below, or calls again
        while self._due:
            _end(self._due.popleft(), True)


class _Here(threading.local):
    wakes: _Wakes | None = None


_here = _Here()


def _wakes() -> _Wakes:
    """Of the running loop, which has a thread to itself."""
    loop = asyncio.get_running_loop()
    wakes = _here.wakes
    if wakes is None or wakes.loop is not loop:
        wakes = _here.wakes = _Wakes(loop)
    return wakes


def _end(waiter: asyncio.Future[bool], done: bool) -> None:
    if not waiter.done():
        waiter.set_result(done)
