"""What a review of the code about people found: races between calls, and what is left after a change."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from towerbridge.v1 import user_pb2

from server.engine.batch import BatchComputer
from server.errors import Unavailable
from server.journal import removal
from server.journal.backup import back_up
from server.journal.database import open_journal
from server.journal.erase import _LATEST
from server.journal.events import USER, Person
from server.users.directory import Decision, Purpose
from tests.server.about_people import About, refused, user, visitor
from tests.server.conftest import DAY_US, Serve, Served
from tests.server.erasing import ERASED, NOT_FOUND, SECOND_US, directory, erase, event, found, record

PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION


def wait_for(holds: Callable[[], Any]) -> None:
    until = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)


def key_of(served: Served, subject_id: str, kind: int = USER) -> int:
    key = served.app.tenant.people.directory.find(Person(kind, subject_id))
    assert key is not None
    return key


def test_an_erasure_that_waits_for_others_is_done_although_its_caller_has_left(serve: Serve):
    served = serve()
    record(served, event(user("ann"), "item-1"))
    others = threading.Event()
    served.app.tenant._erasure._thread.submit(others.wait)
    with refused(grpc.StatusCode.DEADLINE_EXCEEDED, "goes on|Deadline"):
        served.client._users.EraseUser(user_pb2.EraseUserRequest(person=user("ann")), timeout=0.3)
    others.set()
    wait_for(lambda: served.app.tenant.people.directory.find(Person(USER, "ann")) is None)
    with refused(NOT_FOUND, "nothing"):
        About(served).get(user("ann"))


def test_a_person_who_was_to_be_refreshed_and_belongs_to_another_now_has_no_vector_of_their_own(serve: Serve):
    served = serve()
    record(served, event(user("ann"), "item-1"), event(user("old"), "item-2"))
    serve.stop(served)  # type: ignore[attr-defined]
    served = serve(users={"refresh": False})  # both wait to be computed
    about, app = About(served), served.app
    about.link(user("old"), user("ann"))
    computer = BatchComputer(app.tenant._release, app.tenant.people, app.tenant._refresher, clock_us=served.clock)
    app.tenant._engine.call(lambda: [computer.refresh() for _ in range(4)]).result()
    assert app.tenant.live.user_vectors.get(key_of(served, "ann")) is not None
    assert app.tenant.live.user_vectors.get(key_of(served, "old")) is None


def test_a_decision_that_waits_behind_an_erasure_is_refused_if_it_is_older(serve: Serve):
    served = serve()
    record(served, event(user("ann"), "item-1"))
    app, ann = served.app, Person(USER, "ann")
    go = threading.Event()
    app.tenant._journal.submit(_Wait(go))
    erased = app.tenant._erasure.erase(ann)
    wait_for(lambda: len(app.tenant._journal._queue) == 1)
    decided: Future[None] = app.tenant._people_changes.set_consent(
        ann, [Decision(Purpose.PERSONALISATION, True, "banner", served.clock() - 1)]
    )
    go.set()
    erased.result(30)
    with pytest.raises(Exception, match="was erased after this decision"):
        decided.result(30)
    assert app.tenant.people.directory.find(ann) is None


class _Wait:
    """A write that keeps the journal's writer until it is told."""

    alone = True
    rows = 1

    def __init__(self, go: threading.Event) -> None:
        self._go = go

    def commit(self, transaction: object) -> None:
        assert self._go.wait(30)

    def publish(self) -> None:
        pass


def test_what_was_recorded_while_the_clock_was_ahead_is_erased_from_backups_too(serve: Serve):
    served = serve()
    about, name = About(served), "unusual-4711"
    served.clock.now_us += 3_600_000_000
    record(served, event(user(name), "item-1"))
    about.profile(user(name), likes=["item-2"])
    about.link(visitor(f"{name}-phone"), user(name))
    backup = back_up(directory(served)).path
    served.clock.now_us -= 3_600_000_000
    erase(served, user(name))
    assert backup.exists()
    assert found(served.app.tenant._config.data, [name]) == ""


def test_taking_back_a_profile_that_is_not_there_writes_nothing(serve: Serve):
    served = serve(consent={"personalisation": "opt_in"})
    name = "unusual-4712"
    assert About(served).profile(user(name)).revision
    assert served.app.tenant.people.directory.find(Person(USER, name)) is None
    assert found(served.app.tenant._config.data, [name]) == ""


def test_one_id_too_many_of_a_person_is_refused(serve: Serve, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("server.journal.people.LINKED_MAX", 4)
    served = serve()
    about = About(served)
    for source, target in (("a", "b"), ("b", "c")):
        about.link(visitor(source), visitor(target))
    about.link(visitor("d"), user("ann"))
    with refused(PRECONDITION, "5 ids.*at most 4 can be one"):
        about.link(visitor("c"), user("ann"))
    about.link(visitor("e"), visitor("c"))
    assert len(about.get(visitor("a")).linked) == 4


def test_a_long_chain_is_walked_once(serve: Serve):
    served = serve()
    people, chain = served.app.tenant.people.directory, 10_000
    for key in range(1, chain):
        people.link(key, key + 1)
    started = time.perf_counter()
    assert people.permitted_members(1) == list(range(chain, 0, -1))
    assert time.perf_counter() - started < 2  # of every id to the root: ten times that


def test_retention_takes_the_vector_with_the_events(serve: Serve):
    day_us = 86_400_000_000
    served = serve(journal={"retention_days": 60}, users={"refresh": False})
    record(served, event(user("ann"), "item-1"), event(user("bob"), "item-1"))
    for name in ("ann", "bob"):
        served.client.recommend(user_id=name)
    vectors = served.app.tenant.live.user_vectors
    served.clock.now_us += 61 * day_us
    record(served, event(user("bob"), "item-2"))
    served.client.recommend(user_id="bob")
    for name in ("ann", "bob"):
        assert vectors.get(key_of(served, name)) is not None
    served.app.tenant.people._cache.drop(key_of(served, "ann"))  # as if others had taken the place in memory
    assert served.app.tenant._retention.sweep() == 2
    served.app.tenant._engine.call(lambda: None).result()
    assert vectors.get(key_of(served, "ann")) is None
    assert vectors.get(key_of(served, "bob")) is None


def test_retention_of_a_person_with_many_events_holds_up_no_other_write(serve: Serve):
    served = serve(journal={"max_events_per_person": 1000})
    for _ in range(4):
        record(served, *(event(user("ann"), "item-1") for _ in range(1000)))
    journal = served.app.tenant._journal
    rows: list[int] = []
    submit = journal.submit
    journal.submit = lambda write: (rows.append(write.rows), submit(write))[1]  # type: ignore[method-assign, func-returns-value]
    assert served.app.tenant._retention.sweep() == 3000
    assert max(rows) <= 500


def test_an_erasure_of_what_came_in_while_the_clock_was_ahead_keeps_what_is_known_of_others(serve: Serve):
    served = serve()
    late = event(user("ann"), "item-1")  # without a time: only its event_id tells that it was erased
    record(served, late)
    erase(served, user("ann"))
    served.clock.now_us += 400 * DAY_US
    record(served, event(user("ben"), "item-1"))
    served.clock.now_us -= 400 * DAY_US - SECOND_US
    erase(served, user("ben"))
    assert record(served, late) == [ERASED]


def test_no_statement_of_an_erasure_reads_a_whole_table(tmp_path: Path):
    with closing(open_journal(tmp_path)) as file:
        for statement in (*removal._OF_PEOPLE.values(), *removal._UP_TO.values(), removal._NOTHING_LEFT, _LATEST):
            values = (1, 2) if statement in removal._UP_TO.values() else (1,)
            plan = [str(row[3]) for row in file.connection.execute(f"EXPLAIN QUERY PLAN {statement}", values)]
            tables = ("events", "event_ids", "consents", "profiles", "links", "people")
            assert not [step for step in plan if step in [f"SCAN {table}" for table in tables]], statement


def test_an_erasure_whose_turn_has_not_come_when_the_server_stops_says_so(serve: Serve):
    served = serve()
    erasure, others = served.app.tenant._erasure, threading.Event()
    erasure._thread.submit(others.wait)
    waiting = erasure.erase(Person(USER, "ann"))
    assert erasure.erase(Person(USER, "ann")) is waiting  # a caller who repeats in vain adds no work
    closing_down = threading.Thread(target=erasure.close)
    closing_down.start()
    with pytest.raises(Unavailable, match="stopping"):
        waiting.result(10)
    others.set()
    closing_down.join()
    with pytest.raises(Unavailable, match="stopping"):
        erasure.erase(Person(USER, "ann"))
