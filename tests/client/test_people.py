"""What calls about people send, and what comes back."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest
import towerbridge
from towerbridge import v1


def last_request(script: Any) -> Any:
    return script.calls[-1].request


def test_only_what_was_decided_is_sent(client: Any, script: Any) -> None:
    client.set_consent(user_id="ann", training=False, source="settings", given_at=datetime(2026, 1, 2, tzinfo=UTC))
    [consent] = last_request(script).consents
    assert (consent.purpose, consent.granted, consent.source) == (v1.Purpose.PURPOSE_TRAINING, False, "settings")
    assert consent.given_at.ToDatetime(tzinfo=UTC) == datetime(2026, 1, 2, tzinfo=UTC)
    client.set_consent(visitor_id="v", personalisation=True, training=True, source="banner")
    assert [one.granted for one in last_request(script).consents] == [True, True]
    assert last_request(script).person == v1.Person(visitor_id="v")


def test_a_decision_about_nothing_is_refused(client: Any, script: Any) -> None:
    with pytest.raises(TypeError, match="give personalisation, training or both"):
        client.set_consent(user_id="ann", source="banner")
    assert not script.calls


def test_a_profile_is_made_of_python_values(client: Any, script: Any) -> None:
    client.set_profile(user_id="ann", attributes={"size": ["M", "L"], "age": 33, "none": None}, liked_item_ids=["1"])
    profile = last_request(script).profile
    assert list(profile.attributes["size"].string_list_value.values) == ["M", "L"]
    assert profile.attributes["age"].number_value == 33
    assert set(profile.attributes) == {"size", "age"}
    assert list(profile.liked_item_ids) == ["1"]


def test_a_visitor_is_linked_to_a_user_and_any_id_to_another(client: Any, script: Any) -> None:
    client.link_identity(visitor_id="v", user_id="ann")
    assert last_request(script) == v1.LinkIdentityRequest(source=v1.Person(visitor_id="v"), target=v1.Person(user_id="ann"))
    old, new = towerbridge.person(user_id="old"), towerbridge.person(user_id="new")
    client.unlink_identity(source=old, target=new)
    assert last_request(script) == v1.UnlinkIdentityRequest(source=old, target=new)


@pytest.mark.parametrize(
    "arguments", [{}, {"user_id": "a"}, {"user_id": "a", "source": v1.Person()}, {"source": v1.Person()}], ids=str
)
def test_a_link_without_two_ends_is_refused(arguments: dict[str, Any], client: Any) -> None:
    with pytest.raises(TypeError, match="visitor_id and user_id, or source and target"):
        client.link_identity(**arguments)


@pytest.mark.parametrize("arguments", [{}, {"user_id": "a", "visitor_id": "b"}, {"user_id": 7}], ids=str)
def test_a_person_has_exactly_one_id(arguments: dict[str, Any], client: Any) -> None:
    for method in (client.erase_user, client.export_user, client.get_consent, client.find_similar_users, client.set_profile):
        with pytest.raises(TypeError):
            method(**arguments)


def test_an_export_is_parsed_whole_although_lines_lie_in_two_parts(client: Any) -> None:
    assert list(client.export_user(user_id="ann")) == [{"kind": "person", "id": "a"}, {"kind": "event", "item": "ü\n"}]


def test_an_audience_is_people_with_their_scores(client: Any, script: Any) -> None:
    found = list(client.find_audience("1", limit=5, min_score=0.1, exclude_seen=True))
    assert found == [(v1.Person(user_id="u"), 0.5), (v1.Person(visitor_id="v"), 0.25)]
    assert last_request(script) == v1.FindAudienceRequest(item_id="1", limit=5, min_score=0.1, exclude_seen=True)


def test_a_stream_that_was_left_early_is_cancelled(client: Any) -> None:
    found = client.find_similar_users(user_id="ann", limit=10**9)
    assert next(found)[1] == 1.0
    found.close()
    assert client.get_release().dim == 4


def test_a_streams_errors_are_those_of_the_tree(client: Any, script: Any) -> None:
    script.fail(grpc.StatusCode.PERMISSION_DENIED, "not offered here")
    with pytest.raises(towerbridge.PermissionDenied, match="not offered here"):
        list(client.find_audience("1"))


def test_a_stream_is_asked_for_again_before_its_first_message(client: Any, script: Any) -> None:
    script.fail(grpc.StatusCode.UNAVAILABLE)
    script.fail(grpc.StatusCode.RESOURCE_EXHAUSTED, pushback_ms="10")
    assert len(list(client.find_audience("1"))) == 2
    assert len(script.calls) == 3


def test_the_async_client_gives_the_same(server: Any) -> None:
    async def call() -> Any:
        async with towerbridge.AsyncClient(server.target) as client:
            return [line async for line in client.export_user(user_id="ann")], [
                person async for person, _ in client.find_similar_users(user_id="ann", limit=2)
            ]

    lines, people = asyncio.run(call())
    assert len(lines) == 2
    assert people == [v1.Person(user_id="u0"), v1.Person(user_id="u1")]


def test_conditions_on_the_profile_are_sent(client: Any) -> None:
    condition = towerbridge.match_profile("size", "shoe_size")
    wanted = v1.Condition(match_profile=v1.MatchProfile(attribute="size", profile_attribute="shoe_size"))
    assert list(towerbridge.where(must=[condition]).must) == [wanted]


def test_dropped_events_are_among_the_rejected() -> None:
    error = v1.RowError(code=9, field="events[1].user_id", message="has not consented")
    dropped = v1.EventResult(status=v1.EventStatus.EVENT_STATUS_DROPPED_NO_CONSENT, error=error)
    assert towerbridge.rejected(v1.RecordEventsResponse(results=[v1.EventResult(), dropped])) == [(1, error)]
