"""Waiting for the engine and the journal from the event loop."""

import asyncio
import time
from concurrent.futures import Future
from typing import TypeVar

from server.errors import DeadlineExceeded

T = TypeVar("T")


async def result_of(future: Future[T], deadline: float, *, late: str) -> T:
    """The future's result. deadline: time.monotonic seconds.

    If it does not come in time, or the caller is gone, work that has not begun is cancelled. Raises DeadlineExceeded with the
    message `late`.
    """
    try:
        async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
            return await asyncio.wrap_future(future)
    except TimeoutError:
        raise DeadlineExceeded(late) from None
