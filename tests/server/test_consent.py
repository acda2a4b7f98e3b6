"""Consent, through a real server: without it nothing is recorded, used or computed."""

import sqlite3
import time
from contextlib import closing
from itertools import count, permutations
from typing import Any

import grpc
import numpy as np
import pytest
import towerbridge
from hypothesis import given, settings
from hypothesis import strategies as st
from towerbridge import v1
from towerbridge.v1 import common_pb2, event_pb2, user_pb2

from index.bundle import Bundle
from server.engine.batch import BatchComputer
from server.journal.events import USER, Person
from tests.server.about_people import PERSONALISATION, TRAINING, About, decision, refused, user, visitor
from tests.server.conftest import NOW_US, Serve, Served, offline_vector

N = 50
ALL = [f"item-{n}" for n in range(N)]  # the most popular first
OPT_IN = {"personalisation": "opt_in", "training": "opt_in"}
OPT_OUT = {"personalisation": "opt_out", "training": "opt_out"}
NO_CONSENT = [v1.DegradedReason.Value("DEGRADED_REASON_NO_CONSENT")]
INVALID, PRECONDITION = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION
SECOND_US, MINUTE_US = 1_000_000, 60_000_000

_numbers = count()


def somebody() -> common_pb2.Person:
    return user(f"consent-{next(_numbers)}")


def view(served: Served, person: common_pb2.Person, item: str = "item-7", **more: Any) -> v1.EventResult:
    """Records an event and returns its row."""
    event = v1.Event(user_id=person.user_id) if person.user_id else v1.Event(visitor_id=person.visitor_id)
    event.event_id, event.item_id, event.type = f"event-{next(_numbers)}", item, "view"
    [result] = served.client._events.RecordEvents(event_pb2.RecordEventsRequest(events=[event]), timeout=20).results
    return result


def is_dropped(result: v1.EventResult) -> bool:
    return result.status == event_pb2.EVENT_STATUS_DROPPED_NO_CONSENT


def rows_of(served: Served, table: str) -> int:
    path = served.app.tenant._config.data / "default" / "journal.sqlite"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def test_by_default_nothing_is_recorded_of_people_who_have_not_said_yes(serve: Serve):
    served = serve(consent={})
    result = view(served, user("ann"))
    assert is_dropped(result)
    assert result.error.code == PRECONDITION.value[0]
    assert "SetConsent" in result.error.message
    assert (rows_of(served, "events"), rows_of(served, "event_ids"), rows_of(served, "people")) == (0, 0, 0)
    answer = served.client.recommend(user_id="ann", limit=N)
    assert (list(answer.item_ids), list(answer.degraded)) == (ALL, NO_CONSENT)
    with pytest.raises(towerbridge.NotFound):
        served.client.get_user(user_id="ann")
    with pytest.raises(towerbridge.FailedPrecondition, match="has not consented"):
        served.client.score_items(["item-1"], user_id="ann")


def test_what_is_refused_says_who_said_no(shared: Served):
    about, ann, phone = About(shared), somebody(), visitor(f"phone-{next(_numbers)}")
    about.link(phone, ann)
    about.decide(ann, decision(False))
    own, linked = (
        "has refused personalisation; only a later yes of theirs",
        "is linked to an id that has refused personalisation",
    )
    assert own in view(shared, ann).error.message
    assert linked in view(shared, phone).error.message
    for person, why in ((ann, own), (phone, linked)):
        who = {"user_id": person.user_id} if person.user_id else {"visitor_id": person.visitor_id}
        with pytest.raises(towerbridge.FailedPrecondition, match=why):
            shared.client.score_items(["item-1"], **who)
        with refused(PRECONDITION, why):
            about.profile(person, likes=["item-1"])


def test_one_persons_missing_consent_drops_their_rows_of_a_batch_alone(serve: Serve):
    served = serve(consent=OPT_IN)
    About(served).decide(user("ann"), decision(True))
    events = [
        v1.Event(event_id=f"row-{place}", user_id=who, item_id="item-1", type="view")
        for place, who in enumerate(("ann", "ben", "ann"))
    ]
    request = event_pb2.RecordEventsRequest(events=events)
    reply = served.client._events.RecordEvents(request, timeout=20)
    assert [is_dropped(result) for result in reply.results] == [False, True, False]
    assert served.client.get_user(user_id="ann").event_count == 2


def test_a_yes_counts_for_the_next_event_and_a_no_for_the_next_answer(serve: Serve, bundle: Bundle):
    served, ann = serve(consent=OPT_IN), user("ann")
    about = About(served)
    expected = offline_vector(bundle, [("item-7", "view", NOW_US)])
    about.decide(ann, decision(True))
    assert not is_dropped(view(served, ann))
    for turn in range(20):
        answer = served.client.recommend(user_id="ann", limit=N)
        assert not answer.degraded
        np.testing.assert_allclose(about.get(ann).vector, expected, atol=1e-5)
        scores = served.client.score_items(ALL[:5], user_id="ann").scores
        np.testing.assert_allclose(scores, bundle.item_vectors[:5] @ expected, atol=1e-5)

        served.clock.now_us += SECOND_US
        revision = about.decide(ann, decision(False)).revision
        withdrawn = served.client.recommend(user_id="ann", limit=N, min_revision=revision)
        assert (list(withdrawn.item_ids), list(withdrawn.degraded)) == (ALL, NO_CONSENT), turn
        assert not withdrawn.HasField("vector_computed_at")
        assert is_dropped(view(served, ann))
        shown = about.get(ann)
        assert not shown.personalised
        assert not (shown.item_ids or shown.vector or shown.event_count or shown.waiting_event_count or shown.events_behind)

        served.clock.now_us += SECOND_US
        about.decide(ann, decision(True))
    assert list(about.get(ann).item_ids) == ["item-7"]


def test_a_batch_obeys_each_persons_own_decision(shared: Served):
    about = About(shared)
    people = [somebody() for _ in range(6)]
    for person in people:
        view(shared, person)
    for person in people[::2]:
        about.decide(person, decision(False))
    requests = [towerbridge.recommend_request(user_id=person.user_id, limit=3) for person in people]
    results = shared.client.batch_recommend(requests).results
    assert [list(result.response.degraded) == NO_CONSENT for result in results] == [True, False] * 3


def test_no_vector_is_computed_or_kept_of_whoever_said_no(serve: Serve):
    served = serve(consent=OPT_OUT)
    about = About(served)
    people = [user(f"user-{n}") for n in range(20)]
    for person in people:
        view(served, person)
    vectors = served.app.tenant.live.user_vectors
    keys = [served.app.tenant.people.directory.find(Person(USER, person.user_id)) for person in people]
    wait_for(lambda: all(vectors.get(key) is not None for key in keys))
    for person in people[:10]:
        about.decide(person, decision(False))
    wait_for(lambda: all(vectors.get(key) is None for key in keys[:10]))
    for person in people:
        view(served, person, "item-8")
        served.client.recommend(user_id=person.user_id, limit=3)
    wait_for(lambda: all((stored := vectors.get(key)) is not None and stored.counted == 2 for key in keys[10:]))
    assert [vectors.get(key) for key in keys[:10]] == [None] * 10
    for person in people[:10]:
        about.decide(person, decision(True))
    wait_for(lambda: all((stored := vectors.get(key)) is not None and stored.counted == 1 for key in keys[:10]))


@pytest.mark.parametrize("change", ["consent", "link"])
def test_a_vector_that_was_being_computed_when_its_person_changed_is_not_kept(serve: Serve, change: str):
    served = serve(users={"refresh": False})
    about, ann = About(served), user("ann")
    view(served, ann)
    app = served.app
    key = app.tenant.people.directory.find(Person(USER, "ann"))
    assert key is not None
    computer = BatchComputer(app.tenant._release, app.tenant.people, app.tenant._refresher, clock_us=served.clock)
    assert computer.refresh()  # the history is read
    if change == "consent":
        about.decide(ann, decision(False))
    else:
        about.link(ann, user("her other account"))
    computer.refresh()  # the vector is made of it
    assert app.tenant.live.user_vectors.get(key) is None


def wait_for(holds: Any) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_where_consent_is_presumed_a_no_counts_all_the_same(serve: Serve):
    served = serve(consent={"personalisation": "opt_out"})
    about, ann = About(served), user("ann")
    assert not is_dropped(view(served, ann))
    assert states(about, ann) == {PERSONALISATION: (True, True), TRAINING: (False, True)}
    assert states(about, user("nobody")) == {PERSONALISATION: (True, True), TRAINING: (False, True)}
    about.decide(ann, decision(False))
    assert states(about, ann) == {PERSONALISATION: (False, False), TRAINING: (False, True)}
    assert is_dropped(view(served, ann))
    serve.stop(served)  # type: ignore[attr-defined]
    about = About(serve(consent=OPT_IN))
    assert states(about, ann) == {PERSONALISATION: (False, False), TRAINING: (False, True)}
    assert states(about, user("nobody")) == {PERSONALISATION: (False, True), TRAINING: (False, True)}


def states(about: About, person: common_pb2.Person) -> dict[int, tuple[bool, bool]]:
    """By purpose: whether it is granted, and whether that is presumed."""
    return {state.purpose: (state.granted, state.presumed) for state in about.consent(person).states}


def test_each_purpose_is_decided_by_itself(shared: Served):
    about, ann = About(shared), somebody()
    view(shared, ann)
    for personalised, trained in ((True, False), (False, True), (False, False), (True, True)):
        shared.clock.now_us += SECOND_US
        about.decide(ann, decision(personalised), decision(trained, TRAINING))
        shown = about.get(ann)
        assert (shown.personalised, shown.used_for_training) == (personalised, trained)
        assert states(about, ann) == {PERSONALISATION: (personalised, False), TRAINING: (trained, False)}
        assert bool(shared.client.recommend(user_id=ann.user_id, limit=1).degraded) == (not personalised)


DECISIONS = st.lists(
    st.tuples(st.booleans(), st.sampled_from([PERSONALISATION, TRAINING]), st.integers(0, 4), st.sampled_from("ab")),
    min_size=1,
    max_size=10,
    unique=True,  # the same again is a repeat, wherever it comes
)


@settings(max_examples=60, deadline=None)
@given(made=DECISIONS, together=st.booleans())
def test_the_decision_given_last_counts_and_all_are_on_the_trail(shared: Served, made: list[Any], together: bool):
    about, ann = About(shared), somebody()
    sent = [
        decision(granted, purpose, source=source, given_us=NOW_US - (5 - seconds) * SECOND_US)
        for granted, purpose, seconds, source in made
    ]
    for batch in [sent] if together else [[one] for one in sent]:
        about.decide(ann, *batch)
        about.decide(ann, *batch)  # safe to repeat
    counting: dict[int, tuple[int, bool]] = {}
    for granted, purpose, seconds, _ in made:
        if seconds >= counting.get(purpose, (0, False))[0]:
            counting[purpose] = seconds, granted
    expected = {purpose: (counting[purpose][1], False) if purpose in counting else (True, True) for purpose in (1, 2)}
    assert states(about, ann) == expected
    trail = about.consent(ann)
    assert list(trail.decisions) == sent
    assert len(trail.received_at) == len(trail.decisions)


def test_the_order_of_arrival_does_not_matter(shared: Served):
    about = About(shared)
    made = [(True, 3), (False, 2), (True, 1), (False, 4)]
    for order in permutations(made):
        ann = somebody()
        for granted, minutes_ago in order:
            about.decide(ann, decision(granted, given_us=NOW_US - minutes_ago * MINUTE_US))
        assert states(about, ann)[PERSONALISATION] == (True, False)


def test_the_trail_says_who_asked_when_and_outlives_a_restart(serve: Serve):
    served, ann = serve(consent=OPT_IN), visitor("ann")
    about = About(served)
    about.decide(ann, decision(True, source="cookie banner v3", given_us=NOW_US - MINUTE_US))
    served.clock.now_us += MINUTE_US
    about.decide(ann, decision(False, source="settings page"), decision(True, TRAINING, source="settings page"))
    late = decision(True, source="a phone that was offline", given_us=NOW_US - 2 * MINUTE_US)
    served.clock.now_us += MINUTE_US
    about.decide(ann, late)
    for _ in range(2):
        found = about.consent(ann)
        assert list(found.decisions) == [
            decision(True, source="cookie banner v3", given_us=NOW_US - MINUTE_US),
            decision(False, source="settings page", given_us=NOW_US + MINUTE_US),
            decision(True, TRAINING, source="settings page", given_us=NOW_US + MINUTE_US),
            late,
        ]
        assert [received.ToMicroseconds() for received in found.received_at] == [
            NOW_US, NOW_US + MINUTE_US, NOW_US + MINUTE_US, NOW_US + 2 * MINUTE_US
        ]  # fmt: skip
        assert states(about, ann) == {PERSONALISATION: (False, False), TRAINING: (True, False)}
        assert list(about.consent(user("ann")).decisions) == []  # another person
        serve.stop(served)  # type: ignore[attr-defined]
        served = serve(consent=OPT_IN)
        about = About(served)


def test_a_clock_that_is_a_little_ahead_does_not_decide_the_future(shared: Served):
    about, ann, now_us = About(shared), somebody(), shared.clock.now_us
    about.decide(ann, decision(True, given_us=now_us + 5 * MINUTE_US))
    [kept] = about.consent(ann).decisions
    assert kept.given_at.ToMicroseconds() == now_us
    shared.clock.now_us += SECOND_US
    about.decide(ann, decision(False))
    assert states(about, ann)[PERSONALISATION] == (False, False)
    ahead = decision(True, given_us=shared.clock.now_us + 5 * MINUTE_US + 1)
    with refused(INVALID, r"^consents\[0\]\.given_at: is more than 5 minutes ahead"):
        about.decide(ann, ahead)


BAD: list[tuple[list[user_pb2.Consent], str]] = [
    ([], r"^consents: must have 1 to 10 entries"),
    ([decision(True)] * 11, r"^consents: must have 1 to 10 entries"),
    ([decision(True), decision(True, 0)], r"^consents\[1\]\.purpose: set PURPOSE_"),
    ([decision(True, 3)], r"^consents\[0\]\.purpose: set PURPOSE_"),
    ([decision(True, source="")], r"^consents\[0\]\.source: must not be empty"),
    ([decision(True, source="a\0b")], r"^consents\[0\]\.source: must not hold a NUL"),
    ([decision(True, source="é" * 129)], r"^consents\[0\]\.source: must have at most 256 bytes"),
]


@pytest.mark.parametrize(("consents", "message"), BAD)
def test_a_wrong_decision_is_refused_whole(shared: Served, consents: list[user_pb2.Consent], message: str):
    ann = somebody()
    with refused(INVALID, message):
        About(shared).decide(ann, *consents)
    assert list(About(shared).consent(ann).decisions) == []


def test_a_person_must_be_named(shared: Served):
    about, nobody = About(shared), common_pb2.Person()
    for call in (about.consent, about.profile, lambda person: about.decide(person, decision(True))):
        with refused(INVALID, "^person: set user_id or visitor_id"):
            call(nobody)
        with refused(INVALID, r"^person\.visitor_id: must have at most 256 bytes"):
            call(visitor("x" * 257))


def test_of_linked_ids_nobody_on_the_way_to_the_root_may_have_said_no(serve: Serve):
    served = serve(consent=OPT_IN)
    about, ann, phone, cookie = About(served), user("ann"), visitor("phone"), visitor("cookie")
    about.link(cookie, phone)
    about.link(phone, ann)
    for person in (ann, phone, cookie):
        assert is_dropped(view(served, person))
    about.decide(ann, decision(True))  # whoever belongs to her may be used, until they say no
    for place, person in enumerate((ann, phone, cookie)):
        assert not is_dropped(view(served, person, f"item-{place}"))
        assert set(about.get(person).item_ids) == {f"item-{n}" for n in range(place + 1)}
    served.clock.now_us += SECOND_US
    about.decide(phone, decision(False))
    assert [about.get(person).personalised for person in (ann, phone, cookie)] == [True, False, False]
    assert list(about.get(ann).item_ids) == ["item-0"]  # what was recorded under the others is not hers to use
    assert [bool(answer_to(served, person).degraded) for person in (ann, phone, cookie)] == [False, True, True]
    assert [is_dropped(view(served, person)) for person in (phone, cookie)] == [True, True]
    about.unlink(phone, ann)
    about.decide(cookie, decision(True))
    assert [about.get(person).personalised for person in (ann, phone, cookie)] == [True, False, False]
    about.unlink(cookie, phone)
    assert list(about.get(cookie).item_ids) == ["item-2"]


def answer_to(served: Served, person: common_pb2.Person) -> v1.RecommendResponse:
    if person.user_id:
        return served.client.recommend(user_id=person.user_id, limit=N)
    return served.client.recommend(visitor_id=person.visitor_id, limit=N)
