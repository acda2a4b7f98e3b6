"""Queries that are computed by the thread that asks: when nobody else computes, and only what takes no time."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from index.filters.filter import Filter
from server.engine.engine import Engine
from server.engine.query import ForHistory, ForPerson, ForVector, Query, Subject
from server.errors import DeadlineExceeded, Unavailable
from server.users.histories import History
from server.waiting import InPlace
from tests.server.test_engine import PATIENCE_S, Answers, block, query

SLOW_S = 0.005


class Where(Answers):
    """Remembers which thread computed each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: list[str] = []

    def __call__(self, queries: list[Query]) -> None:
        self.threads.append(threading.current_thread().name)
        super().__call__(queries)


@pytest.fixture
def answers() -> Where:
    return Where()


@pytest.fixture
def engine(answers: Where) -> Iterator[Engine]:
    engine = Engine(answers)
    engine.start()
    engine.call(lambda: None).result(PATIENCE_S)
    yield engine
    engine.close()


def here() -> str:
    return threading.current_thread().name


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def ask_until_here(engine: Engine, number: int) -> InPlace[object]:
    """The thread has ended its call a moment before it rests."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        asked = engine.ask_here(query(number))
        if isinstance(asked, InPlace):
            return asked
        asked.result(PATIENCE_S)
    raise AssertionError("the engine never rested")


def test_a_query_is_computed_by_the_thread_that_asks_while_the_engine_rests(engine: Engine, answers: Where):
    asked = ask_until_here(engine, 7)
    assert asked.done()
    assert answers.batches[-1] == [7]
    assert answers.threads[-1] == here()


def test_a_query_waits_its_turn_while_the_engine_computes(engine: Engine, answers: Where):
    blocked = block(engine)
    asked = engine.ask_here(query(1))
    assert isinstance(asked, Future)
    assert not asked.done()
    blocked.let_go()
    assert asked.result(PATIENCE_S).release_id == "release"
    assert answers.threads == ["engine"]


def test_a_query_overtakes_no_call_that_was_submitted_before_it(engine: Engine, answers: Where):
    done: list[str] = []
    answers.on_batch = lambda queries: done.append("query")
    for _ in range(50):  # the engine's thread has hardly begun with the call, or has not
        ask_until_here(engine, 1)
        done.clear()
        call = engine.call(lambda: done.append("call"))
        asked = engine.ask_here(query(1))
        call.result(PATIENCE_S)
        asked.result()
        assert done == ["call", "query"]


def test_what_is_submitted_while_a_caller_computes_waits_for_it(engine: Engine, answers: Where):
    order: list[str] = []
    calls: list[Future[None]] = []

    def submit(queries: list[Query]) -> None:
        answers.on_batch = lambda queries: None
        calls.append(engine.call(lambda: order.append("call")))
        time.sleep(SLOW_S)
        order.append("query")

    answers.on_batch = submit
    ask_until_here(engine, 1)
    calls[0].result(PATIENCE_S)
    assert order == ["query", "call"]


def test_queries_that_take_long_are_left_to_the_engines_thread(engine: Engine, answers: Where):
    answers.on_batch = lambda queries: time.sleep(SLOW_S)
    for number in range(8):  # the quickest of the last eight says how long a query takes
        engine.ask(query(number)).result(PATIENCE_S)
    for number in range(3):
        asked = engine.ask_here(query(number))
        assert isinstance(asked, Future)
        asked.result(PATIENCE_S)
    assert set(answers.threads) == {"engine"}


def test_a_query_that_fails_fails_alone(engine: Engine, answers: Where):
    def fail(queries: list[Query]) -> None:
        raise ValueError("not this one")

    answers.on_batch = fail
    asked = ask_until_here(engine, 1)
    with pytest.raises(ValueError, match="not this one"):
        asked.result()
    answers.on_batch = lambda queries: None
    assert ask_until_here(engine, 2).done()


def test_a_query_whose_deadline_has_passed_is_refused(engine: Engine, answers: Where):
    ask_until_here(engine, 1)
    with pytest.raises(DeadlineExceeded):
        engine.ask_here(query(99, deadline=time.monotonic() - 1.0)).result()
    assert [99] not in answers.batches


def test_a_query_lets_background_work_go_first_that_has_waited_for_its_share(answers: Where):
    worked: list[str] = []
    engine = Engine(answers, background=lambda: bool(worked.append(here())))
    engine.start()
    ask_until_here(engine, 1)
    with engine._lock:  # so that the thread cannot begin before the query is asked
        engine.poke()
        asked = engine.ask_here(query(2))
    assert isinstance(asked, Future)
    asked.result(PATIENCE_S)
    engine.close()
    assert answers.threads[-1] == "engine"


def test_work_that_may_wait_does_not_wake_the_thread_after_every_query(answers: Where):
    engine = Engine(answers)
    engine.start()
    ask_until_here(engine, 1)
    engine.poke(after=3600.0)
    woken: list[int] = []
    notify = engine._wake.notify
    engine._wake.notify = lambda n=1: (woken.append(n), notify(n))[1]  # type: ignore
    for number in range(20):
        assert isinstance(engine.ask_here(query(number)), InPlace)
    assert woken == []
    engine.close()


def test_the_engine_dies_with_a_caller_that_computes(answers: Where):
    died = threading.Event()
    engine = Engine(answers, on_death=died.set)
    engine.start()
    ask_until_here(engine, 1)

    def end(queries: list[Query]) -> None:
        raise SystemExit("the device is gone")

    answers.on_batch = end
    asked = ask_until_here(engine, 2)
    with pytest.raises(Unavailable):
        asked.result()
    assert died.is_set()
    with pytest.raises(Unavailable):
        engine.ask_here(query(3))
    engine.close()


def test_an_engine_that_was_closed_computes_nothing_for_anybody(answers: Where):
    engine = Engine(answers)
    engine.start()
    engine.close()
    with pytest.raises(Unavailable):
        engine.ask_here(query(1))
    assert answers.batches == []


def test_work_that_may_wait_does_not_begin_before(answers: Where):
    turns: list[float] = []
    engine = Engine(answers, background=lambda: bool(turns.append(time.monotonic())))
    engine.start()
    poked = time.monotonic()
    engine.poke(after=0.05)
    until(lambda: bool(turns))
    engine.close()
    assert turns[0] >= poked + 0.05


def test_a_poke_without_patience_brings_work_forward(answers: Where):
    worked = threading.Event()
    engine = Engine(answers, background=lambda: bool(worked.set()))
    engine.start()
    engine.poke(after=3600.0)
    assert not worked.wait(SLOW_S)
    engine.poke()
    assert worked.wait(PATIENCE_S)
    engine.close()


def test_only_what_takes_the_time_of_most_queries_is_simple():
    nobody = np.zeros(0, dtype=np.int32)
    history = History(np.zeros(300, np.int32), np.zeros(300, np.int16), np.zeros(300, np.int64), 1, 300, 0)

    def asked(subject: Subject, **more: Any) -> Query:
        return Query(subject, 0.0, 0.0, limit=1, **more)

    given = ForVector(np.ones(1, dtype=np.float32))
    assert asked(given).is_simple
    assert asked(given, exclude=np.arange(256), exclude_seen=True).is_simple
    assert asked(ForHistory(history)).is_simple
    assert asked(ForPerson(1, history._replace(ordinals=nobody)), exclude_seen=True).is_simple
    assert not asked(given, exclude=np.arange(257)).is_simple
    assert not asked(given, exact=True).is_simple
    assert not asked(given, filter=Filter()).is_simple
    assert not asked(ForHistory(history), exclude_seen=True).is_simple
    assert not asked(ForPerson(1, history), exclude_seen=True).is_simple


def test_many_threads_that_ask_are_all_answered_and_one_computes_at_a_time(answers: Where):
    computing: list[int] = []
    most: list[int] = []

    def watch(queries: list[Query]) -> None:
        computing.append(1)
        most.append(len(computing))
        time.sleep(0)
        computing.pop()

    answers.on_batch = watch
    engine = Engine(answers)
    engine.start()
    done: list[int] = []

    def ask() -> None:
        for number in range(200):
            engine.ask_here(query(number)).result()
            if number % 10 == 0:
                engine.call(lambda: watch([])).result(PATIENCE_S)
        done.append(1)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    engine.close()
    assert len(done) == 4
    assert set(most) == {1}
