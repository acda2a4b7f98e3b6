"""Conditions on the person's profile in filters, through a real server over the tiny bundle's items."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import towerbridge
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st
from towerbridge import exists, match, v1, where
from towerbridge.v1 import filter_pb2

from tests.server.about_people import About, matching, somebody, user, value
from tests.server.conftest import Served
from tests.tiny import COLOURS, KINDS

N = 50
ALL = [f"item-{n}" for n in range(N)]
CATEGORIES_OF = {f"item-{n}": {COLOURS[n % 5], KINDS[n % 2]} for n in range(N)}

SUITABLE = {
    "colour": (value("red"), match("categories", "red")),
    "colours": (value(["red", "blue"]), match("categories", "red", "blue")),
    "year": (value(2003), match("year", 2003)),
    "in_stock": (value(False), match("in_stock", False)),
}
ITEMS = {"colour": "categories", "colours": "categories", "year": "year", "in_stock": "in_stock"}


@st.composite
def filters(draw: Callable[..., Any], depth: int = 3) -> tuple[v1.Filter, v1.Filter]:
    """A filter with conditions on the profile of which each is in SUITABLE, and the same with them written out."""
    pair = v1.Filter(), v1.Filter()
    for group in ("must", "should", "must_not"):
        for _ in range(draw(st.integers(0, 2))):
            name = draw(st.sampled_from([*SUITABLE, "exists", *(["nested"] if depth > 1 else [])]))
            if name == "nested":
                inner = draw(filters(depth - 1))
                conditions = tuple(v1.Condition(filter=one) for one in inner)
            elif name == "exists":
                conditions = (exists("title"),) * 2
            else:
                own = "" if name == ITEMS[name] else name
                wanted = filter_pb2.MatchProfile(attribute=ITEMS[name], profile_attribute=own)
                conditions = v1.Condition(match_profile=wanted), SUITABLE[name][1]
            for one, condition in zip(pair, conditions, strict=True):
                getattr(one, group).append(condition)
    return pair


@settings(max_examples=100, deadline=None)
@given(pair=filters(), newcomer=st.booleans())
def test_a_condition_on_the_profile_is_the_same_as_its_values_written_out(
    shared: Served, pair: tuple[v1.Filter, v1.Filter], newcomer: bool
):
    whom = f"matching-{newcomer}"
    if not newcomer:
        shared.client.record_events([towerbridge.event("view", "item-3", user_id=whom, event_id="matching")])
    About(shared).profile(user(whom), attributes={name: stated for name, (stated, _) in SUITABLE.items()})
    by_profile, written_out = (shared.client.recommend(user_id=whom, limit=N, filter=one).item_ids for one in pair)
    assert list(by_profile) == list(written_out)


def test_one_filter_means_to_each_person_what_their_own_profile_says(shared: Served):
    about, chosen = About(shared), matching("categories", "colour")
    people = {colour: somebody(shared) for colour in COLOURS}
    for _ in range(2):
        for colour, person in people.items():
            about.profile(person, attributes={"colour": value(colour)})
            found = shared.client.recommend(user_id=person.user_id, limit=N, filter=chosen).item_ids
            assert set(found) == {item for item in ALL if colour in CATEGORIES_OF[item]}
        people = dict(zip(people, [*people.values()][::-1], strict=True))  # and each the other's, from then on


UNSUITABLE = {
    "missing": None,
    "a time": value(Timestamp(seconds=1)),
    "an empty list": value([]),
    "too long a word": value("x" * 257),
    "too long a word in a list": value(["red", "x" * 257]),
    "too many words": value([str(n) for n in range(1_001)]),
}
PLACES = {
    "must": lambda one: where(must=[one]),
    "should beside another": lambda one: where(should=[one, exists("title")]),
    "must_not": lambda one: where(must_not=[one]),
    "nested under must_not": lambda one: where(must_not=[where(must_not=[one])]),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("stated", UNSUITABLE)
def test_what_the_profile_does_not_say_lets_no_item_pass_wherever_it_is_asked_for(shared: Served, stated: str, place: str):
    person = somebody(shared)
    attribute = UNSUITABLE[stated]
    About(shared).profile(person, attributes={} if attribute is None else {"colour": attribute}, likes=["item-1"])
    chosen = PLACES[place](matching("categories", "colour").must[0])
    assert list(shared.client.recommend(user_id=person.user_id, limit=N, filter=chosen).item_ids) == []


@pytest.mark.parametrize("place", PLACES)
def test_there_is_no_profile_without_a_person(shared: Served, place: str):
    chosen = PLACES[place](matching("categories", "colour").must[0])
    for whom in ({"user_id": "nobody"}, {"visitor_id": "nobody"}, {"history": ["item-1"]}, {"vector": [1.0] * 8}):
        assert list(shared.client.recommend(limit=N, filter=chosen, **whom).item_ids) == []  # type: ignore[arg-type]
    for call in (
        lambda: shared.client.find_similar_items("item-1", limit=3, filter=chosen),
        lambda: shared.client.search_vectors([np.ones(8)], limit=3, filter=chosen),
    ):
        with pytest.raises(towerbridge.InvalidArgument, match="for calls about a person only") as caught:
            call()
        assert caught.value.field is not None and caught.value.field.endswith(".match_profile")


def nested(depth: int, inmost: v1.Filter) -> v1.Filter:
    return inmost if depth == 1 else where(should=[nested(depth - 1, inmost)])


BAD = [
    (matching(""), "filter.must[0].match_profile.attribute", "must have 1 to 64 bytes"),
    (matching("text"), "filter.must[0].match_profile.attribute", '"text" cannot be filtered by'),
    (matching("a", "x" * 65), "filter.must[0].match_profile.profile_attribute", "must have 0 to 64 bytes"),
    (where(must=[*matching("a").must] * 65), "filter.must[64]", "one too many"),
    (nested(5, matching("a")), "filter.should[0].filter.should[0].filter.should[0].filter.should[0].filter", "more than 4"),
    (v1.Filter(must=[*matching("a").must, v1.Condition()]), "filter.must[1]", "set match_any"),
]


@pytest.mark.parametrize(("chosen", "field", "problem"), BAD, ids=[field for _, field, _ in BAD])
def test_a_wrong_filter_is_refused_although_nothing_would_pass_it(shared: Served, chosen: v1.Filter, field: str, problem: str):
    for whom in ("nobody", somebody(shared).user_id):
        with pytest.raises(towerbridge.InvalidArgument, match=problem) as caught:
            shared.client.recommend(user_id=whom, limit=3, filter=chosen)
        assert caught.value.field == field


def test_a_value_of_another_kind_than_every_items_is_refused_as_if_written_out(shared: Served):
    person = somebody(shared)
    About(shared).profile(person, attributes={"year": value("long ago")})
    with pytest.raises(towerbridge.InvalidArgument, match="'year' is a number"):
        shared.client.recommend(user_id=person.user_id, limit=3, filter=matching("year"))
