"""How soon events are in the vectors of people nobody asks about, and what Prometheus reads of it."""

import time
from collections.abc import Callable

import pytest
import towerbridge
from towerbridge.v1 import event_pb2

from server.journal.events import USER, Person
from server.users.refresher import Refresher
from tests.server.conftest import Serve, Served
from tests.server.telemetry.scraped import scrape

LAG = "towerbridge_event_visible_lag_seconds"
OF = "{tenant=default}"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def record(served: Served, *user_ids: str, item_id: str = "item-1") -> list[int]:
    events = [
        towerbridge.event(
            event_id=f"{user_id}-{item_id}-{time.monotonic_ns()}",
            user_id=user_id,
            item_id=item_id,
            type="view",
        )
        for user_id in user_ids
    ]
    return [result.status for result in served.client.record_events(events).results]


def wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def figures(served: Served) -> dict[str, float]:
    return scrape(f"http://127.0.0.1:{served.app.metrics_port}")


def test_the_lag_of_people_nobody_asks_about_is_observed(serve: Serve):
    served = serve(metrics={"port": 0})
    record(served, *(f"user-{n}" for n in range(100)))
    wait_for(lambda: figures(served)[f"{LAG}_count{OF}"] == 100)
    found = figures(served)
    assert 0 < found[f"{LAG}_sum{OF}"] < 100 * 10
    assert found[f"{LAG}_bucket{{le=60.0}}{OF}"] == 100
    assert found[f"towerbridge_refresh_waiting{OF}"] == 0
    assert found[f"towerbridge_user_vectors{OF}"] == 100


def test_the_lag_of_a_vector_that_a_request_made_is_not(serve: Serve):
    served = serve(metrics={"port": 0}, users={"refresh": False})
    record(served, "asked", "not asked")
    served.client.recommend(user_id="asked", limit=3)
    served.app.tenant._engine.call(_refresh_all(served)).result()
    wait_for(lambda: figures(served)[f"towerbridge_refresh_waiting{OF}"] == 0)
    assert figures(served)[f"{LAG}_count{OF}"] == 1


def _refresh_all(served: Served) -> Callable[[], None]:
    def refresh() -> None:
        while served.app.tenant._computer.refresh():
            pass

    return refresh


def test_events_are_counted_by_what_became_of_them(serve: Serve):
    served = serve(metrics={"port": 0}, consent={"personalisation": "opt_in"})
    assert record(served, "nobody") == [event_pb2.EVENT_STATUS_DROPPED_NO_CONSENT]
    record(served, "nobody", item_id="")
    found = figures(served)
    assert found[f"towerbridge_events_total{{result=dropped_no_consent}}{OF}"] == 1
    assert found[f"towerbridge_events_dropped_total{{reason=no_consent}}{OF}"] == 1
    assert found[f"towerbridge_events_total{{result=rejected}}{OF}"] == 1
    assert found[f"towerbridge_events_total{{result=accepted}}{OF}"] == 0


def test_a_person_waits_once_since_the_first_change_and_the_longest_waiting_comes_first():
    clock = Clock()
    refresher = Refresher(clock=clock)
    refresher.mark(1, 90.0)
    refresher.mark(2, 91.0)
    refresher.mark(1, 99.0)
    taken = refresher.take(10)
    assert [(mark.key, mark.committed) for mark in taken] == [(1, 90.0), (2, 91.0)]
    for mark in taken:
        refresher.stored(mark)
    assert refresher.lag_seconds == pytest.approx(19.0)
    assert sum(refresher.lag_counts) == 2


@pytest.mark.parametrize("under_way", [False, True])
@pytest.mark.parametrize("event", ["asked", "drop"])
def test_whoever_was_asked_about_or_withdrew_is_not_observed(event: str, under_way: bool):
    refresher = Refresher()
    refresher.mark(1, 90.0)
    taken = refresher.take(10) if under_way else []
    if event == "asked":
        refresher.asked(1)
    else:
        refresher.drop([1])
    taken = taken or refresher.take(10)
    assert len(taken) == (event == "asked" or under_way)
    for mark in taken:
        refresher.stored(mark)
    assert sum(refresher.lag_counts) == 0


def test_whoever_is_forgotten_is_counted_and_their_old_vector_is_known_to_be_behind():
    refresher = Refresher(capacity=2)
    for key in (1, 2, 3, 4):
        refresher.mark(key)
    refresher.mark(1)
    assert refresher.forgotten == 3
    assert sorted(refresher.take_outdated()) == [2, 3]
    assert refresher.take_outdated() == []


def test_people_without_a_vector_since_the_start_come_last():
    refresher = Refresher()
    refresher.mark_all([5, 6, 7])
    refresher.mark(1)
    assert refresher.waiting == 4
    assert [mark.key for mark in refresher.take(3)] == [1, 5, 6]


def test_a_vector_of_a_person_who_was_forgotten_is_dropped(serve: Serve):
    served = serve(users={"refresh": False})
    record(served, "ann")
    served.app.tenant._engine.call(_refresh_all(served)).result()
    key = served.app.tenant.people.directory.find(Person(USER, "ann"))
    assert key is not None
    assert key in served.app.tenant.live.user_vectors
    served.app.tenant._refresher._outdated.add(key)
    served.app.tenant._engine.call(_refresh_all(served)).result()
    assert key not in served.app.tenant.live.user_vectors
