"""From Python values to the contract's messages and back."""

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import towerbridge
from towerbridge import recommend_request, v1

NOON = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)


@pytest.mark.parametrize(
    "arguments", [{}, {"user_id": "ann", "visitor_id": "v"}, {"history": ["1"], "vector": [1.0]}, {"release_id": "r"}]
)
def test_a_subject_is_exactly_one_of_four_kinds(arguments: dict[str, Any], client: Any, script: Any) -> None:
    with pytest.raises(TypeError, match="give exactly one of user_id, visitor_id, history and vector"):
        client.recommend(**arguments)
    with pytest.raises(TypeError, match="give exactly one of user_id, visitor_id, history and vector"):
        client.score_items(["1"], **arguments)
    assert not script.calls


def test_a_release_id_goes_with_a_vector_only() -> None:
    with pytest.raises(TypeError, match="it does not go without vector"):
        recommend_request(user_id="ann", release_id="r")
    vector = recommend_request(vector=[1.0, 0.5], release_id="r").subject.vector
    assert (list(vector.values), vector.release_id) == ([1.0, 0.5], "r")


def test_each_kind_of_subject_is_sent_as_that_kind() -> None:
    assert recommend_request(user_id="ann").subject == v1.Subject(user_id="ann")
    assert recommend_request(visitor_id="ann").subject == v1.Subject(visitor_id="ann")
    assert recommend_request(vector=[1.0]).subject == v1.Subject(vector=v1.UserVector(values=[1.0]))
    assert not recommend_request(vector=[1.0]).subject.vector.HasField("release_id")


def test_an_array_is_sent_as_a_list_is() -> None:
    array = np.array([0.25, -1.0], dtype=np.float32)
    assert recommend_request(vector=array) == recommend_request(vector=[0.25, -1.0])
    assert towerbridge.item("1", vector=array) == towerbridge.item("1", vector=(0.25, -1.0))


def test_a_matrix_of_vectors_is_sent_row_by_row(client: Any, script: Any) -> None:
    client.search_vectors(np.eye(2, dtype=np.float32), release_id="r")
    request = script.calls[0].request
    assert [list(vector.values) for vector in request.vectors] == [[1.0, 0.0], [0.0, 1.0]]
    assert request.release_id == "r"


@pytest.mark.parametrize("vector", [[[1.0, 2.0]], ["a"], np.eye(2), 3.0])
def test_a_vector_is_one_dimensional_numbers(vector: Any) -> None:
    with pytest.raises(TypeError, match="vector must be one-dimensional numbers"):
        recommend_request(vector=vector)


def test_a_history_without_times_keeps_its_order_and_takes_views_for_granted() -> None:
    history = recommend_request(history=["1", ("2", "cart"), ("3", "view", None)]).subject.history
    assert list(history.item_ids) == ["1", "2", "3"]
    assert list(history.event_types) == ["view", "cart", "view"]
    assert not history.occurred_at


def test_a_history_with_times_sends_them() -> None:
    later = NOON + timedelta(seconds=5)
    history = recommend_request(history=[("1", "view", NOON), ("2", "cart", later)]).subject.history
    assert [moment.ToDatetime(tzinfo=UTC) for moment in history.occurred_at] == [NOON, later]


def test_a_history_has_times_for_all_or_for_none() -> None:
    with pytest.raises(ValueError, match="times for all entries or for none"):
        recommend_request(history=["1", ("2", "view", NOON)])


@pytest.mark.parametrize("entry", [1, ("1",), ("1", "view", "today"), ("1", "view", None, None), b"1"])
def test_a_history_entry_of_another_shape_is_refused(entry: Any) -> None:
    with pytest.raises(TypeError, match="a history entry is an item id"):
        recommend_request(history=[entry])


@pytest.mark.parametrize("argument", ["history", "exclude_item_ids", "attributes"])
def test_a_single_string_is_not_taken_for_a_list_of_letters(argument: str) -> None:
    subject: dict[str, Any] = {} if argument == "history" else {"user_id": "ann"}
    with pytest.raises(TypeError, match=rf"{argument} must be a list.*use \['abc'\]"):
        recommend_request(**{**subject, argument: "abc"})


def test_a_history_time_without_a_time_zone_is_refused() -> None:
    with pytest.raises(ValueError, match=r"history\[0\] has no time zone"):
        recommend_request(history=[("1", "view", NOON.replace(tzinfo=None))])


def test_an_event_without_an_id_gets_one_of_its_own() -> None:
    events = [towerbridge.event("view", "1", user_id="ann") for _ in range(100)]
    assert len({event.event_id for event in events}) == 100
    assert all(len(event.event_id) == 32 for event in events)


def test_an_event_keeps_the_id_it_is_given() -> None:
    event = towerbridge.event("cart", "1", visitor_id="v", event_id="order-7-line-1")
    assert event == v1.Event(event_id="order-7-line-1", visitor_id="v", item_id="1", type="cart")


def test_an_event_has_exactly_one_actor() -> None:
    with pytest.raises(TypeError, match="exactly one of user_id and visitor_id"):
        towerbridge.event("view", "1")
    with pytest.raises(TypeError, match="exactly one of user_id and visitor_id"):
        towerbridge.event("view", "1", user_id="ann", visitor_id="v")


def test_an_event_time_without_a_time_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="occurred_at has no time zone"):
        towerbridge.event("view", "1", user_id="ann", occurred_at=datetime(2026, 3, 1))


@pytest.mark.parametrize("moment", [1772362800.0, "2026-03-01T11:00:00Z"])
def test_an_event_time_that_is_no_datetime_is_refused_by_name(moment: Any) -> None:
    with pytest.raises(TypeError, match="occurred_at must be a datetime"):
        towerbridge.event("view", "1", user_id="ann", occurred_at=moment)


def test_an_event_time_is_a_moment_in_any_time_zone() -> None:
    tokyo = NOON.astimezone(timezone(timedelta(hours=9)))
    event = towerbridge.event("view", "1", user_id="ann", occurred_at=tokyo)
    assert event.occurred_at.ToDatetime(tzinfo=UTC) == NOON


def test_an_event_without_a_time_leaves_it_to_the_server() -> None:
    assert not towerbridge.event("view", "1", user_id="ann").HasField("occurred_at")


def test_a_person_is_exactly_one_of_two_kinds(client: Any) -> None:
    with pytest.raises(TypeError, match="give exactly one of user_id and visitor_id"):
        client.get_user()
    with pytest.raises(TypeError, match="give exactly one of user_id and visitor_id"):
        client.get_user(user_id="ann", visitor_id="v")


def test_a_persons_limit_is_sent_only_if_given(client: Any, script: Any) -> None:
    client.get_user(visitor_id="v")
    client.get_user(visitor_id="v", limit=0)
    unset, zero = (call.request for call in script.calls)
    assert (unset.HasField("limit"), zero.HasField("limit"), zero.limit) == (False, True, 0)


def test_attributes_come_back_as_they_were_sent(client: Any) -> None:
    attributes: dict[str, Any] = {
        "title": "Toy Story",
        "year": 1995,
        "price": 9.5,
        "animated": True,
        "released": NOON,
        "cast": ["Tom Hanks", "Tim Allen"],
        "tags": [],
        "sequel": None,
    }
    client.upsert_items([towerbridge.item("1", attributes=attributes), towerbridge.item("2")])
    first, second = towerbridge.attribute_values(client.recommend(user_id="ann", attributes=list(attributes)))
    assert first == attributes
    assert (type(first["year"]), type(first["animated"])) == (float, bool)
    assert second == dict.fromkeys(attributes)


def test_attributes_of_read_items_are_those_that_each_has(client: Any) -> None:
    client.upsert_items([towerbridge.item("1", attributes={"year": 1995, "sequel": None}), towerbridge.item("2")])
    reply = client.get_items(["1", "2", "3"])
    assert towerbridge.attribute_values(reply) == [{"year": 1995.0}, {}]
    assert list(reply.missing_item_ids) == ["3"]


def test_numbers_of_numpy_are_attributes_too() -> None:
    numbers: dict[str, Any] = {"a": np.int64(3), "b": np.float32(0.5)}
    attributes = towerbridge.item("1", attributes=numbers).attributes
    assert (attributes["a"].number_value, attributes["b"].number_value) == (3.0, 0.5)


@pytest.mark.parametrize("value", [b"bytes", {"a": 1}, [1, 2], object()])
def test_an_attribute_of_another_kind_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match=r"attributes\['x'\] must be a str, number, bool, datetime or list of str"):
        towerbridge.item("1", attributes={"x": value})


def test_an_integer_that_a_double_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="send it as text"):
        towerbridge.item("1", attributes={"x": 2**53 + 1})


def test_availability_is_a_mapping(client: Any, script: Any) -> None:
    client.set_availability({"1": False, "2": True})
    sent = [(change.item_id, change.available) for change in script.calls[0].request.items]
    assert sent == [("1", False), ("2", True)]


def test_rejected_rows_are_listed_with_their_place(client: Any) -> None:
    events = [towerbridge.event("view", item_id, user_id="ann") for item_id in ("1", "", "3")]
    ((index, error),) = towerbridge.rejected(client.record_events(events))
    assert (index, error.field, error.message) == (1, "events[1].item_id", "must not be empty")


def test_rejected_requests_of_a_batch_are_listed_too(client: Any) -> None:
    requests = [recommend_request(user_id="ann", limit=limit) for limit in (0, 5)]
    reply = client.batch_recommend(requests)
    assert [(index, error.field) for index, error in towerbridge.rejected(reply)] == [(0, "requests[0].limit")]
    assert reply.results[1].HasField("response")


def test_nothing_is_rejected_where_all_went_well(client: Any) -> None:
    assert towerbridge.rejected(client.upsert_items([towerbridge.item("1")])) == []
    assert towerbridge.rejected(client.set_availability({"1": True})) == []
    assert towerbridge.rejected(client.remove_items(["1"])) == []


WRONG: list[tuple[str, Any, type[Exception], str]] = [
    ("recommend", {"user_id": 5}, TypeError, r"^user_id must be a str, not 5; write user_id=str"),
    ("recommend", {"visitor_id": 5}, TypeError, r"^visitor_id must be a str"),
    ("recommend", {"user_id": "ann", "limit": 2**40}, ValueError, r"^limit must fit 32 bits, not 1099511627776$"),
    ("recommend", {"user_id": "ann", "limit": 2**70}, ValueError, r"^limit must fit 32 bits"),
    ("recommend", {"user_id": "ann", "limit": "5"}, TypeError, r"^limit must be an int, not '5'$"),
    ("recommend", {"user_id": "ann", "min_revision": 7}, TypeError, r"^min_revision must be a str"),
    ("recommend", {"user_id": "ann", "exclude_item_ids": ["1", 2]}, TypeError, r"^exclude_item_ids\[1\] must be a str, not 2"),
    ("recommend", {"vector": [1.0], "release_id": 7}, TypeError, r"^release_id must be a str"),
    ("score_items", {"item_ids": [1], "user_id": "ann"}, TypeError, r"^item_ids\[0\] must be a str"),
    ("find_similar_items", {"item_id": 1}, TypeError, r"^item_id must be a str"),
    ("search_vectors", {"vectors": [[1.0]], "release_id": 7}, TypeError, r"^release_id must be a str"),
    ("get_user", {"user_id": "ann", "limit": 2**31}, ValueError, r"^limit must fit 32 bits"),
    ("get_user", {"user_id": 5}, TypeError, r"^user_id must be a str"),
    ("get_items", {"item_ids": [None]}, TypeError, r"^item_ids\[0\] must be a str"),
    ("set_availability", {"items": {1: True}}, TypeError, r"^items\[0\] must be a str"),
    ("set_consent", {"user_id": "ann", "training": True, "source": 7}, TypeError, r"^source must be a str"),
    ("find_audience", {"item_id": "1", "limit": 2**31}, ValueError, r"^limit must fit 32 bits"),
    ("load_release", {"bundle": Path("b")}, TypeError, r"^bundle must be a str"),
    ("promote_release", {"release_id": 7}, TypeError, r"^release_id must be a str"),
]


@pytest.mark.parametrize(("method", "arguments", "error", "message"), WRONG)
def test_an_argument_of_another_kind_or_size_is_refused_by_name(
    client: Any, method: str, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        getattr(client, method)(**arguments)


@pytest.mark.parametrize("arguments", [{"text": 5}, {"attributes": {"text": 10**400}}])
def test_a_part_of_an_item_that_cannot_be_sent_is_refused_by_name(arguments: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError), match="text"):
        towerbridge.item("1", **arguments)


def test_an_id_that_is_a_number_is_refused_with_its_name_and_what_to_write() -> None:
    with pytest.raises(TypeError, match=r"item_id must be a str, not 1; write item_id=str"):
        towerbridge.event("view", 1, user_id="ann")  # type: ignore[arg-type]
