"""Profiles, through a real server. Items of the tiny bundle: colour by n % 5, kind by n % 2, year 2000 + n % 25, in_stock."""

import json
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import towerbridge
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st
from towerbridge import between, v1, where
from towerbridge.v1 import common_pb2, user_pb2

from index.items import Candidates
from server.engine.query import Answer, Fallback
from server.errors import InvalidField
from server.journal.events import USER, Person
from server.recommend.ask import Ask
from server.recommend.flow import Recommender
from server.recommend.preferences import Preferences
from server.users.profile import Profile
from tests.server.about_people import About, decision, matching, refused, somebody, user, value, visitor
from tests.server.conftest import Serve, Served
from tests.tiny import COLOURS, KINDS, write_tiny_bundle

N = 50
BONUS = 0.1
ALL = [f"item-{n}" for n in range(N)]
CATEGORIES_OF = {f"item-{n}": {COLOURS[n % 5], KINDS[n % 2]} for n in range(N)}
INVALID, PRECONDITION = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION


VALUES = st.one_of(
    st.text(max_size=20),
    st.booleans(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.lists(st.text(max_size=20), max_size=5),
    st.integers(0, 4_000_000_000_000).map(lambda ms: Timestamp(seconds=ms // 1000, nanos=ms % 1000 * 1_000_000)),
).map(value)
IDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(attributes=st.dictionaries(IDS, VALUES, max_size=5), lists=st.lists(st.lists(IDS, max_size=4, unique=True), min_size=4))
def test_what_was_stated_comes_back_from_the_journals_form(attributes: dict[str, Any], lists: list[list[str]]):
    message = user_pb2.Profile(
        attributes=attributes,
        liked_item_ids=lists[0],
        disliked_item_ids=lists[1],
        liked_categories=lists[2],
        disliked_categories=lists[3],
    )
    profile = Profile.from_wire(message)
    assert Profile.from_json(profile.to_json()) == profile
    assert profile.to_wire() == message
    assert profile.is_empty == (message == user_pb2.Profile())
    assert json.loads(profile.to_json()) == {} or not profile.is_empty


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"attributes": {f"a{n}": value(1) for n in range(65)}}, "profile.attributes"),
    ({"attributes": {"": value(1)}}, "profile.attributes[]"),
    ({"attributes": {"é" * 33: value(1)}}, f"profile.attributes[{'é' * 33}]"),
    ({"attributes": {"size": common_pb2.AttributeValue()}}, "profile.attributes[size]"),
    ({"attributes": {"size": value(float("nan"))}}, "profile.attributes[size]"),
    ({"attributes": {"size": value("x" * 16_400)}}, "profile.attributes"),
    ({"liked_item_ids": ["x"] * 1_001}, "profile.liked_item_ids"),
    ({"disliked_item_ids": ["x", ""]}, "profile.disliked_item_ids[1]"),
    ({"liked_categories": ["x"] * 65}, "profile.liked_categories"),
    ({"disliked_categories": ["x" * 257]}, "profile.disliked_categories[0]"),
]


@pytest.mark.parametrize(("parts", "field"), WRONG)
def test_what_is_too_much_or_not_a_value_is_refused_by_name(parts: dict[str, Any], field: str):
    with pytest.raises(InvalidField) as caught:
        Profile.from_wire(user_pb2.Profile(**parts))
    assert caught.value.field == field


def test_what_is_disliked_is_not_scored_and_named(shared: Served):
    ann = somebody(shared)
    About(shared).profile(ann, dislikes=["item-3"], disliked_categories=["green"], likes=["item-5"])
    reply = shared.client.score_items(ALL, user_id=ann.user_id)
    greens = {item for item in ALL if "green" in CATEGORIES_OF[item]}
    assert {one.item_id for one in reply.skipped} == {"item-3", *greens} == set(ALL) - set(reply.item_ids)
    assert {one.reason for one in reply.skipped} == {v1.SkipReason.SKIP_REASON_DISLIKED}
    plain = shared.client.score_items(reply.item_ids, history=[("item-5", "view"), ("item-10", "view")])
    np.testing.assert_allclose(reply.scores, plain.scores, atol=1e-5)  # the cosine, without the bonus


def test_a_profile_is_replaced_whole_shown_and_kept_over_a_restart(serve: Serve):
    served = serve()
    ann = user("ann")
    About(served).profile(ann, attributes={"size": value(7), "tags": value(["a", "b"])}, likes=["item-1", "item-1"])
    reply = About(served).profile(ann, attributes={"country": value("no")}, dislikes=["item-2"])
    for _ in range(2):
        shown = About(served).get(ann)
        assert shown.profile == user_pb2.Profile(attributes={"country": value("no")}, disliked_item_ids=["item-2"])
        assert list(shown.linked) == [ann]
        assert shown.personalised
        assert "item-2" not in served.client.recommend(user_id="ann", limit=N, min_revision=reply.revision).item_ids
        serve.stop(served)  # type: ignore[attr-defined]
        served = serve()
    About(served).profile(ann)
    assert not About(served).get(ann).HasField("profile")
    assert "item-2" in served.client.recommend(user_id="ann", limit=N).item_ids


def test_without_consent_nothing_is_stated_and_nothing_that_was_stated_is_used(shared: Served):
    about, ann = About(shared), somebody(shared)
    about.profile(ann, attributes={"colour": value("red")}, likes=["item-49"], disliked_categories=["green"])
    about.decide(ann, decision(False))
    with refused(PRECONDITION, "has refused personalisation"):
        about.profile(ann, likes=["item-1"])
    answer = shared.client.recommend(user_id=ann.user_id, limit=N)
    assert list(answer.item_ids) == ALL  # the most popular first
    assert list(answer.degraded) == [v1.DegradedReason.Value("DEGRADED_REASON_NO_CONSENT")]
    assert list(shared.client.recommend(user_id=ann.user_id, limit=N, filter=matching("categories", "colour")).item_ids) == []
    about.decide(ann, decision(True))
    assert not any("green" in CATEGORIES_OF[item] for item in shared.client.recommend(user_id=ann.user_id, limit=N).item_ids)


@pytest.mark.parametrize("events", [True, False])
@pytest.mark.parametrize("chosen", [None, where(must=[between("year", gte=2005)])])
def test_what_is_disliked_is_ruled_out_before_the_search(shared: Served, events: bool, chosen: v1.Filter | None):
    person = somebody(shared, events=events)

    def ask(limit: int, **more: Any) -> list[str]:
        return list(shared.client.recommend(user_id=person.user_id, limit=limit, **more).item_ids)

    undisturbed = ask(N, filter=chosen)
    About(shared).profile(person, dislikes=[*undisturbed[:2], "never heard of"], disliked_categories=["red", "no such"])
    expected = [item for item in undisturbed[2:] if "red" not in CATEGORIES_OF[item]]
    assert ask(N, filter=chosen) == expected
    assert ask(5, filter=chosen) == expected[:5]
    assert ask(5, filter=chosen, exclude_item_ids=expected[:3]) == expected[3:8]


@settings(max_examples=60, deadline=None)
@given(
    liked=st.sets(st.sampled_from([*ALL, "never heard of"]), max_size=5),
    liked_categories=st.sets(st.sampled_from([*COLOURS, *KINDS, "no such"]), max_size=2),
    disliked=st.sets(st.sampled_from(ALL), max_size=3),
    disliked_categories=st.sets(st.sampled_from(COLOURS), max_size=1),
    limit=st.sampled_from([1, 3, 10, 50]),
    newcomer=st.booleans(),
    chosen=st.sampled_from([None, where(must=[between("year", gte=2010)]), where(deny=ALL[:10]), where(allow=ALL[20:40])]),
    seen=st.booleans(),
)
def test_an_answer_is_the_best_of_all_that_is_permitted_with_the_bonus(
    shared: Served,
    liked: set[str],
    liked_categories: set[str],
    disliked: set[str],
    disliked_categories: set[str],
    limit: int,
    newcomer: bool,
    chosen: v1.Filter | None,
    seen: bool,
):
    person = somebody(shared, events=not newcomer)
    options: dict[str, Any] = {"user_id": person.user_id, "filter": chosen, "exclude_seen": seen}
    plain = shared.client.recommend(limit=N, **options)
    scores = {
        item: score + BONUS * (item in liked or not liked_categories.isdisjoint(CATEGORIES_OF[item]))
        for item, score in zip(plain.item_ids, plain.scores, strict=True)
        if item not in disliked and disliked_categories.isdisjoint(CATEGORIES_OF[item])
    }
    expected = sorted(scores, key=lambda item: -scores[item])[:limit]
    About(shared).profile(
        person,
        likes=liked,
        dislikes=disliked,
        liked_categories=liked_categories,
        disliked_categories=disliked_categories,
    )
    answer = shared.client.recommend(limit=limit, **options)
    np.testing.assert_allclose(answer.scores, [scores[item] for item in expected], atol=1e-6)
    np.testing.assert_allclose([scores[item] for item in answer.item_ids], answer.scores, atol=1e-6)
    assert len(set(answer.item_ids)) == len(answer.item_ids)
    assert answer.degraded == plain.degraded
    request = towerbridge.recommend_request(limit=limit, **options)
    batch = shared.client.batch_recommend([request, request])
    assert [list(result.response.item_ids) for result in batch.results] == [list(answer.item_ids)] * 2


def test_a_newcomer_who_likes_a_category_sees_its_most_popular_items_first(shared: Served):
    person = somebody(shared, events=False)
    About(shared).profile(person, liked_categories=["white"])
    answer = shared.client.recommend(user_id=person.user_id, limit=12)
    assert list(answer.item_ids) == [*(f"item-{n}" for n in range(4, N, 5)), "item-0", "item-1"]
    assert list(answer.degraded) == [v1.DegradedReason.Value("DEGRADED_REASON_NO_HISTORY")]


def test_a_liked_item_that_may_not_be_returned_is_not_returned(serve: Serve):
    served = serve()
    About(served).profile(user("ann"), likes=["item-40", "item-41", "item-42"], disliked_categories=["black"])  # 43 is black
    served.client.set_availability({"item-41": False})
    served.client.remove_items(["item-42"])
    answer = served.client.recommend(user_id="ann", limit=3, exclude_item_ids=["item-0"])
    assert answer.item_ids[0] == "item-40"
    assert not {"item-0", "item-41", "item-42"} & set(answer.item_ids)


def test_an_item_that_gets_a_disliked_category_is_gone_at_once(serve: Serve):
    served = serve()
    served.client.record_events([towerbridge.event("view", "item-4", user_id="ann")])
    About(served).profile(user("ann"), disliked_categories=["purple"])
    [vector] = [served.app.tenant.live.bundle.item_vectors[7]]
    assert "item-7" in served.client.recommend(user_id="ann", limit=N).item_ids
    served.client.upsert_items([towerbridge.item("item-7", categories=["purple"], vector=vector)])
    for whom in ("ann", "nobody"):
        assert ("item-7" in served.client.recommend(user_id=whom, limit=N).item_ids) == (whom == "nobody")


def test_of_linked_ids_the_roots_profile_is_used_and_else_their_own(shared: Served):
    about, ann, cookie = About(shared), somebody(shared), visitor("profile cookie")
    about.profile(cookie, dislikes=["item-1"])
    about.link(cookie, ann)

    def missing(**who: str) -> set[str]:
        return set(ALL) - set(shared.client.recommend(limit=N, **who).item_ids)  # type: ignore[arg-type]

    assert missing(visitor_id=cookie.visitor_id) == {"item-1"}
    assert missing(user_id=ann.user_id) == set()
    about.profile(ann, dislikes=["item-2"])
    assert missing(visitor_id=cookie.visitor_id) == missing(user_id=ann.user_id) == {"item-2"}
    about.unlink(cookie, ann)
    assert missing(visitor_id=cookie.visitor_id) == {"item-1"}


def test_the_roots_profile_is_not_used_on_the_yes_of_another_id_alone(serve: Serve):
    served = serve(consent={"personalisation": "opt_in"})
    about, ann, ben, cookie = About(served), user("ann"), user("ben"), visitor("cookie")
    about.decide(ben, decision(True))
    about.link(ann, ben)
    about.profile(ann, dislikes=["item-1"])  # on ben's yes
    about.unlink(ann, ben)
    about.decide(cookie, decision(True))
    about.profile(cookie, dislikes=["item-2"])
    about.link(cookie, ann)  # who has decided nothing herself
    assert set(ALL) - set(served.client.recommend(visitor_id="cookie", limit=N).item_ids) == {"item-2"}
    about.decide(ann, decision(True))
    assert set(ALL) - set(served.client.recommend(visitor_id="cookie", limit=N).item_ids) == {"item-1"}


def test_without_a_user_tower_popularity_obeys_the_profile_too(serve: Serve, tmp_path: Path):
    write_tiny_bundle(tmp_path / "bare", towers=False)
    served = serve(bundle=tmp_path / "bare")
    About(served).profile(user("ann"), likes=["item-49"], disliked_categories=["red"])
    answer = served.client.recommend(user_id="ann", limit=3)
    assert list(answer.item_ids) == ["item-49", "item-1", "item-2"]
    assert list(answer.degraded) == [v1.DegradedReason.Value("DEGRADED_REASON_NO_USER_TOWER")]


def test_an_item_that_turns_out_to_be_disliked_after_the_search_is_left_out(shared: Served):
    ask = Ask(Person(USER, "nobody"), 5).preferring(
        Preferences(frozenset(), frozenset(["item-0"]), frozenset(), frozenset(["red"]), BONUS)
    )
    recommender = Recommender(
        shared.app.tenant.people, shared.app.tenant.catalogue, shared.app.tenant._engine, shared.app.tenant._release
    )
    found = Answer("any", candidates=Candidates(["item-0", "item-5", "item-6"], np.arange(3), np.ones(3, dtype=np.float32)))
    popular = Answer(
        "any", fallback=Fallback.NO_HISTORY, popular=shared.app.tenant.catalogue.ordinals(["item-0", "item-5", "item-6"])
    )
    for answer in (found, popular):
        assert recommender.rank(ask, answer) is None  # it is asked for again
        last = recommender.rank(ask, answer, final=True)
        assert last is not None and last.item_ids == ["item-6"]
