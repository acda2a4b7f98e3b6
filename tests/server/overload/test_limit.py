"""How many calls are let in, by the delay that they have."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.config import Overload
from server.overload.limit import AdaptiveLimit, Limit, Place
from server.overload.limits import Limits
from server.security.roles import Role

TARGET_S = 0.02


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def adaptive(maximum: int = 256) -> tuple[AdaptiveLimit, Clock]:
    clock = Clock()
    return AdaptiveLimit(maximum, TARGET_S, clock=clock), clock


def enter(limit: Limit) -> None:
    assert limit.enter(limit.let_in())


def window(limit: AdaptiveLimit, clock: Clock, *, in_flight: int, wait_s: float | None, lag_s: float = 0.0) -> None:
    """A window in which so many calls were in flight, and waited so long."""
    for _ in range(in_flight):
        enter(limit)
    for _ in range(in_flight):
        limit.leave()
    if wait_s is not None:
        limit.waited(wait_s)
    clock.now += 1.0
    limit.lagged(lag_s)
    limit.lagged(lag_s)


def test_a_limit_is_full_when_as_many_calls_are_in_flight():
    for limit in (AdaptiveLimit(3, TARGET_S), Limit(3)):
        for _ in range(3):
            assert not limit.is_full
            enter(limit)
        assert limit.is_full
        limit.leave()
        assert not limit.is_full


def test_calls_whose_message_is_on_its_way_take_a_place_and_soon_lose_it_if_it_does_not_come():
    clock = Clock()
    for limit in (AdaptiveLimit(3, TARGET_S, clock=clock), Limit(3, clock=clock)):
        places = [limit.let_in() for _ in range(3)]
        assert limit.is_full
        assert limit.enter(places[1])
        assert limit.is_full and limit.in_flight == 1
        clock.now += 0.2  # the two others send no message
        assert not limit.is_full and limit.taken == 1
        for _ in range(2):
            enter(limit)
        assert not limit.enter(places[0])  # its message has come after all
        limit.leave()
        assert limit.enter(places[0])
        assert limit.in_flight == 3


def test_who_leaves_before_the_message_gives_the_place_back_and_who_has_entered_keeps_it():
    for limit in (AdaptiveLimit(2, TARGET_S), Limit(2)):
        leaving, staying = limit.let_in(), limit.let_in()
        assert limit.enter(staying)
        staying.give_back()
        assert limit.is_full
        leaving.give_back()
        assert limit.taken == 1


def test_who_leaves_again_and_again_before_the_message_keeps_no_place_from_those_who_stay():
    limit, clock = adaptive(100)
    for _ in range(1000):  # a call each 2 ms; each twentieth leaves
        limit.let_in()
        for _ in range(19):
            place = limit.let_in()
            clock.now += 0.002
            assert limit.enter(place)
            limit.leave()
        assert limit.taken <= 5
    for _ in range(2):
        limit.lagged(0.0)
    assert limit.limit >= 64


def test_a_crowd_that_is_let_in_at_once_counts_as_what_the_limit_had_to_bear():
    limit, clock = adaptive()
    before = limit.limit
    places = [limit.let_in() for _ in range(before)]
    for place in places:  # one after the other, each computed by the loop's thread before the next one comes in
        assert limit.enter(place)
        limit.leave()
    for _ in range(2):
        clock.now += 0.05
        limit.lagged(1.0)
    assert limit.limit < before


def test_the_time_until_a_call_begins_is_its_delay():
    limit, clock = adaptive()
    before = limit.limit
    places = [limit.let_in() for _ in range(before)]
    clock.now += 0.04
    for place in places:
        assert limit.enter(place)
        limit.leave()
    clock.now += 0.05
    for _ in range(2):
        limit.lagged(0.0)
    assert limit.limit < before


@given(st.lists(st.tuples(st.sampled_from(["let in", "enter", "leave", "wait"]), st.integers(0, 5)), max_size=60))
def test_a_place_is_taken_from_when_a_call_is_let_in_until_it_has_left(steps: list[tuple[str, int]]):
    clock = Clock()
    limit = Limit(4, clock=clock)
    expected: list[tuple[float, Place]] = []
    late: list[Place] = []
    working = 0
    for step, which in steps:
        clock.now += 0.03 if step != "wait" else 0.09
        late += [place for then, place in expected if clock.now - then > 0.1]
        expected = [one for one in expected if clock.now - one[0] <= 0.1]
        assert limit.taken == len(expected) + working
        if step == "let in":
            expected.append((clock.now, limit.let_in()))
        elif step == "enter" and which < len(expected):
            assert limit.enter(expected.pop(which)[1])
            working += 1
        elif step == "enter" and late:
            entered = limit.enter(late.pop(which % len(late)))
            assert entered == (len(expected) + working < 4)
            working += entered
        elif step == "leave" and working:
            limit.leave()
            working -= 1
        assert limit.in_flight == working


@pytest.mark.parametrize(("wait_s", "lag_s"), [(0.03, 0.0), (0.0, 0.03), (0.015, 0.015), (None, 0.03)])
def test_fewer_calls_are_let_in_while_there_is_a_standing_queue(wait_s: float | None, lag_s: float):
    limit, clock = adaptive()
    before = limit.limit
    window(limit, clock, in_flight=before, wait_s=wait_s, lag_s=lag_s)
    assert 0.8 * before < limit.limit < before


def test_a_long_wait_among_short_ones_is_a_burst_and_no_queue():
    limit, clock = adaptive()
    before = limit.limit
    limit.waited(5.0)
    window(limit, clock, in_flight=1, wait_s=0.001)
    assert limit.limit == before


def test_one_stall_of_the_loop_is_no_queue():
    limit, clock = adaptive()
    before = limit.limit
    for _ in range(before):
        enter(limit)
    limit.waited(0.3)
    clock.now += 0.3
    limit.lagged(0.3)
    assert limit.limit == before
    limit.waited(0.001)  # one of those that came meanwhile
    clock.now += 0.01
    limit.lagged(0.0)
    assert limit.limit >= before


def test_more_calls_are_let_in_only_when_the_limit_was_reached_and_the_wait_is_short():
    limit, clock = adaptive()
    before = limit.limit
    window(limit, clock, in_flight=before - 1, wait_s=0.001)
    assert limit.limit == before
    window(limit, clock, in_flight=before, wait_s=0.001)
    assert limit.limit > before


def test_under_lasting_overload_it_comes_down_to_what_keeps_the_engine_busy_and_recovers_in_two_seconds():
    limit, clock = adaptive()
    for _ in range(100):
        window(limit, clock, in_flight=limit.limit, wait_s=1.0)
    assert limit.limit == 24
    for _ in range(40):  # windows of 50 ms
        window(limit, clock, in_flight=limit.limit, wait_s=0.001)
    assert limit.limit >= 100


def test_it_falls_from_what_was_in_flight_and_not_from_what_would_have_been_allowed():
    limit, clock = adaptive()
    for _ in range(40):
        window(limit, clock, in_flight=limit.limit, wait_s=0.001)
    assert limit.limit > 100
    window(limit, clock, in_flight=40, wait_s=1.0)
    assert limit.limit == 34


def test_delays_of_few_calls_are_not_of_their_number_and_leave_room_for_what_a_stall_gathers():
    limit, clock = adaptive()
    for _ in range(20):  # another process takes the processor, as at 250 calls a second beside a promotion
        window(limit, clock, in_flight=6, wait_s=0.05)
    for _ in range(60):
        assert not limit.is_full
        enter(limit)


def test_what_an_overload_took_comes_back_in_quiet_as_far_as_a_burst_needs():
    limit, clock = adaptive()
    for _ in range(100):
        window(limit, clock, in_flight=limit.limit, wait_s=1.0)
    for _ in range(20):
        window(limit, clock, in_flight=3, wait_s=0.001)
    assert limit.limit == 64


@given(
    maximum=st.integers(1, 1000),
    windows=st.lists(
        st.tuples(st.integers(0, 50), st.none() | st.floats(0, 10, allow_nan=False), st.floats(0, 10, allow_nan=False)),
        max_size=60,
    ),
)
def test_whatever_happens_the_limit_stays_between_its_bounds(maximum: int, windows: list[tuple[int, float | None, float]]):
    limit, clock = adaptive(maximum)
    for in_flight, wait_s, lag_s in windows:
        window(limit, clock, in_flight=in_flight, wait_s=wait_s, lag_s=lag_s)
        assert min(24, maximum) <= limit.limit <= maximum
        assert limit.in_flight == 0


def test_reads_ingest_and_administration_have_limits_of_their_own_and_so_have_streams():
    limits = Limits(Overload(max_reads=10, max_ingests=20, max_admins=3))
    kinds = [(role, stream) for role in (Role.READ, Role.INGEST, Role.ADMIN) for stream in (False, True)]
    distinct = {id(limits.of(role, stream=stream)) for role, stream in kinds}
    assert len(distinct) == 5
    assert limits.of(Role.ADMIN, stream=False) is limits.of(Role.AUDIENCE, stream=True)
    assert limits.of(Role.ADMIN, stream=False).limit == 3
    assert limits.of(Role.INGEST, stream=True).limit == 20


def test_a_slow_event_loop_lets_in_fewer_reads_and_less_ingest():
    limits = Limits(Overload(max_reads=100, max_ingests=100))
    clock = Clock()
    for limit in (limits.reads, limits.ingests):
        limit._clock = clock  # type: ignore[attr-defined]
        for _ in range(60):
            enter(limit)
    clock.now += 1e9
    for _ in range(2):
        limits.loop_lagged(0.5)
    assert limits.reads.limit < 60 and limits.ingests.limit < 60
