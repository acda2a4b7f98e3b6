"""The engine's thread: greedy batches, calls before queries, background last, and no waiter left behind."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import numpy as np
import pytest

from server.engine.engine import Engine
from server.engine.query import Answer, ForVector, Query
from server.errors import DeadlineExceeded, Unavailable

PATIENCE_S = 10.0
FAR = 1e12  # a deadline that never comes, in time.monotonic seconds


class Answers:
    """Answers queries, numbered by their limit, and remembers what it was asked together."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.on_batch: Callable[[list[Query]], None] = lambda queries: None

    def __call__(self, queries: list[Query]) -> None:
        self.batches.append([query.limit for query in queries])
        self.on_batch(queries)
        for query in queries:
            query.future.set_result(Answer("release"))


class Blocked:
    """Occupies the engine's thread in a call until it is let go."""

    def __init__(self, engine: Engine) -> None:
        self.reached = threading.Event()
        self._let_go = threading.Event()
        self.future = engine.call(self._run)

    def _run(self) -> None:
        self.reached.set()
        if not self._let_go.wait(PATIENCE_S):
            raise TimeoutError("the test never let the engine go")

    def let_go(self) -> None:
        self._let_go.set()


def query(number: int, *, deadline: float = FAR) -> Query:
    return Query(ForVector(np.ones(1, dtype=np.float32)), deadline, time.monotonic(), limit=number)


def block(engine: Engine) -> Blocked:
    blocked = Blocked(engine)
    assert blocked.reached.wait(PATIENCE_S)
    return blocked


@pytest.fixture
def answers() -> Answers:
    return Answers()


@pytest.fixture
def engine(answers: Answers) -> Iterator[Engine]:
    started = Engine(answers, max_batch=4)
    started.start()
    yield started
    started.close()


def test_what_arrives_during_a_batch_is_the_next_batch(engine: Engine, answers: Answers):
    reached, let_go = threading.Event(), threading.Event()

    def pause(queries: list[Query]) -> None:
        reached.set()
        let_go.wait(PATIENCE_S)

    answers.on_batch = pause
    first = engine.ask(query(1))
    assert reached.wait(PATIENCE_S)
    later = [engine.ask(query(number)) for number in (2, 3, 4)]
    let_go.set()
    for future in (first, *later):
        assert future.result(PATIENCE_S).release_id == "release"
    assert answers.batches == [[1], [2, 3, 4]]


def test_a_lone_query_is_not_kept_waiting_for_company(engine: Engine, answers: Answers):
    for number in (1, 2, 3):
        engine.ask(query(number)).result(PATIENCE_S)
    assert answers.batches == [[1], [2], [3]]


def test_a_batch_is_bounded_and_the_rest_follows_in_order(engine: Engine, answers: Answers):
    blocked = block(engine)
    futures = [engine.ask(query(number)) for number in range(10)]
    blocked.let_go()
    for future in futures:
        future.result(PATIENCE_S)
    assert answers.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_a_query_sees_every_call_that_was_submitted_before_it(engine: Engine, answers: Answers):
    done: list[str] = []
    answers.on_batch = lambda queries: done.extend(f"query {one.limit}" for one in queries)
    blocked = block(engine)
    engine.ask(query(1))
    first = engine.call(lambda: done.append("call a"))
    second = engine.call(lambda: done.append("call b"))
    last = engine.ask(query(2))
    blocked.let_go()
    last.result(PATIENCE_S)
    assert done == ["call a", "call b", "query 1", "query 2"]
    assert first.done() and second.done()


def test_a_call_returns_its_value_or_its_error_and_the_engine_goes_on(engine: Engine):
    assert engine.call(lambda: 7).result(PATIENCE_S) == 7
    with pytest.raises(ValueError, match="bad call"):
        engine.call(raising(ValueError("bad call"))).result(PATIENCE_S)
    assert engine.ask(query(1)).result(PATIENCE_S)


def test_a_query_whose_caller_is_gone_is_not_computed(engine: Engine, answers: Answers):
    blocked = block(engine)
    gone, there = engine.ask(query(1)), engine.ask(query(2))
    assert gone.cancel()
    blocked.let_go()
    there.result(PATIENCE_S)
    assert answers.batches == [[2]]


def test_a_query_whose_deadline_passed_in_the_queue_is_not_computed(engine: Engine, answers: Answers):
    blocked = block(engine)
    late, in_time = engine.ask(query(1, deadline=time.monotonic() - 0.001)), engine.ask(query(2))
    blocked.let_go()
    with pytest.raises(DeadlineExceeded, match="while the request waited"):
        late.result(PATIENCE_S)
    in_time.result(PATIENCE_S)
    assert answers.batches == [[2]]


def test_an_error_in_one_batch_fails_that_batch_only(engine: Engine, answers: Answers, caplog: pytest.LogCaptureFixture):
    blocked = block(engine)
    answered, failed = engine.ask(query(1)), engine.ask(query(2))

    def half(queries: list[Query]) -> None:
        queries[0].future.set_result(Answer("early"))
        raise ValueError("half way")

    answers.on_batch = half
    blocked.let_go()
    assert answered.result(PATIENCE_S).release_id == "early", "what had an answer keeps it"
    with pytest.raises(ValueError, match="half way"):
        failed.result(PATIENCE_S)
    answers.on_batch = lambda queries: None
    assert engine.ask(query(3)).result(PATIENCE_S).release_id == "release"
    assert "a batch of 2 queries failed" in caplog.text


def test_background_work_runs_after_what_waits(answers: Answers):
    done: list[str] = []
    left = [3]
    idle = threading.Event()

    def background() -> bool:
        if not left[0]:
            idle.set()
            return False
        left[0] -= 1
        done.append("background")
        if left[0] == 1:  # a query and a call come in between two pieces of work
            engine.ask(query(1))
            engine.call(lambda: done.append("call"))
        return True

    answers.on_batch = lambda queries: done.append("query")
    engine = Engine(answers, background=background)
    engine.start()
    time.sleep(0.02)
    assert done == [], "nobody said that there is work"
    engine.poke()
    assert idle.wait(PATIENCE_S)
    assert done == ["background", "background", "call", "query", "background"]
    engine.poke()
    engine.call(lambda: None).result(PATIENCE_S)
    engine.close()


def test_an_error_in_background_work_is_logged_and_stops_it_until_the_next_poke(
    answers: Answers, caplog: pytest.LogCaptureFixture
):
    runs: list[int] = []
    again = threading.Event()

    def background() -> bool:
        runs.append(1)
        if len(runs) == 1:
            raise ValueError("broken")
        again.set()
        return False

    engine = Engine(answers, background=background)
    engine.start()
    engine.poke()
    assert engine.ask(query(1)).result(PATIENCE_S)
    deadline = time.monotonic() + PATIENCE_S
    while not runs and time.monotonic() < deadline:
        time.sleep(0.001)
    engine.ask(query(2)).result(PATIENCE_S)
    engine.poke()
    assert again.wait(PATIENCE_S)
    engine.close()
    assert "background work failed" in caplog.text
    assert len(runs) == 2


class Fatal(BaseException):
    """Nothing that an except Exception catches."""


@pytest.mark.parametrize("dies_in", ["call", "query", "background"])
def test_the_death_of_the_thread_fails_every_waiter_and_is_told(dies_in: str, caplog: pytest.LogCaptureFixture):
    answers = Answers()
    died = threading.Event()
    engine = Engine(answers, max_batch=2, background=raising(Fatal("the device is gone")), on_death=died.set)
    engine.start()
    blocked = block(engine)
    waiting: list[Future[object]] = []
    if dies_in == "background":
        engine.poke()
    else:
        if dies_in == "call":
            waiting.append(engine.call(raising(Fatal("the device is gone"))))
            waiting.append(engine.call(lambda: None))
        else:
            answers.on_batch = raising(Fatal("the device is gone"))
        waiting.extend(engine.ask(query(number)) for number in range(5))  # type: ignore[arg-type]
        waiting[-1].cancel()
    blocked.let_go()
    assert died.wait(PATIENCE_S)
    for future in waiting[:-1]:
        with pytest.raises(Unavailable, match="the engine died"):
            future.result(PATIENCE_S)
    for refused in (lambda: engine.ask(query(9)), lambda: engine.call(lambda: None)):
        with pytest.raises(Unavailable, match="the engine has stopped"):
            refused()
    engine.poke()
    engine.close()
    assert "the engine died" in caplog.text


def test_close_finishes_what_is_queued_and_takes_nothing_more(answers: Answers):
    engine = Engine(answers, max_batch=2)
    engine.start()
    blocked = block(engine)
    queries = [engine.ask(query(number)) for number in range(5)]
    call = engine.call(lambda: "done")
    closing = threading.Thread(target=engine.close)
    closing.start()
    blocked.let_go()
    closing.join(PATIENCE_S)
    assert not closing.is_alive()
    assert call.result(0) == "done"
    assert all(future.result(0) for future in queries)
    for refused in (lambda: engine.ask(query(9)), lambda: engine.call(lambda: None)):
        with pytest.raises(Unavailable):
            refused()
    engine.close()  # closing twice is harmless


def test_background_work_does_not_hold_up_closing(answers: Answers):
    started = threading.Event()

    def background() -> bool:
        started.set()
        return True  # always more

    engine = Engine(answers, background=background)
    engine.start()
    engine.poke()
    assert started.wait(PATIENCE_S)
    closing = threading.Thread(target=engine.close)
    closing.start()
    closing.join(PATIENCE_S)
    assert not closing.is_alive()


def raising(error: BaseException) -> Callable[..., bool]:
    def fail(*_: object) -> bool:
        raise error

    return fail
