"""Recommend and its siblings, through a real server."""

import random
from datetime import UTC, datetime

import numpy as np
import pytest
import towerbridge
from towerbridge import v1

from index.bundle import Bundle
from tests.server.conftest import NOW_US, Serve, Served, offline_vector


def at(us: int) -> datetime:
    return datetime.fromtimestamp(us / 1e6, tz=UTC)


def view(served: Served, person: str, *item_ids: str) -> v1.RecordEventsResponse:
    return served.client.record_events([towerbridge.event("view", item_id, visitor_id=person) for item_id in item_ids])


def test_a_subject_without_history_gets_the_most_popular_items_and_is_told_so(shared: Served, bundle: Bundle):
    answer = shared.client.recommend(visitor_id="nobody", limit=5)
    popularity = np.array(bundle.items.column("popularity").to_pylist())
    most = np.argsort(-popularity, kind="stable")[:5]
    assert list(answer.item_ids) == [bundle.item_ids[row] for row in most]
    np.testing.assert_allclose(answer.scores, popularity[most] / popularity.sum(), rtol=1e-6)
    assert list(answer.degraded) == [v1.DegradedReason.DEGRADED_REASON_NO_HISTORY]
    assert not answer.HasField("vector_computed_at")


def test_an_event_changes_the_next_answer(shared: Served, bundle: Bundle):
    before = shared.client.recommend(visitor_id="changer", limit=10)
    view(shared, "changer", "item-7")
    after = shared.client.recommend(visitor_id="changer", limit=10)
    assert list(after.item_ids) != list(before.item_ids)
    assert not after.degraded
    assert after.events_behind == 0
    assert after.HasField("vector_computed_at")
    vector = offline_vector(bundle, [("item-7", "view", 0)])
    truth = np.argsort(-(bundle.item_vectors @ vector), kind="stable")[:10]
    assert list(after.item_ids) == [bundle.item_ids[row] for row in truth]
    np.testing.assert_allclose(after.scores, (bundle.item_vectors @ vector)[truth], atol=1e-5)


def test_users_and_visitors_with_the_same_id_are_two_people(shared: Served):
    view(shared, "twin", "item-3")
    assert not shared.client.recommend(visitor_id="twin", limit=3).degraded
    assert shared.client.recommend(user_id="twin", limit=3).degraded


def test_seen_and_excluded_items_are_left_out_and_replaced(shared: Served):
    view(shared, "picky", "item-1", "item-2")
    everything = shared.client.recommend(visitor_id="picky", limit=50)
    assert len(everything.item_ids) == 50
    answer = shared.client.recommend(
        visitor_id="picky", limit=50, exclude_seen=True, exclude_item_ids=["item-9", "never heard of"]
    )
    assert len(answer.item_ids) == 47
    assert not {"item-1", "item-2", "item-9"} & set(answer.item_ids)


def test_exclusions_hold_for_the_popular_items_too(shared: Served):
    best = shared.client.recommend(visitor_id="nobody", limit=2)
    answer = shared.client.recommend(visitor_id="nobody", limit=50, exclude_item_ids=list(best.item_ids))
    assert len(answer.item_ids) == 48
    assert not set(best.item_ids) & set(answer.item_ids)


def test_a_history_sent_along_equals_the_same_history_recorded(shared: Served):
    times = [NOW_US - 9_000_000, NOW_US - 5_000_000, NOW_US - 1_000_000]
    history = [("item-4", "view", at(times[0])), ("item-8", "cart", at(times[1])), ("item-15", "purchase", at(times[2]))]
    shared.client.record_events(
        [towerbridge.event(kind, item_id, user_id="inline", occurred_at=when) for item_id, kind, when in history]
    )
    recorded = shared.client.recommend(user_id="inline", limit=20, exclude_seen=True)
    inline = shared.client.recommend(history=history, limit=20, exclude_seen=True)
    assert list(inline.item_ids) == list(recorded.item_ids)
    np.testing.assert_allclose(inline.scores, recorded.scores, atol=1e-6)


def test_a_history_of_unknown_items_only_is_no_history(shared: Served):
    answer = shared.client.recommend(history=["no such item"], limit=3)
    assert list(answer.degraded) == [v1.DegradedReason.DEGRADED_REASON_NO_HISTORY]


def test_a_vector_computed_elsewhere_finds_what_the_recorded_history_finds(shared: Served, bundle: Bundle):
    view(shared, "elsewhere", "item-11")
    release_id = shared.client.get_release().release_id
    vector = offline_vector(bundle, [("item-11", "view", 0)]) * 7  # any length will do
    subject = v1.Subject(vector=v1.UserVector(values=vector.tolist(), release_id=release_id))
    request = v1.RecommendRequest(subject=subject, limit=10)
    [result] = shared.client.batch_recommend([request]).results
    assert list(result.response.item_ids) == list(shared.client.recommend(visitor_id="elsewhere", limit=10).item_ids)


def test_a_vector_of_another_release_is_refused(shared: Served):
    subject = v1.Subject(vector=v1.UserVector(values=[1.0] * 8, release_id="0123456789abcdef"))
    [result] = shared.client.batch_recommend([v1.RecommendRequest(subject=subject, limit=10)]).results
    assert result.error.code == 9
    assert "subject.vector.release_id" in result.error.message


def test_asked_for_attributes_come_in_columns_parallel_to_the_items(shared: Served, bundle: Bundle):
    answer = shared.client.recommend(visitor_id="nobody", limit=3, attributes=["categories", "text", "no such attribute"])
    assert [column.name for column in answer.attributes] == ["categories", "text", "no such attribute"]
    rows = {row["item_id"]: row for row in bundle.items.to_pylist()}
    for place, item_id in enumerate(answer.item_ids):
        assert list(answer.attributes[0].values[place].string_list_value.values) == rows[item_id]["categories"]
        assert answer.attributes[1].values[place].string_value == rows[item_id]["text"]
        assert answer.attributes[2].values[place].WhichOneof("kind") is None


def test_one_bad_row_of_a_batch_leaves_the_others_alone(shared: Served):
    good = v1.RecommendRequest(subject=v1.Subject(visitor_id="nobody"), limit=2)
    bad = v1.RecommendRequest(subject=v1.Subject(visitor_id="nobody"), limit=0)
    results = shared.client.batch_recommend([good, bad, good]).results
    assert [result.WhichOneof("outcome") for result in results] == ["response", "error", "response"]
    assert (results[1].error.code, results[1].error.field) == (3, "requests[1].limit")


@pytest.mark.parametrize("scale", [1e-30, 1e-45, 1e38])
def test_a_vector_of_any_length_but_zero_is_scaled(shared: Served, scale: float):
    found = shared.client.recommend(vector=[scale, 0.0, scale, 0.0, 0.0, 0.0, 0.0, 0.0], limit=5)
    same = shared.client.recommend(vector=[1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0], limit=5)
    assert list(found.item_ids) == list(same.item_ids)
    np.testing.assert_allclose(found.scores, same.scores, atol=1e-6)


def test_a_row_whose_revision_or_vector_is_of_elsewhere_names_the_field(shared: Served):
    vector = towerbridge.recommend_request(vector=[1.0] * 8, release_id="another", limit=2)
    revision = towerbridge.recommend_request(user_id="nobody", limit=2, min_revision="0123-1")
    results = shared.client.batch_recommend([vector, revision]).results
    assert [(result.error.code, result.error.field) for result in results] == [
        (9, "requests[0].subject.vector.release_id"),
        (9, "requests[1].min_revision"),
    ]


def test_scores_keep_the_order_asked_and_say_why_items_were_skipped(shared: Served, bundle: Bundle):
    view(shared, "scorer", "item-20")
    shared.client.set_availability({"item-49": False})
    answer = shared.client.score_items(visitor_id="scorer", item_ids=["item-3", "unknown", "item-49", "item-20"])
    shared.client.set_availability({"item-49": True})
    vector = offline_vector(bundle, [("item-20", "view", 0)])
    assert list(answer.item_ids) == ["item-3", "item-20"]
    np.testing.assert_allclose(answer.scores, bundle.item_vectors[[3, 20]] @ vector, atol=1e-5)
    assert [(one.item_id, one.reason) for one in answer.skipped] == [
        ("unknown", v1.SkipReason.SKIP_REASON_UNKNOWN_ITEM),
        ("item-49", v1.SkipReason.SKIP_REASON_UNAVAILABLE),
    ]


def test_scoring_for_nobody_is_refused_with_what_to_do(shared: Served):
    with pytest.raises(towerbridge.FailedPrecondition, match="record events first or send a history"):
        shared.client.score_items(user_id="nobody", item_ids=["item-1"])


def test_similar_items_are_the_nearest_without_the_item_itself(shared: Served, bundle: Bundle):
    answer = shared.client.find_similar_items("item-6", limit=5, exclude_item_ids=["item-16"])
    scores = bundle.item_vectors @ bundle.item_vectors[6]
    truth = [row for row in np.argsort(-scores, kind="stable") if row not in (6, 16)][:5]
    assert list(answer.item_ids) == [bundle.item_ids[row] for row in truth]
    with pytest.raises(towerbridge.NotFound, match="item_id"):
        shared.client.find_similar_items("no such item", limit=5)


def test_vectors_are_searched_each_for_itself(shared: Served, bundle: Bundle):
    answer = shared.client.search_vectors([bundle.item_vectors[1].tolist(), bundle.item_vectors[2].tolist()], limit=4)
    for row, result in zip((1, 2), answer.results, strict=True):
        scores = bundle.item_vectors @ bundle.item_vectors[row]
        assert list(result.item_ids) == [bundle.item_ids[place] for place in np.argsort(-scores, kind="stable")[:4]]
    with pytest.raises(towerbridge.FailedPrecondition, match="release_id"):
        shared.client.search_vectors([[1.0] * 8], limit=1, release_id="another")


def test_a_revision_from_a_reply_is_accepted_and_others_are_refused(shared: Served):
    revision = view(shared, "reviser", "item-5").revision
    answer = shared.client.recommend(visitor_id="reviser", limit=1, min_revision=revision)
    assert answer.revision
    epoch, _, position = revision.rpartition("-")
    with pytest.raises(towerbridge.FailedPrecondition, match="ahead"):
        shared.client.recommend(visitor_id="reviser", limit=1, min_revision=f"{epoch}-{int(position, 16) + 1000:x}")
    with pytest.raises(towerbridge.FailedPrecondition, match="another journal"):
        shared.client.recommend(visitor_id="reviser", limit=1, min_revision=f"0000-{position}")
    with pytest.raises(towerbridge.InvalidArgument, match="min_revision"):
        shared.client.recommend(visitor_id="reviser", limit=1, min_revision="nonsense")


def test_every_answer_includes_every_acknowledged_event(serve: Serve, bundle: Bundle):
    """Random pairs of RecordEvents and Recommend: the vector used equals an offline encode of the history so far."""
    served = serve()
    random_ = random.Random(7)
    recorded: dict[str, list[tuple[str, str, int]]] = {}
    for _ in range(1000):
        person = f"visitor-{random_.randrange(40)}"
        when = NOW_US - random_.randrange(20 * 86_400) * 1_000_000
        row = (f"item-{random_.randrange(60)}", random_.choice(["view", "cart", "purchase", "hover"]), when)
        served.client.record_events([towerbridge.event(row[1], row[0], visitor_id=person, occurred_at=at(when))])
        recorded.setdefault(person, []).append(row)
        answer = served.client.recommend(visitor_id=person, limit=50)
        if not any(item_id in bundle.item_ids and kind != "hover" for item_id, kind, _ in recorded[person]):
            assert list(answer.degraded) == [v1.DegradedReason.DEGRADED_REASON_NO_HISTORY]
            continue
        expected = offline_vector(bundle, recorded[person])
        user = served.client.get_user(visitor_id=person)
        np.testing.assert_allclose(user.vector, expected, atol=1e-5)
        rows = [int(item_id.removeprefix("item-")) for item_id in answer.item_ids]
        np.testing.assert_allclose(answer.scores, bundle.item_vectors[rows] @ expected, atol=1e-5)
        assert user.events_behind == 0


def test_the_release_says_what_it_is(shared: Served, bundle: Bundle):
    release = shared.client.get_release()
    assert release.release_id == bundle.release_id
    assert (release.dim, release.history_length) == (8, 10)
    assert list(release.event_types) == ["cart", "purchase", "view"]
    assert release.index_kind == "exact"
    assert release.created_at.ToDatetime(tzinfo=UTC) == bundle.manifest.created_at
