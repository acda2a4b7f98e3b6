"""RecordEvents: kept once, counted once, refused by row."""

from datetime import UTC, datetime, timedelta

import pytest
import towerbridge
from google.protobuf.timestamp_pb2 import Timestamp
from towerbridge import v1

from tests.server.conftest import NOW_US, Serve, Served

NOW = datetime.fromtimestamp(NOW_US / 1e6, tz=UTC)


def stamp(us: int) -> Timestamp:
    return Timestamp(seconds=us // 1_000_000, nanos=us % 1_000_000 * 1000)


def good(event_id: str = "good", **changes: object) -> v1.Event:
    event = v1.Event(event_id=event_id, visitor_id="someone", item_id="item-1", type="view")
    for name, value in changes.items():
        if value is None:
            event.ClearField(name)  # type: ignore[arg-type]
        elif isinstance(value, Timestamp):
            getattr(event, name).CopyFrom(value)
        else:
            setattr(event, name, value)
    return event


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("event_id", {"event_id": ""}),
        ("event_id", {"event_id": "x" * 257}),
        ("event_id", {"event_id": "ü" * 129}),
        ("event_id", {"event_id": "a\0b"}),
        ("actor", {"visitor_id": None}),
        ("visitor_id", {"visitor_id": ""}),
        ("visitor_id", {"visitor_id": "x" * 257}),
        ("user_id", {"user_id": ""}),
        ("item_id", {"item_id": ""}),
        ("item_id", {"item_id": "x" * 257}),
        ("type", {"type": ""}),
        ("type", {"type": "View"}),
        ("type", {"type": "1view"}),
        ("type", {"type": "v" * 65}),
        ("type", {"type": "add to cart"}),
        ("occurred_at", {"occurred_at": stamp(NOW_US + 86_401_000_000)}),
        ("occurred_at", {"occurred_at": stamp(NOW_US - 31 * 86_400_000_000)}),
        ("occurred_at", {"occurred_at": Timestamp(seconds=1_800_000_000, nanos=-1)}),
        ("occurred_at", {"occurred_at": Timestamp(seconds=10**15)}),
    ],
)
def test_a_bad_event_is_refused_by_field_and_nothing_of_it_is_written(shared: Served, field: str, changes: dict[str, object]):
    neighbour = f"neighbour of {field} {sorted(changes)}"[:200]
    before = shared.client.record_events([good(f"before {neighbour}")]).revision
    bad = good(**{"event_id": "bad", **changes})
    response = shared.client.record_events([bad, good(neighbour)])
    rejected, accepted = response.results
    assert rejected.status == v1.EventStatus.EVENT_STATUS_REJECTED
    assert (rejected.error.code, rejected.error.field) == (3, f"events[0].{field}")
    assert accepted.status in (v1.EventStatus.EVENT_STATUS_ACCEPTED, v1.EventStatus.EVENT_STATUS_DUPLICATE)
    assert int(response.revision.rpartition("-")[2], 16) - int(before.rpartition("-")[2], 16) <= 1


@pytest.mark.parametrize("count", [0, 1001])
def test_a_batch_of_the_wrong_size_is_refused_whole(shared: Served, count: int):
    with pytest.raises(towerbridge.InvalidArgument, match="events: must have 1 to 1000 entries"):
        shared.client.record_events([good(f"size {number}") for number in range(count)])


def test_the_same_event_twice_counts_once_and_gets_the_first_revision(shared: Served):
    event = towerbridge.event("view", "item-2", user_id="doubler", occurred_at=NOW)
    [first] = shared.client.record_events([event]).results
    together = shared.client.record_events([event, event]).results
    assert [one.status for one in together] == [v1.EventStatus.EVENT_STATUS_DUPLICATE] * 2
    assert {one.revision for one in together} == {first.revision}
    assert shared.client.get_user(user_id="doubler").event_count == 1


def test_a_repeat_within_one_batch_gets_the_first_ones_revision(shared: Served):
    event = towerbridge.event("view", "item-2", user_id="batch doubler")
    first, second = shared.client.record_events([event, event]).results
    assert (first.status, second.status) == (v1.EventStatus.EVENT_STATUS_ACCEPTED, v1.EventStatus.EVENT_STATUS_DUPLICATE)
    assert first.revision == second.revision


def test_a_repeat_without_a_time_is_the_same_event_later(shared: Served):
    event = good("without time")
    shared.client.record_events([event])
    shared.clock.now_us += 5_000_000
    [again] = shared.client.record_events([event]).results
    assert again.status == v1.EventStatus.EVENT_STATUS_DUPLICATE


@pytest.mark.parametrize(
    "changes",
    [{"item_id": "item-2"}, {"type": "cart"}, {"visitor_id": "x"}, {"user_id": "someone"}, {"occurred_at": stamp(NOW_US)}],
)
def test_an_event_id_cannot_be_taken_over_by_other_content(shared: Served, changes: dict[str, object]):
    shared.client.record_events([good("taken")])
    [clash] = shared.client.record_events([good("taken", **changes)]).results
    assert clash.status == v1.EventStatus.EVENT_STATUS_REJECTED
    assert (clash.error.code, clash.error.field) == (6, "events[0].event_id")


def test_an_event_on_an_unknown_item_counts_once_the_item_is_known(shared: Served):
    [result] = shared.client.record_events([towerbridge.event("view", "late item", user_id="early")]).results
    assert result.status == v1.EventStatus.EVENT_STATUS_ACCEPTED_UNKNOWN_ITEM
    user = shared.client.get_user(user_id="early")
    assert (user.event_count, user.waiting_event_count) == (0, 1)
    assert shared.client.recommend(user_id="early", limit=1).degraded
    shared.client.upsert_items([towerbridge.item("late item", categories=["red", "hats"])])
    user = shared.client.get_user(user_id="early")
    assert (user.event_count, user.waiting_event_count) == (1, 0)
    assert list(user.item_ids) == ["late item"]
    assert not shared.client.recommend(user_id="early", limit=1).degraded


def test_an_event_of_an_unknown_type_is_kept_and_does_not_count(shared: Served):
    [result] = shared.client.record_events([towerbridge.event("hover", "item-1", user_id="hoverer")]).results
    assert result.status == v1.EventStatus.EVENT_STATUS_ACCEPTED_UNKNOWN_TYPE
    user = shared.client.get_user(user_id="hoverer")
    assert (user.event_count, user.waiting_event_count) == (0, 1)


def test_late_events_land_in_time_order_newest_first(shared: Served):
    for item, hours in (("item-1", 1), ("item-2", 3), ("item-3", 2), ("item-4", 2)):
        when = NOW - timedelta(hours=hours)
        shared.client.record_events([towerbridge.event("view", item, user_id="latecomer", occurred_at=when)])
    user = shared.client.get_user(user_id="latecomer")
    assert list(user.item_ids) == ["item-1", "item-4", "item-3", "item-2"]
    assert list(user.event_types) == ["view"] * 4
    assert user.occurred_at[0].ToDatetime(tzinfo=UTC) == NOW - timedelta(hours=1)
    assert list(shared.client.get_user(user_id="latecomer", limit=1).item_ids) == ["item-1"]


def test_a_person_of_whom_nothing_was_recorded_is_not_found(shared: Served):
    with pytest.raises(towerbridge.NotFound, match="user_id"):
        shared.client.get_user(user_id="never seen")


def test_only_the_newest_events_are_held_and_the_answer_still_counts_all(serve: Serve):
    served = serve(users={"max_history_events": 3})
    for number in range(5):
        when = NOW - timedelta(hours=number)
        served.client.record_events([towerbridge.event("view", f"item-{number}", user_id="busy", occurred_at=when)])
    user = served.client.get_user(user_id="busy")
    assert list(user.item_ids) == ["item-0", "item-1", "item-2"]
    assert user.event_count == 5
