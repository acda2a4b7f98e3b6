"""The engine's thread."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from server.engine.batch_time import BatchTime
from server.engine.exhaustion import Exhaustion
from server.engine.query import Answer, Query
from server.errors import DeadlineExceeded, Unavailable
from server.waiting import InPlace

_log = logging.getLogger(__name__)
_QUICK_SECONDS = 0.001  # of a query: more would hold up whoever else needs the thread that asks
_SHARE = 0.1  # of the thread's time, for background work while others wait
_LULL_SECONDS = 0.2  # without a poke for so long, what is flooded is so no more
_STARVED_SECONDS = 0.05  # the longest that background work waits for others, whatever its share
T = TypeVar("T")
Steps = Generator[None, None, T]
"""Work in short steps, between which others' queries are answered."""


class _Call:
    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function
        self.future: Future[Any] = Future()


class _Stepped:
    """A call whose first step has run."""

    def __init__(self, future: Future[Any], steps: Steps[Any]) -> None:
        self.future = future
        self.steps = steps


@dataclass(slots=True)
class _Turn:
    """What the thread does between two looks at what waits, in this order, and one step of a call before the background."""

    calls: list[_Call]
    queries: list[Query]
    exact: list[Query]  # one at most
    background: bool

    @property
    def waited(self) -> bool:
        return bool(self.calls or self.queries or self.exact)


class Engine:
    """Owns the accelerator, the index and the towers: one thread at a time touches them, its own or, for one quick query, that
    of a caller (`ask_here`). To hand such a query over, and its answer back, takes as long as to compute it.

    Greedy batching: it never waits for more; a batch is what arrived while the one before was computed. Calls (changes of the
    index) run before the queries of their batch, in the order of submission, so a query sees what calls submitted before it did
    in their first steps. Further steps of a call run one at a time, between batches.

    Exact queries, which compare with every item, are for measuring: one of them runs after each batch, by itself, so that a
    crowd of them holds up others by one at a time and no batch waits for one that came with it.

    Background work runs when nothing else waits. While something always waits it has a tenth of the thread, a turn at a time:
    a rebuild has to end under load too. It has no more than that either while it is flooded, since it would take the
    interpreter's lock from those who bring the work: events came in at a quarter of the rate. If the thread dies every waiter
    fails and `on_death` is told.
    """

    def __init__(
        self,
        answer: Callable[[list[Query]], None],
        *,
        background: Callable[[], bool] = lambda: False,
        flooded: Callable[[], bool] = lambda: False,
        max_batch: int = 64,
        callers_compute: Callable[[], bool] = lambda: True,
        on_death: Callable[[], None] = lambda: None,
        waited: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        """answer: completes the futures of a batch. background: does a millisecond of work; False if nothing is left.

        flooded: whether there is more background work than can be done soon. waited: told, for each batch, how many seconds its
        first query waited. callers_compute: False while only the engine's own thread may, whatever `ask_here` is asked.
        """
        self._answer = answer
        self._background = background
        self._flooded = flooded
        self._max_batch = max_batch
        self._callers_compute = callers_compute
        self._on_death = on_death
        self._waited = waited
        self._batch_time = BatchTime()
        self._queries: deque[Query] = deque()
        self._exact: deque[Query] = deque()
        self._calls: deque[_Call] = deque()
        self._stepped: deque[_Stepped] = deque()
        self._work_due = math.inf  # time.monotonic seconds: from when on there is background work
        self._poked_at = 0.0  # time.monotonic seconds
        self._pokes = 0
        self._asked_since = 0  # pokes before the round of background work that is under way
        self._background_due = 0.0  # time.monotonic seconds: when it runs although others wait
        self._flood_due = 0.0  # the same, while it is flooded
        self._resting = False  # whether nobody computes, so that the next one may
        self._is_held_up = False  # whether the thread waits for a caller that computes
        self._stopping = False
        self._dead = False
        self._memory = Exhaustion()
        self._lock = threading.RLock()
        self._wake = threading.Condition(self._lock)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def ask(self, query: Query) -> Future[Answer]:
        """Queues a query."""
        with self._wake:
            self._refuse_if_over()
            return self._queue(query)

    def ask_here(self, query: Query) -> Future[Answer] | InPlace[Answer]:
        """`ask`, but a quick query is computed here and now, if nobody else computes and nothing waits for its turn."""
        with self._lock:
            if not self._may_compute(query):
                self._refuse_if_over()
                return self._queue(query)
            self._resting = False
        answered: InPlace[Answer] = InPlace()
        query.future = answered
        try:
            self._run_queries([query])
        except BaseException:
            self._die([query])
        finally:
            with self._lock:
                self._resting = True
                if self._is_held_up:
                    self._is_held_up = False
                    self._wake.notify()
        return answered

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Runs a function on the engine's thread, before any query that is submitted later."""
        return self._submit(function)

    def call_in_steps(self, function: Callable[[], Steps[T]]) -> Future[T]:
        """Runs the first step of what the function returns before any query that is submitted later, the others in between.

        The future ends after the last step, with what the steps return. Steps of several calls run in the order of submission.
        """
        return self._submit(function)

    def _submit(self, function: Callable[[], Any]) -> Future[Any]:
        call = _Call(function)
        with self._wake:
            self._refuse_if_over()
            self._calls.append(call)
            self._wake.notify()
        return call.future

    def poke(self, *, after: float = 0.0) -> None:
        """There is background work, which may wait for so many seconds."""
        with self._wake:
            self._pokes += 1
            self._poked_at = time.monotonic()
            due = self._poked_at + after
            if due < self._work_due:  # else the thread wakes early enough
                self._work_due = due
                self._wake.notify()

    def close(self) -> None:
        """Finishes what is queued and stops."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _queue(self, query: Query) -> Future[Answer]:
        future: Future[Answer] = Future()
        query.future = future
        (self._exact if query.exact else self._queries).append(query)
        self._wake.notify()
        return future

    def _may_compute(self, query: Query) -> bool:
        """Whether a caller may compute a query itself now."""
        is_free = self._resting and not self._has_work() and not self._background_may(query.arrived)
        return is_free and query.is_simple and self._callers_compute() and self._batch_time.usual() <= _QUICK_SECONDS

    def _has_work(self) -> bool:
        """Whether anything but background work waits."""
        return bool(self._calls or self._queries or self._exact or self._stepped or self._stopping)

    def _refuse_if_over(self) -> None:
        if self._dead or self._stopping:
            raise Unavailable("the engine has stopped; repeat the call on another server")

    def _run(self) -> None:
        turn = _Turn([], [], [], background=False)
        try:
            while True:
                turn = self._next()
                if not (turn.waited or turn.background or self._stepped):
                    return
                for call in turn.calls:
                    self._run_call(call)
                for queries in (turn.queries, turn.exact):
                    if queries:
                        self._run_queries(queries)
                if self._stepped and self._run_step(self._stepped[0]):
                    self._stepped.popleft()
                if turn.background:
                    self._run_background()
        except BaseException:
            self._die([*turn.calls, *turn.queries, *turn.exact])

    def _next(self) -> _Turn:
        """What is to be done next; nothing at all means stop."""
        with self._wake:
            self._resting = True
            while not (self._resting and self._has_work()):
                if not self._resting:
                    self._is_held_up = True
                    self._wake.wait()
                elif self._work_due == math.inf:
                    self._wake.wait()
                elif (pause := self._pause_seconds()) > 0.0:
                    self._wake.wait(pause)
                else:
                    break
            self._resting = False
            calls = list(self._calls)
            self._calls.clear()
            queries = [self._queries.popleft() for _ in range(min(len(self._queries), self._max_batch))]
            turn = _Turn(calls, queries, [self._exact.popleft()] if self._exact else [], background=False)
            if self._work_due < math.inf and not self._stopping:
                others = turn.waited or self._stepped
                turn.background = not others or self._background_may(time.monotonic())
            return turn

    def _background_may(self, now: float) -> bool:
        """Whether there is background work, and a share of the thread for it, although others wait."""
        return now >= max(self._work_due, self._background_due)

    def _pause_seconds(self) -> float:
        """How long background work must wait although nothing else does."""
        now = time.monotonic()
        is_flooded = now - self._poked_at <= _LULL_SECONDS and self._flooded()
        return (max(self._work_due, self._flood_due) if is_flooded else self._work_due) - now

    def _run_queries(self, queries: list[Query]) -> None:
        started = time.monotonic()
        self._waited(started - queries[0].arrived)
        exact = queries[0].exact  # all or none: their time says nothing about that of others
        ends = started if exact else started + self._batch_time.at_least(len(queries))
        wanted = [query for query in queries if _is_wanted(query, started, ends)]
        if not wanted:
            self._batch_time.refused()
            return
        try:
            self._answer(wanted)
            self._memory.answered()
        except Exception as error:
            _log.error("a batch of %d queries failed", len(wanted), exc_info=True)
            refusal = self._memory.refusal(error)
            for query in wanted:
                if not query.future.done():
                    query.future.set_exception(refusal)
        if not exact:
            self._batch_time.took(time.monotonic() - started, len(wanted))

    def _run_background(self) -> None:
        """Until something else waits, or nothing is left."""
        self._work_due = math.inf  # first, so that a poke during the work is not lost
        pokes, more = self._pokes, True
        while more:
            started = time.monotonic()
            try:
                more = self._background()
            except Exception as error:
                _log.error("background work failed", exc_info=True)
                self._memory.refusal(error)
                more = False
            ended = time.monotonic()
            # Jobs that take turns find out one by one that they have nothing to do: some may have said so before the last poke.
            if not more and pokes > self._asked_since:
                self._asked_since, more = pokes, True
            if self._has_work() or self._flooded():
                break
        pause = (ended - started) * (1 / _SHARE - 1)
        self._background_due = ended + min(pause, _STARVED_SECONDS)
        self._flood_due = ended + pause
        if more:
            with self._lock:  # a poke that may wait must not put off what is left
                self._work_due = ended

    def _run_call(self, call: _Call) -> None:
        if not call.future.set_running_or_notify_cancel():
            return
        try:
            result = call.function()
        except Exception as error:
            call.future.set_exception(self._memory.refusal(error))
            return
        if not isinstance(result, Generator):
            call.future.set_result(result)
        elif not self._run_step(stepped := _Stepped(call.future, result)):
            self._stepped.append(stepped)

    def _run_step(self, call: _Stepped) -> bool:
        """Runs one step; whether it was the last."""
        try:
            next(call.steps)
        except StopIteration as end:
            call.future.set_result(end.value)
        except Exception as error:
            call.future.set_exception(self._memory.refusal(error))
        else:
            return False
        return True

    def _die(self, taken: list[Any]) -> None:
        _log.critical("the engine died; the server must be restarted", exc_info=True)
        with self._wake:
            self._dead = self._stopping = True
            queued = (self._stepped, self._calls, self._queries, self._exact)
            waiting = [*taken, *(one for queue in queued for one in queue)]
            for queue in queued:
                queue.clear()
        try:
            for one in waiting:
                with suppress(InvalidStateError):  # it is done, or its caller has just left
                    one.future.set_exception(Unavailable("the engine died; repeat the call on another server"))
        finally:
            self._on_death()


def _is_wanted(query: Query, started: float, ends: float) -> bool:
    """Whether a query is to be computed in a batch that ends so late at least; if it cannot be met it is refused here.

    Where a stale vector will do, less than the usual time may be enough.
    """
    if not query.future.set_running_or_notify_cancel():
        return False  # its caller is gone
    if query.deadline <= started:
        query.future.set_exception(DeadlineExceeded("the deadline passed while the request waited"))
    elif query.deadline < ends and not query.allow_stale:
        query.future.set_exception(DeadlineExceeded("it could not be answered before the deadline; give the call more time"))
    else:
        return True
    return False
