"""The server's clock jumps by days, back and forth: nothing is lost, doubled or reordered."""

from random import Random

import pytest
import towerbridge
from towerbridge import v1

from server.journal.retention import ClockWatch
from tests.server.about_people import About, decision, visitor
from tests.server.conftest import DAY_US, NOW_US, Serve

HOUR_US = 3_600_000_000
ACCEPTED, DUPLICATE = v1.EventStatus.EVENT_STATUS_ACCEPTED, v1.EventStatus.EVENT_STATUS_DUPLICATE


def position(revision: str) -> int:
    return int(revision.rpartition("-")[2], 16)


@pytest.mark.parametrize("seed", range(2))
def test_events_are_recorded_once_with_growing_revisions_whatever_the_clock_says(serve: Serve, seed: int):
    served, random = serve(), Random(seed)
    revisions, times_us = {}, {}
    for number in range(60):
        served.clock.now_us = NOW_US + random.randint(-400, 400) * DAY_US + number
        event = towerbridge.event("view", f"item-{number % 50}", user_id="u", event_id=f"e{number}")
        [result] = served.client.record_events([event]).results
        assert result.status == ACCEPTED
        revisions[event.event_id], times_us[event.event_id] = result.revision, served.clock.now_us
        answer = served.client.recommend(user_id="u", limit=1, min_revision=result.revision)
        assert answer.events_behind == 0, "the event counts at once"
        served.clock.now_us = NOW_US + random.randint(-400, 400) * DAY_US
        [repeat] = served.client.record_events([event]).results
        assert (repeat.status, repeat.revision) == (DUPLICATE, result.revision), "also days before or after"
    positions = [position(revision) for revision in revisions.values()]
    assert positions == sorted(set(positions))
    expected = sorted(times_us.values(), reverse=True)
    for life in (served, None):
        if life is None:
            serve.stop(served)  # type: ignore[attr-defined]
            life = serve()
        user = life.client.get_user(user_id="u", limit=100)
        assert user.event_count == 60
        assert [time.ToMicroseconds() for time in user.occurred_at] == expected, "in the order of their times"


def test_what_is_decided_last_counts_when_the_clock_has_gone_back(serve: Serve):
    """A yes was given while the clock was ahead; the no that comes after it, at an earlier time, is obeyed at once."""
    served = serve(consent={})
    about, visitor_ = About(served), visitor("v")
    answers = []
    for days, granted in ((300, True), (0, False), (0, False), (-300, True), (-300, False), (-299, True), (-310, False)):
        served.clock.now_us = NOW_US + days * DAY_US
        about.decide(visitor_, decision(granted))
        answers.append((granted, about.get(visitor_).personalised))
    assert all(given == obeyed for given, obeyed in answers), answers
    serve.stop(served)  # type: ignore[attr-defined]
    assert not About(serve(consent={})).get(visitor_).personalised


def test_ages_are_not_trusted_for_a_day_after_the_clock_was_set():
    now_us, passed_us = NOW_US, 0
    watch = ClockWatch(lambda: now_us, lambda: passed_us)
    trusted = []
    # Hours that pass, and by how much the clock is set beside that.
    for hours, days in ((1, 0), (1, 400), (1, -400), (23, 0), (2, 0), (1, -1), (25, 0)):
        passed_us += hours * HOUR_US
        now_us += hours * HOUR_US + days * DAY_US
        trusted.append(watch.is_trusted())
    assert trusted == [True, False, False, False, True, False, True]
