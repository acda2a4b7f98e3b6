"""What cannot be met is refused before it is computed, and how long queries wait is told."""

import time
from collections.abc import Iterator

import pytest

from server.engine.batch_time import BatchTime
from server.engine.engine import Engine
from server.errors import DeadlineExceeded
from tests.server.test_engine import PATIENCE_S, Answers, block, query

SLOW_S = 0.2


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def answers() -> Answers:
    return Answers()


@pytest.fixture
def engine(answers: Answers, waits: list[float]) -> Iterator[Engine]:
    engine = Engine(answers, waited=waits.append)
    engine.start()
    yield engine
    engine.close()


def ask(engine: Engine, number: int, *, within: float = PATIENCE_S, allow_stale: bool = False) -> None:
    asked = query(number, deadline=time.monotonic() + within)
    asked.allow_stale = allow_stale
    engine.ask(asked).result(PATIENCE_S)


def become_slow(engine: Engine, answers: Answers, batches: int) -> None:
    answers.on_batch = lambda queries: time.sleep(SLOW_S)
    for number in range(batches):
        ask(engine, number)


def test_a_query_that_cannot_be_met_is_refused_and_not_computed(engine: Engine, answers: Answers):
    become_slow(engine, answers, 8)
    with pytest.raises(DeadlineExceeded):
        ask(engine, 99, within=SLOW_S / 2)
    assert [99] not in answers.batches
    ask(engine, 100)
    assert [100] in answers.batches


def test_of_a_batch_those_that_can_be_met_are_computed(engine: Engine, answers: Answers):
    become_slow(engine, answers, 8)
    blocked = block(engine)
    hurried, patient = query(98, deadline=time.monotonic() + SLOW_S), query(99)
    futures = [engine.ask(hurried), engine.ask(patient)]
    blocked.let_go()
    assert futures[1].result(PATIENCE_S)
    assert isinstance(futures[0].exception(PATIENCE_S), DeadlineExceeded)
    assert answers.batches[-1] == [99]


def test_where_a_stale_vector_will_do_it_is_tried(engine: Engine, answers: Answers):
    become_slow(engine, answers, 8)
    ask(engine, 99, within=SLOW_S * 0.9, allow_stale=True)
    assert [99] in answers.batches


def test_one_slow_batch_refuses_nothing(engine: Engine, answers: Answers):
    become_slow(engine, answers, 1)
    ask(engine, 99, within=SLOW_S * 0.9)
    assert [99] in answers.batches


def test_refusals_wear_off(engine: Engine, answers: Answers):
    become_slow(engine, answers, 8)
    refused = 0
    while True:
        try:
            ask(engine, 99, within=SLOW_S / 2)
            break
        except DeadlineExceeded:
            refused += 1
    assert 1 <= refused < 8


def test_the_bound_is_that_of_the_quickest_of_the_last_batches():
    times = BatchTime()
    assert times.at_least(64) == 0.0
    for seconds in (0.8, *[0.4] * 6, 0.2):
        times.took(seconds, 2)
    assert times.at_least(3) == pytest.approx(0.3)
    for _ in range(8):
        times.took(0.6, 2)
    assert times.at_least(1) == pytest.approx(0.3)
    times.refused()
    assert times.at_least(1) == pytest.approx(0.15)


def test_the_longest_wait_of_each_batch_is_told(engine: Engine, answers: Answers, waits: list[float]):
    blocked = block(engine)
    began = time.monotonic()
    futures = [engine.ask(query(number)) for number in (1, 2)]
    blocked.let_go()
    for future in futures:
        future.result(PATIENCE_S)
    assert answers.batches == [[1, 2]]
    assert len(waits) == 1
    assert 0.0 < waits[0] <= time.monotonic() - began
