"""ItemService: searchable when acknowledged, gone when acknowledged."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import towerbridge
from towerbridge import v1

from index.bundle import Bundle, load_text_encoder, read_bundle
from tests.server.conftest import Serve, Served
from tests.tiny import write_tiny_bundle


def similar(served: Served, vector: np.ndarray, limit: int = 50) -> list[str]:
    [result] = served.client.search_vectors([vector.tolist()], limit=limit).results
    return list(result.item_ids)


def test_an_item_sent_with_a_vector_is_found_at_once(shared: Served):
    vector = np.array([1, -2, 3, -4, 5, -6, 7, -8], dtype=np.float32)
    [result] = shared.client.upsert_items([towerbridge.item("by vector", vector=vector.tolist())]).results
    assert result.created and result.searchable
    assert similar(shared, vector)[0] == "by vector"
    [again] = shared.client.upsert_items([towerbridge.item("by vector", vector=(-vector).tolist())]).results
    assert not again.created
    assert similar(shared, vector, 51)[-1] == "by vector"
    shared.client.remove_items(["by vector"])


def test_an_item_with_only_text_is_found_at_once_by_a_matching_user(serve: Serve, text_bundle_path: Path):
    served = serve(bundle=text_bundle_path)
    red_shoes = next(
        item for item in served.client.get_items([f"item-{n}" for n in range(50)]).items if "red" in item.item.text
    )
    served.client.record_events([towerbridge.event("purchase", red_shoes.item.item_id, user_id="fan")])
    before = served.client.recommend(user_id="fan", limit=50)
    [result] = served.client.upsert_items([towerbridge.item("brand new", text=red_shoes.item.text)]).results
    assert result.searchable
    after = served.client.recommend(user_id="fan", limit=50)
    assert "brand new" not in before.item_ids
    assert "brand new" in after.item_ids
    bundle = read_bundle(text_bundle_path)
    encoded = load_text_encoder(text_bundle_path / "text_encoder").encode([red_shoes.item.text])
    vector = bundle.encode_items(
        encoded, np.zeros((1, bundle.manifest.category_slots), np.int64), np.zeros((1, 8), np.float32)
    )[0]
    assert similar(served, vector)[0] == "brand new"


def test_an_embedding_sent_along_equals_the_text_it_was_made_of(serve: Serve, text_bundle_path: Path):
    served = serve(bundle=text_bundle_path)
    embedding = load_text_encoder(text_bundle_path / "text_encoder").encode(["green leather hats"])[0]
    served.client.upsert_items(
        [
            towerbridge.item("from text", text="green leather hats"),
            towerbridge.item("from embedding", text_embedding=embedding.tolist()),
        ]
    )
    answer = served.client.find_similar_items("from text", limit=1)
    assert list(answer.item_ids) == ["from embedding"]
    assert answer.scores[0] == pytest.approx(1.0, abs=1e-5)


def test_a_text_with_nothing_to_read_it_is_kept_and_not_searchable(shared: Served):
    [result] = shared.client.upsert_items([towerbridge.item("wordy", text="this release has no text encoder")]).results
    assert result.created and not result.searchable
    [found] = shared.client.get_items(["wordy"]).items
    assert found.available and not found.searchable
    with pytest.raises(towerbridge.FailedPrecondition, match="no vector"):
        shared.client.find_similar_items("wordy", limit=1)
    skipped = shared.client.score_items(vector=[1.0] * 8, item_ids=["wordy"]).skipped
    assert skipped[0].reason == v1.SkipReason.SKIP_REASON_NO_VECTOR
    shared.client.remove_items(["wordy"])


def test_events_on_an_item_without_a_vector_are_told_alike_by_every_answer(shared: Served):
    client = shared.client
    client.upsert_items([towerbridge.item("mute", text="nothing reads it")])
    client.record_events([towerbridge.event("view", "mute", user_id="reader of the mute")])
    person, answer = client.get_user(user_id="reader of the mute"), client.recommend(user_id="reader of the mute", limit=1)
    assert list(answer.degraded) == [v1.DegradedReason.Value("DEGRADED_REASON_NO_HISTORY")]
    assert person.event_count == person.events_behind == answer.events_behind == 1
    client.record_events([towerbridge.event("view", "item-1", user_id="reader of the mute")])
    answer, person = client.recommend(user_id="reader of the mute", limit=1), client.get_user(user_id="reader of the mute")
    assert not answer.degraded
    assert (person.event_count, person.events_behind, answer.events_behind) == (2, 0, 0)
    client.remove_items(["mute"])


def test_an_item_comes_back_whole(shared: Served):
    attributes = {
        "title": "Blue suède shoes",
        "price": 19.5,
        "sale": True,
        "tags": ["a", "b"],
        "released": datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC),
    }
    shared.client.upsert_items([towerbridge.item("whole", text="t", categories=["blue", "never seen"], attributes=attributes)])
    response = shared.client.get_items(["whole", "absent"])
    assert list(response.missing_item_ids) == ["absent"]
    [found] = response.items
    assert (found.item.text, list(found.item.categories)) == ("t", ["blue", "never seen"])
    assert found.item.attributes["title"].string_value == "Blue suède shoes"
    assert found.item.attributes["price"].number_value == 19.5
    assert found.item.attributes["sale"].bool_value
    assert list(found.item.attributes["tags"].string_list_value.values) == ["a", "b"]
    assert found.item.attributes["released"].timestamp_value.ToDatetime(tzinfo=UTC) == attributes["released"]
    shared.client.upsert_items([towerbridge.item("whole", categories=["blue"])])
    [replaced] = shared.client.get_items(["whole"]).items
    assert not replaced.item.attributes and not replaced.item.text
    shared.client.remove_items(["whole"])


def test_an_unavailable_item_never_appears_and_comes_back_when_available(shared: Served, bundle: Bundle):
    shared.client.record_events([towerbridge.event("view", "item-12", user_id="watcher")])
    shared.client.set_availability({"item-12": False})
    for answer in (
        shared.client.recommend(user_id="watcher", limit=100),
        shared.client.recommend(user_id="nobody at all", limit=100),
        shared.client.find_similar_items("item-22", limit=100),
    ):
        assert "item-12" not in answer.item_ids
        assert len(answer.item_ids) >= 48
    assert "item-12" not in similar(shared, bundle.item_vectors[12])
    assert not shared.client.get_items(["item-12"]).items[0].available
    shared.client.upsert_items([towerbridge.item("item-12", categories=["red"])])
    assert not shared.client.get_items(["item-12"]).items[0].available, "an edit must not put an item back on sale"
    shared.client.set_availability({"item-12": True})
    assert "item-12" in shared.client.recommend(user_id="watcher", limit=100).item_ids


def test_a_removed_item_is_gone_at_once_and_its_events_still_count(shared: Served, bundle: Bundle):
    shared.client.record_events([towerbridge.event("view", "item-33", user_id="rememberer")])
    vector = list(shared.client.get_user(user_id="rememberer").vector) or None
    first = shared.client.recommend(user_id="rememberer", limit=100)
    removed = shared.client.remove_items(["item-33", "never there"]).results
    assert [one.removed for one in removed] == [True, False]
    after = shared.client.recommend(user_id="rememberer", limit=100)
    assert "item-33" in first.item_ids and "item-33" not in after.item_ids
    assert not after.degraded
    assert "item-33" not in shared.client.recommend(user_id="nobody at all", limit=100).item_ids
    assert list(shared.client.get_items(["item-33"]).missing_item_ids) == ["item-33"]
    user = shared.client.get_user(user_id="rememberer")
    assert list(user.item_ids) == ["item-33"]
    assert vector is None or vector == list(user.vector)
    [waiting] = shared.client.record_events([towerbridge.event("view", "item-33", user_id="rememberer")]).results
    assert waiting.status == v1.EventStatus.EVENT_STATUS_ACCEPTED_UNKNOWN_ITEM
    shared.client.upsert_items([towerbridge.item("item-33", categories=["red"])])
    assert shared.client.get_user(user_id="rememberer").event_count == 2
    assert "item-33" in shared.client.recommend(user_id="rememberer", limit=100).item_ids


@pytest.mark.parametrize(
    ("field", "item"),
    [
        ("item_id", v1.Item(item_id="")),
        ("item_id", v1.Item(item_id="x" * 257)),
        ("text", v1.Item(item_id="bad", text="x" * 8193)),
        ("categories[1]", v1.Item(item_id="bad", categories=["fine", ""])),
        ("categories", v1.Item(item_id="bad", categories=["c"] * 65)),
        ("vector", v1.Item(item_id="bad", vector=[1.0] * 7)),
        ("vector", v1.Item(item_id="bad", vector=[0.0] * 8)),
        ("vector", v1.Item(item_id="bad", vector=[float("nan")] + [1.0] * 7)),
        ("vector", v1.Item(item_id="bad", vector=[float("inf")] + [1.0] * 7)),
        ("text_embedding", v1.Item(item_id="bad", text_embedding=[1.0])),
        ("attributes[text]", v1.Item(item_id="bad", attributes={"text": v1.AttributeValue(string_value="x")})),
        ("attributes[empty]", v1.Item(item_id="bad", attributes={"empty": v1.AttributeValue()})),
        ("attributes[number]", v1.Item(item_id="bad", attributes={"number": v1.AttributeValue(number_value=float("nan"))})),
    ],
)
def test_a_bad_item_is_refused_by_field_and_its_neighbours_are_not(shared: Served, field: str, item: v1.Item):
    response = shared.client.upsert_items([item, v1.Item(item_id="neighbour", categories=["red"])])
    bad, good = response.results
    assert (bad.error.code, bad.error.field) == (3, f"items[0].{field}")
    assert good.searchable and not good.HasField("error")
    assert list(shared.client.get_items(["bad"]).missing_item_ids) == ["bad"]
    shared.client.remove_items(["neighbour"])


def test_bad_ids_are_reported_by_row(shared: Served):
    removed = shared.client.remove_items(["", "never there"]).results
    assert (removed[0].error.code, removed[0].error.field) == (3, "item_ids[0]")
    assert not removed[1].HasField("error")
    changes = shared.client.set_availability({"x" * 300: True, "never there": True, "item-1": True}).results
    assert [(one.error.code, one.error.field) for one in changes] == [
        (3, "items[0].item_id"),
        (5, "items[1].item_id"),
        (0, ""),
    ]


def test_the_last_of_equal_ids_in_a_batch_counts(shared: Served):
    vectors = np.eye(8, dtype=np.float32)
    items = [towerbridge.item("twice", vector=vectors[0].tolist()), towerbridge.item("twice", vector=vectors[1].tolist())]
    first, second = shared.client.upsert_items(items).results
    assert first.created and not second.created
    assert similar(shared, vectors[1])[0] == "twice"
    shared.client.remove_items(["twice", "twice"])


def test_slots_of_removed_items_are_used_again_and_never_mix_items_up(serve: Serve):
    served = serve()
    vectors = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    for number, vector in enumerate(vectors):
        served.client.upsert_items([towerbridge.item(f"churn-{number}", vector=vector.tolist())])
        assert similar(served, vector)[0] == f"churn-{number}"
        served.client.remove_items([f"churn-{number}"])
        assert f"churn-{number}" not in similar(served, vector)
    assert served.app.tenant.live.index.slots.extent < 60
    assert served.app.tenant.live.index.violations == 0


def test_a_removed_item_does_not_come_back_with_a_newer_bundle(serve: Serve, tmp_path: Path, bundle_path: Path):
    served = serve()
    vector = np.full(8, -1.0, dtype=np.float32)
    served.client.remove_items(["item-3"])
    served.client.set_availability({"item-4": False})
    served.client.upsert_items(
        [towerbridge.item("runtime", categories=["green", "hats"]), towerbridge.item("only a vector", vector=vector.tolist())]
    )
    serve.stop(served)  # type: ignore[attr-defined]
    write_tiny_bundle(tmp_path / "newer", n_items=55, dim=8, seed=1)
    newer = serve(bundle=tmp_path / "newer")
    assert newer.client.get_release().release_id != read_bundle(bundle_path).release_id
    everything = newer.client.recommend(user_id="nobody", limit=100)
    assert "item-3" not in everything.item_ids, "the catalogue's record is the journal"
    assert "item-4" not in everything.item_ids
    assert "item-52" not in everything.item_ids, "a bundle brings vectors, never membership"
    assert "runtime" in everything.item_ids
    found = similar(newer, vector, 100)
    assert "runtime" in found
    assert "only a vector" not in found, "a vector of another release's space must not be compared"
    [item] = newer.client.get_items(["only a vector"]).items
    assert not item.searchable
    newer.client.upsert_items([towerbridge.item("item-52", categories=["red"])])
    assert "item-52" in similar(newer, vector, 100)


def test_an_item_that_only_the_bundle_knew_has_its_place_among_the_popular_as_after_a_restart(serve: Serve, tmp_path: Path):
    write_tiny_bundle(tmp_path / "fewer", n_items=50, dim=8, drop_items=["item-1"])
    served = serve(bundle=tmp_path / "fewer")  # the catalogue is seeded without it
    serve.stop(served)  # type: ignore[attr-defined]
    served = serve()
    served.client.upsert_items([towerbridge.item("item-1", categories=["red"])])
    grown = served.client.recommend(user_id="nobody", limit=5)
    serve.stop(served)  # type: ignore[attr-defined]
    rebuilt = serve().client.recommend(user_id="nobody", limit=5)
    assert "item-1" in grown.item_ids
    assert (list(grown.item_ids), list(grown.scores)) == (list(rebuilt.item_ids), list(rebuilt.scores))
