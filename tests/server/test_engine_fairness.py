"""The engine's thread under load: background work has its share, exact queries take turns, jobs take turns."""

import threading
import time
from collections.abc import Callable
from itertools import pairwise

import pytest

from server.engine.engine import Engine, Steps
from server.engine.query import Query
from server.engine.turns import Turns
from tests.server.test_engine import PATIENCE_S, Answers, block, query

WORK_S = 0.001


def exact(number: int) -> Query:
    asked = query(number)
    asked.exact = True
    return asked


@pytest.mark.parametrize("load", ["queries", "exact queries", "calls", "steps"])
def test_background_work_goes_on_while_others_always_wait(load: str):
    answers = Answers()
    stop, worked = threading.Event(), threading.Event()
    turns: list[int] = []

    def background() -> bool:
        turns.append(1)
        if len(turns) == 5:
            worked.set()
        return len(turns) < 5

    engine = Engine(answers, background=background)

    def steps() -> Steps[None]:
        while not stop.is_set():
            yield

    def again() -> None:
        if not stop.is_set():
            start[load]()

    answers.on_batch = lambda queries: again()
    start: dict[str, Callable[[], object]] = {
        "queries": lambda: engine.ask(query(1)),
        "exact queries": lambda: engine.ask(exact(1)),
        "calls": lambda: engine.call(again),
        "steps": lambda: engine.call_in_steps(steps),
    }
    engine.start()
    start[load]()
    engine.poke()
    came = worked.wait(PATIENCE_S)
    stop.set()
    engine.close()
    assert came


def test_background_work_takes_a_small_share_of_the_thread_from_those_who_wait():
    answers = Answers()
    spent = {"queries": 0.0, "background": 0.0}
    end = time.monotonic() + 300 * WORK_S

    def work(kind: str) -> None:
        started = time.monotonic()
        time.sleep(WORK_S)
        spent[kind] += time.monotonic() - started

    def background() -> bool:
        work("background")
        return True

    engine = Engine(answers, background=background)

    def on_batch(queries: list[Query]) -> None:
        work("queries")
        if time.monotonic() < end:
            engine.ask(query(1))

    answers.on_batch = on_batch
    engine.start()
    blocked = block(engine)
    engine.ask(query(1))
    engine.poke()
    blocked.let_go()
    time.sleep(end - time.monotonic())
    share = spent["background"] / (spent["background"] + spent["queries"])
    engine.close()
    assert 0.01 < share < 0.5


def test_one_exact_query_runs_between_two_batches_of_others():
    answers = Answers()
    engine = Engine(answers, max_batch=2)
    engine.start()
    blocked = block(engine)
    crowd = [engine.ask(exact(number)) for number in range(100, 104)]
    others = [engine.ask(query(number)) for number in range(5)]
    blocked.let_go()
    for future in (*crowd, *others):
        future.result(PATIENCE_S)
    engine.close()
    assert answers.batches == [[0, 1], [100], [2, 3], [101], [4], [102], [103]]


def test_closing_finishes_exact_queries():
    answers = Answers()
    engine = Engine(answers)
    engine.start()
    blocked = block(engine)
    asked = [engine.ask(exact(number)) for number in range(3)]
    blocked.let_go()
    engine.close()
    assert all(one.done() for one in asked)


def test_an_exact_query_sees_every_call_that_was_submitted_before_it():
    answers = Answers()
    done: list[str] = []
    answers.on_batch = lambda queries: done.append("query")
    engine = Engine(answers)
    engine.start()
    blocked = block(engine)
    engine.call(lambda: done.append("call"))
    asked = engine.ask(exact(1))
    blocked.let_go()
    asked.result(PATIENCE_S)
    engine.close()
    assert done == ["call", "query"]


class Job:
    """Has a number of pieces of work."""

    def __init__(self, name: str, left: int, log: list[str]) -> None:
        self.name, self.left, self.log = name, left, log

    def __call__(self) -> bool:
        if not self.left:
            return False
        self.left -= 1
        self.log.append(self.name)
        return self.left > 0


def test_several_rounds_of_jobs_are_idle_together_however_far_each_was():
    log: list[str] = []
    rounds = [Turns(*(Job(f"{name}{n}", 0, log) for n in range(4))) for name in "abc"]
    for calls, one in enumerate(rounds):
        for _ in range(calls):
            one()
    turns = Turns(*rounds)
    assert [turns() for _ in range(12)] == [True] * 11 + [False]


def test_jobs_take_turns_until_none_has_work_left():
    log: list[str] = []
    inner = Turns(Job("b", 1, log), Job("c", 3, log))
    turns = Turns(Job("a", 4, log), inner)
    lengths = [0]
    while turns():
        lengths.append(len(log))
    assert log == ["a", "b", "c", "a", "c", "a", "c", "a"]
    assert all(after - before <= 1 for before, after in pairwise(lengths)), "one job a call"


def test_a_job_that_always_has_work_keeps_no_other_from_its_own():
    log: list[str] = []
    turns = Turns(Job("endless", 1_000_000, log), Job("other", 3, log))
    for _ in range(6):
        assert turns()
    assert log == ["endless", "other"] * 3


def test_a_job_that_said_it_had_nothing_to_do_is_asked_again_after_a_poke():
    """Jobs say one by one that they are idle: the poke comes when the first has said so and the last has not."""
    asked: list[str] = []
    work = [False]
    done = threading.Event()

    def first() -> bool:
        asked.append("first")
        if work[0]:
            done.set()
        return False

    def second() -> bool:
        asked.append("second")
        if len(asked) == 2:
            work[0] = True
            engine.poke()
        return False

    engine = Engine(lambda queries: None, background=Turns(first, second))
    engine.start()
    engine.poke()
    assert done.wait(PATIENCE_S)
    engine.close()


def test_a_flood_of_background_work_leaves_room_for_others_and_is_worked_off():
    """While more comes in than can be done, background work pauses between its turns; nothing is forgotten."""
    left = 40
    done = threading.Event()

    def background() -> bool:
        nonlocal left
        left -= 1
        time.sleep(WORK_S)
        if left == 0:
            done.set()
        return left > 0

    engine = Engine(Answers(), background=background, flooded=lambda: left > 10)
    engine.start()
    engine.poke()
    assert engine.call(lambda: "answered").result(PATIENCE_S) == "answered"
    assert done.wait(PATIENCE_S)
    engine.close()


def test_an_engine_that_is_flooded_stops_when_it_is_told_to():
    engine = Engine(Answers(), background=lambda: True, flooded=lambda: True)
    engine.start()
    engine.poke()
    engine.close()
