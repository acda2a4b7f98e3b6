"""The last check of an answer: by ordinal where that is enough, by id where it is not."""

from dataclasses import replace

import numpy as np
import pytest
from towerbridge import v1

from index.items import Candidates
from server.engine.query import NOTHING, Answer
from server.journal.events import USER, Person
from server.recommend.ask import Ask
from server.recommend.flow import Recommender
from tests.server.conftest import Serve, Served

IDS = ["item-0", "item-5", "item-6"]


@pytest.fixture
def served(serve: Serve) -> Served:
    return serve()


def recommender_of(served: Served) -> Recommender:
    tenant = served.app.tenant
    return Recommender(tenant.people, tenant.catalogue, tenant._engine, lambda: tenant.live)


def found(served: Served) -> Answer:
    """What a search gave a moment ago."""
    candidates = Candidates(IDS, np.arange(3), np.array([0.9, 0.8, 0.7], dtype=np.float32))
    return Answer("any", candidates=candidates, ordinals=served.app.tenant.catalogue.ordinals(IDS))


def check(served: Served, ask: Ask, answer: Answer, left: list[str]) -> None:
    recommender = recommender_of(served)
    assert recommender.rank(ask, answer) is None  # the search is repeated
    last = recommender.rank(ask, answer, final=True)
    assert last is not None
    assert last.item_ids == left
    assert last.scores == pytest.approx([0.9 - 0.1 * IDS.index(item_id) for item_id in left])


def test_what_is_still_permitted_is_returned_as_it_was_found(served: Served):
    ranked = recommender_of(served).rank(Ask(Person(USER, "u"), 3), found(served))
    assert ranked is not None and ranked.item_ids == IDS
    other = recommender_of(served).rank(Ask(Person(USER, "u"), 3), found(served))
    assert other is not None and other.recommendation_id != ranked.recommendation_id
    assert len(ranked.recommendation_id) == 32


def test_an_item_withdrawn_after_the_search_is_not_returned(served: Served):
    answer = found(served)
    served.client.set_availability({"item-5": False})
    check(served, Ask(Person(USER, "u"), 3), answer, ["item-0", "item-6"])
    served.client.set_availability({"item-5": True})
    served.client.remove_items(["item-6"])
    check(served, Ask(Person(USER, "u"), 3), answer, ["item-0", "item-5"])


def test_an_item_that_was_removed_and_came_back_is_asked_for_again_by_its_id(served: Served):
    answer = found(served)
    served.client.remove_items(["item-5"])
    served.client.upsert_items([v1.Item(item_id="item-5", categories=["red"])])
    ranked = recommender_of(served).rank(Ask(Person(USER, "u"), 3), answer)
    assert ranked is not None and ranked.item_ids == IDS


def test_an_excluded_item_is_not_returned_whatever_was_searched(served: Served):
    check(served, Ask(Person(USER, "u"), 3, ["item-0"]), found(served), ["item-5", "item-6"])


def test_an_ordinal_that_the_catalogue_does_not_have_is_not_permitted(served: Served):
    assert not served.app.tenant.catalogue.permits(np.array([10**6]))
    assert served.app.tenant.catalogue.permits(NOTHING)
    answer = replace(found(served), ordinals=np.array([10**6, 5, 6]))
    ranked = recommender_of(served).rank(Ask(Person(USER, "u"), 3), answer)
    assert ranked is not None and ranked.item_ids == IDS  # by id all of them are
