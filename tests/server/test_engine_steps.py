"""Calls in steps: their first step runs before later queries, the others run between batches."""

from collections.abc import Iterator

import pytest

from server.engine.engine import Engine, Steps
from server.errors import Unavailable
from tests.server.test_engine import PATIENCE_S, Answers, block, query


@pytest.fixture
def answers() -> Answers:
    return Answers()


@pytest.fixture
def engine(answers: Answers) -> Iterator[Engine]:
    started = Engine(answers, max_batch=4)
    started.start()
    yield started
    started.close()


def test_queries_run_between_the_steps_of_a_call_and_after_its_first(engine: Engine, answers: Answers):
    log: list[object] = []
    answers.on_batch = lambda queries: log.extend(one.limit for one in queries)

    def steps() -> Steps[str]:
        for number in range(3):
            log.append(f"step {number}")
            yield
        return "done"

    blocked = block(engine)
    before = engine.ask(query(1))
    call = engine.call_in_steps(steps)
    after = engine.ask(query(2))
    blocked.let_go()
    assert call.result(PATIENCE_S) == "done"
    assert before.done() and after.done()
    assert log == ["step 0", 1, 2, "step 1", "step 2"]


def test_calls_in_steps_end_in_the_order_of_submission(engine: Engine):
    ended: list[int] = []

    def steps(number: int) -> Steps[None]:
        yield
        yield
        ended.append(number)

    blocked = block(engine)
    calls = [engine.call_in_steps(lambda number=number: steps(number)) for number in range(3)]
    blocked.let_go()
    for call in calls:
        call.result(PATIENCE_S)
    assert ended == [0, 1, 2]


@pytest.mark.parametrize("good_steps", [0, 2])
def test_a_step_that_fails_ends_its_call_alone(engine: Engine, good_steps: int):
    def steps() -> Steps[None]:
        for _ in range(good_steps):
            yield
        raise ValueError("broken")

    call = engine.call_in_steps(steps)
    with pytest.raises(ValueError, match="broken"):
        call.result(PATIENCE_S)
    assert engine.ask(query(1)).result(PATIENCE_S).release_id == "release"


def test_close_finishes_the_steps_that_are_left(answers: Answers):
    engine = Engine(answers)
    engine.start()

    def steps() -> Steps[str]:
        yield
        yield
        return "finished"

    blocked = block(engine)
    call = engine.call_in_steps(steps)
    blocked.let_go()
    engine.close()
    assert call.result(0) == "finished"


def test_a_call_in_steps_fails_when_the_engine_dies(answers: Answers):
    engine = Engine(answers)
    engine.start()

    def dying() -> Steps[None]:
        yield
        raise SystemExit

    def waiting() -> Steps[None]:
        yield
        yield

    blocked = block(engine)
    calls = [engine.call_in_steps(dying), engine.call_in_steps(waiting)]
    blocked.let_go()
    for call in calls:
        with pytest.raises(Unavailable, match="engine died"):
            call.result(PATIENCE_S)
