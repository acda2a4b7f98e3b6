"""ExportUser: everything held about a person, as lines of JSON."""

import pytest
from towerbridge.v1 import user_pb2

from tests.server.about_people import user
from tests.server.conftest import NOW_US, Serve
from tests.server.erasing import SECOND_US, Somebody, event, export, record


def test_an_export_holds_everything_about_a_person_and_their_ids(serve: Serve):
    served = serve()
    somebody = Somebody(served).live()
    lines = export(served, somebody.visitor)
    kinds = [line["kind"] for line in lines]
    assert kinds == ["person"] * 2 + ["link"] + ["consent"] * 2 + ["profile"] + ["event"] * 4 + ["vector"]
    assert lines[0] == {"kind": "person", "id": {"user_id": somebody.user.user_id}, "is_root": True}
    assert lines[2]["source"] == {"visitor_id": somebody.visitor.visitor_id}
    assert lines[2]["target"] == {"user_id": somebody.user.user_id}
    assert [line["purpose"] for line in lines[3:5]] == ["personalisation", "training"]
    assert lines[5]["profile"] == {"attributes": {"colour": somebody.attribute}, "liked_item_ids": [somebody.like]}
    events = lines[6:10]
    assert [line["item_id"] for line in events] == ["item-3", somebody.item, "item-4", "item-5"]
    assert [line["occurred_at"] for line in events] == sorted(str(line["occurred_at"]) for line in events)
    assert len(lines[10]["values"]) == 8  # type: ignore[arg-type]


def test_a_long_history_is_exported_whole_in_parts(serve: Serve):
    served = serve(journal={"max_events_per_person": 5000})
    for start in range(0, 2500, 500):
        record(served, *(event(user("busy"), f"item-{n % 50}", NOW_US - n % 7 * SECOND_US) for n in range(start, start + 500)))
    parts = list(served.client._users.ExportUser(user_pb2.ExportUserRequest(person=user("busy")), timeout=60))
    assert len(parts) >= 3
    events = [line for line in export(served, user("busy")) if line["kind"] == "event"]
    assert len({str(line["event_id_hash"]) for line in events}) == len(events) == 2500
    times = [str(line["occurred_at"]) for line in events]
    assert times == sorted(times)


def test_who_leaves_in_the_middle_of_an_export_leaves_no_error_behind(serve: Serve, caplog: pytest.LogCaptureFixture):
    served = serve(journal={"max_events_per_person": 5000})
    for start in range(0, 3000, 500):
        record(served, *(event(user("busy"), f"item-{n % 50}", NOW_US) for n in range(start, start + 500)))
    for number in range(40):
        call = served.client._users.ExportUser(user_pb2.ExportUserRequest(person=user("busy")), timeout=60)
        if number % 2:
            next(call)
        call.cancel()
    assert export(served, user("busy")), "the server goes on"
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []
