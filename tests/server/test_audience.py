"""People for an item, and people like a person, from a real server."""

import threading
import time

import grpc
import numpy as np
import pytest
import towerbridge
from numpy.typing import NDArray
from towerbridge.v1 import audience_pb2, audience_pb2_grpc, event_pb2

from index.bundle import Bundle
from server.journal.events import USER, Person
from tests.server.about_people import About, decision, refused, user, visitor
from tests.server.conftest import NOW_US, Serve, Served, offline_vector

ENABLED = {"enabled": True}


def record(served: Served, *views: tuple[str, str]) -> None:
    """(user_id, item_id) pairs."""
    events = [towerbridge.event(user_id=user_id, item_id=item_id, type="view") for user_id, item_id in views]
    for start in range(0, len(events), 1000):
        results = served.client.record_events(events[start : start + 1000]).results
        assert {result.status for result in results} == {event_pb2.EVENT_STATUS_ACCEPTED}


def crowd(served: Served, count: int = 60) -> dict[str, str]:
    """People who viewed one item each."""
    views = {f"user-{n}": f"item-{n % 50}" for n in range(count)}
    record(served, *views.items())
    return views


def expected(bundle: Bundle, views: dict[str, str], query: NDArray[np.float32]) -> list[float]:
    """Everyone's cosine, highest first."""
    vectors = [offline_vector(bundle, [(item_id, "view", NOW_US)]) for item_id in views.values()]
    return sorted((float(vector @ query) for vector in vectors), reverse=True)


def item_vector(bundle: Bundle, item_id: str) -> NDArray[np.float32]:
    return bundle.item_vectors[bundle.item_ids.index(item_id)]


def ids(found: list[tuple[towerbridge.v1.Person, float]]) -> list[str]:
    return [person.user_id for person, _ in found]


@pytest.mark.parametrize("refresh", [False, True])
def test_the_nearest_people_of_an_item_by_vectors_with_every_event(serve: Serve, bundle: Bundle, refresh: bool):
    served = serve(audience=ENABLED, users={"refresh": refresh})
    views = crowd(served)
    found = list(served.client.find_audience("item-7", limit=100))
    assert sorted(ids(found)) == sorted(views)
    assert [score for _, score in found] == pytest.approx(expected(bundle, views, item_vector(bundle, "item-7")), abs=1e-5)
    best = list(served.client.find_audience("item-7", limit=5))
    assert best == found[:5]
    least = found[9][1]
    enough = list(served.client.find_audience("item-7", limit=100, min_score=least))
    assert [score for _, score in enough] == [score for _, score in found if score >= least]


def test_people_like_a_person_without_any_id_of_that_person(serve: Serve, bundle: Bundle):
    served = serve(audience=ENABLED)
    views = crowd(served)
    About(served).link(visitor("phone"), user("user-3"))
    found = list(served.client.find_similar_users(visitor_id="phone", limit=100))
    others = {user_id: item_id for user_id, item_id in views.items() if user_id != "user-3"}
    assert sorted(ids(found)) == sorted(others)
    query = offline_vector(bundle, [("item-3", "view", NOW_US)])
    assert [score for _, score in found] == pytest.approx(expected(bundle, others, query), abs=1e-5)


def test_linked_ids_are_named_once_by_their_root(serve: Serve):
    served = serve(audience=ENABLED)
    record(served, ("ann", "item-1"), ("her other account", "item-2"), ("bob", "item-3"))
    list(served.client.find_audience("item-1"))
    About(served).link(user("her other account"), user("ann"))
    assert sorted(ids(list(served.client.find_audience("item-1")))) == ["ann", "bob"]


def test_those_who_have_seen_the_item_are_left_out_and_others_fill_the_limit(serve: Serve):
    served = serve(audience=ENABLED)
    views = crowd(served)
    found = ids(list(served.client.find_audience("item-7", limit=10, exclude_seen=True)))
    assert len(found) == 10
    assert not {user_id for user_id, item_id in views.items() if item_id == "item-7"} & set(found)


def test_only_those_who_consent_are_named(serve: Serve):
    served = serve(audience=ENABLED, consent={"personalisation": "opt_in"})
    about = About(served)
    for user_id in ("ann", "bob"):
        about.decide(user(user_id), decision(True))
    record(served, ("ann", "item-1"), ("bob", "item-2"))
    assert sorted(ids(list(served.client.find_audience("item-1")))) == ["ann", "bob"]
    served.clock.now_us += 1_000_000
    about.decide(user("bob"), decision(False, given_us=served.clock.now_us))
    assert ids(list(served.client.find_audience("item-1"))) == ["ann"]
    with pytest.raises(towerbridge.FailedPrecondition, match="has refused"):
        list(served.client.find_similar_users(user_id="bob"))


def test_whoever_withdraws_or_is_erased_while_the_answer_is_streamed_is_not_named_in_later_parts(serve: Serve):
    served = serve(audience=ENABLED)
    record(served, *((f"user-{n}", f"item-{n % 50}") for n in range(6000)))
    about = About(served)
    with grpc.insecure_channel(f"127.0.0.1:{served.app.port}") as channel:
        stub = audience_pb2_grpc.AudienceServiceStub(channel)
        everyone = [
            person.user_id
            for part in stub.FindAudience(audience_pb2.FindAudienceRequest(item_id="item-1", limit=10_000), timeout=20)
            for person in part.people
        ]
        assert len(set(everyone)) == len(everyone) == 6000
        answer = stub.FindAudience(audience_pb2.FindAudienceRequest(item_id="item-1", limit=10_000), timeout=20)
        first = next(answer)
        assert (len(first.people), first.compared) == (1000, 6000)
        about.decide(user(everyone[-1]), decision(False))
        served.client.erase_user(user_id=everyone[-2])
        rest = [person.user_id for part in answer for person in part.people]
    # What had been sent ahead to this client by then may name them: only the newest answer must not.
    again = ids(list(served.client.find_audience("item-1", limit=10_000)))
    assert len(rest) >= 4998
    assert not {everyone[-1], everyone[-2]} & set(again)
    assert len(again) == 5998


def test_after_a_restart_everyone_is_compared(serve: Serve, bundle: Bundle):
    served = serve(audience=ENABLED)
    views = crowd(served)
    About(served).link(visitor("phone"), user("user-3"))
    before = list(served.client.find_audience("item-7", limit=100))
    serve.stop(served)  # type: ignore[attr-defined]
    served = serve(audience=ENABLED)
    after = list(served.client.find_audience("item-7", limit=100))
    assert sorted(ids(after)) == sorted(ids(before)) == sorted(views)
    assert [score for _, score in after] == pytest.approx([score for _, score in before], abs=1e-6)


def test_nobody_is_named_unless_the_configuration_says_so(shared: Served):
    with pytest.raises(towerbridge.PermissionDenied, match=r"audience\.enabled"):
        list(shared.client.find_audience("item-1"))
    with pytest.raises(towerbridge.PermissionDenied, match=r"audience\.enabled"):
        list(shared.client.find_similar_users(user_id="ann"))


def test_bad_requests_name_the_field_and_unknown_ones_are_not_found(serve: Serve):
    served = serve(audience=ENABLED)
    for field, arguments in (
        ("limit", {"limit": 0}),
        ("limit", {"limit": 100_001}),
        ("min_score", {"min_score": float("nan")}),
    ):
        with pytest.raises(towerbridge.InvalidArgument, match=field):
            list(served.client.find_audience("item-1", **arguments))
    with pytest.raises(towerbridge.NotFound, match="item_id"):
        list(served.client.find_audience("no such item"))
    with pytest.raises(towerbridge.NotFound, match="person"):
        list(served.client.find_similar_users(user_id="nobody"))
    served.client.upsert_items([towerbridge.item("bare")])
    with pytest.raises(towerbridge.FailedPrecondition, match="vector"):
        list(served.client.find_audience("bare"))


def test_with_nobody_to_compare_the_answer_says_so(serve: Serve):
    served = serve(audience=ENABLED)
    with grpc.insecure_channel(f"127.0.0.1:{served.app.port}") as channel:
        stub = audience_pb2_grpc.AudienceServiceStub(channel)
        [part] = stub.FindAudience(audience_pb2.FindAudienceRequest(item_id="item-1", limit=10), timeout=20)
    assert (len(part.people), part.compared, part.release_id) == (0, 0, served.app.tenant.live.release_id)


def test_what_cannot_be_made_fresh_in_time_is_refused(serve: Serve):
    served = serve(audience=ENABLED)
    crowd(served)
    released = threading.Event()
    held = served.app.tenant._engine.call(released.wait)
    with pytest.raises(towerbridge.DeadlineExceeded):
        list(served.client.find_audience("item-1", timeout_s=0.3))
    released.set()
    held.result()
    assert len(list(served.client.find_audience("item-1", limit=100))) == 60


def test_events_that_come_in_meanwhile_neither_double_nor_lose_anybody(serve: Serve):
    served = serve(audience=ENABLED)
    views = crowd(served)
    stop = threading.Event()

    def write() -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            record(served, *((f"user-{turn * 7 % 60}", f"item-{item}") for item in range(turn % 5)))
            time.sleep(0.001)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(20):
            assert sorted(ids(list(served.client.find_audience("item-7", limit=100)))) == sorted(views)
    finally:
        stop.set()
        writer.join()
    key = served.app.tenant.people.directory.find(Person(USER, "user-7"))
    assert key in served.app.tenant.live.user_vectors


def test_callers_who_leave_in_the_middle_make_room_for_others(serve: Serve):
    served = serve(audience=ENABLED)
    record(served, *((f"user-{n}", f"item-{n % 50}") for n in range(3000)))
    request = audience_pb2.FindAudienceRequest(item_id="item-1", limit=3000)
    with grpc.insecure_channel(f"127.0.0.1:{served.app.port}") as channel:
        stub = audience_pb2_grpc.AudienceServiceStub(channel)
        for _ in range(3):
            answers = [stub.FindAudience(request, timeout=20) for _ in range(4)]
            for answer in answers:
                assert len(next(answer).people) == 1000
                answer.cancel()
            deadline = time.monotonic() + 5
            while (found := _count(stub, request)) is None:
                assert time.monotonic() < deadline
            assert found == 3000


def test_a_crowd_of_calls_is_refused_and_not_queued(serve: Serve):
    served = serve(audience=ENABLED)
    crowd(served)
    released = threading.Event()
    held = served.app.tenant._engine.call(released.wait)
    request = audience_pb2.FindAudienceRequest(item_id="item-1", limit=10)
    with grpc.insecure_channel(f"127.0.0.1:{served.app.port}") as channel:
        stub = audience_pb2_grpc.AudienceServiceStub(channel)
        answers = [stub.FindAudience(request, timeout=20) for _ in range(4)]
        audience = served.app.tenant._audience
        deadline = time.monotonic() + 5
        while audience.calls < 4:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "repeat this one later"):
            next(stub.FindAudience(request, timeout=20))
        released.set()
        held.result()
        assert [len(next(answer).people) for answer in answers] == [10] * 4


def _count(stub: audience_pb2_grpc.AudienceServiceStub, request: audience_pb2.FindAudienceRequest) -> int | None:
    """How many people are found; None if there is no room for the call."""
    try:
        return sum(len(part.people) for part in stub.FindAudience(request, timeout=20))
    except grpc.RpcError as error:
        assert isinstance(error, grpc.Call)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        return None
