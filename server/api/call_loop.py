"""The event loop that runs gRPC's calls: asyncio's, which waits for gRPC's completion queue, and for nothing else."""

import asyncio
import threading
import time
from typing import Any

from grpc._cython.cygrpc import CompletionQueue

_LONGEST_SECONDS = 0.1  # of one wait: gRPC waits until a time of day, and the clock may be set back meanwhile
_DEAF_SECONDS = 0.005  # of one wait, while nothing can wake the loop
_AT_ONCE = 1024  # events: a crowd of some 300 calls is taken in before the loop goes on with those that it has


class CallLoop(asyncio.BaseEventLoop):
    """An event loop whose thread takes gRPC's events itself.

    gRPC's own server for asyncio leaves that to another thread, which writes a byte into a socket for each of a call's four
    events, so that the loop wakes and looks: nearly half of what a call costs. Here the loop waits where gRPC says what has
    happened, as its server for threads does. A tag is a function, which is called with its event before anything else goes on.

    Files and sockets cannot be waited for here, as on any loop that is not a selector's.
    """

    def __init__(self) -> None:
        super().__init__()
        self.queue = CompletionQueue()
        self.waker: Any = None
        """A call of gRPC, of which no more is asked than to wake the loop: it may have ended. None: nothing can wake it."""
        self._sleeps = False
        self._is_called = False  # by another thread, which has something to be run
        self._waking = threading.Lock()  # no wake-up is begun after the queue's end, which would end the process
        self._selector = self  # what asyncio asks for events, each time round

    def select(self, timeout: float | None) -> list[Any]:
        """Handles what has happened; waits for it up to `timeout` seconds, None: until something does."""
        wait = timeout is None or timeout > 0.0
        for _ in range(_AT_ONCE):
            try:
                event = self._sleep(timeout) if wait else self.queue.poll(0.0)
                wait = False
                if event.tag is None:
                    break
                event.tag(event)
            except Exception as error:  # for want of memory for a message, for example: the loop goes on
                self.call_exception_handler({"message": "an event of gRPC's could not be handled", "exception": error})
        return []

    def close(self) -> None:
        """Takes what gRPC has left, and ends. Every server of this loop must have stopped."""
        if self.is_closed():
            return
        super().close()
        with self._waking:
            self.waker = None
        self.queue.shutdown()
        while self.queue.poll().tag is not None:
            pass

    def _sleep(self, timeout: float | None) -> Any:
        longest = _LONGEST_SECONDS if self.waker is not None else _DEAF_SECONDS
        seconds = longest if timeout is None else min(timeout, longest)
        self._sleeps = True
        try:  # looks whether it is called only now: whoever calls from here on wakes it
            return self.queue.poll(0.0 if self._is_called else time.time() + seconds)
        finally:
            self._sleeps = self._is_called = False  # what there is to be run is run next

    def _process_events(self, events: list[Any]) -> None:
        """`select` has handled them."""

    def _write_to_self(self) -> None:
        """Wakes the loop, on any thread: a batch of no operations has happened as soon as it is started."""
        self._is_called = True
        if self._sleeps:
            with self._waking:
                if self.waker is not None:
                    self._sleeps = False
                    self.waker.start_server_batch((), _woken)


def _woken(event: Any) -> None:
    """That was all."""
