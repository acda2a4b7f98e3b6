"""Calls of UserService, as the wire has them, for tests that look at codes and messages."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import grpc
import pytest
import towerbridge
from google.protobuf.timestamp_pb2 import Timestamp
from towerbridge import v1
from towerbridge.v1 import common_pb2, filter_pb2, user_pb2, user_pb2_grpc

from tests.server.conftest import Served

PERSONALISATION = user_pb2.PURPOSE_PERSONALISATION
TRAINING = user_pb2.PURPOSE_TRAINING

_numbers = count()


def user(user_id: str) -> common_pb2.Person:
    return common_pb2.Person(user_id=user_id)


def visitor(visitor_id: str) -> common_pb2.Person:
    return common_pb2.Person(visitor_id=visitor_id)


def timestamp(us: int) -> Timestamp:
    return Timestamp(seconds=us // 1_000_000, nanos=us % 1_000_000 * 1000)


def decision(
    granted: bool, purpose: int = PERSONALISATION, *, source: str = "banner", given_us: int | None = None
) -> user_pb2.Consent:
    given_at = None if given_us is None else timestamp(given_us)
    return user_pb2.Consent(purpose=purpose, granted=granted, source=source, given_at=given_at)  # type: ignore[arg-type]


def somebody(shared: Served, *, events: bool = True) -> common_pb2.Person:
    """A new user, with a history of two reds."""
    person = user(f"somebody-{next(_numbers)}")
    if events:
        shared.client.record_events([towerbridge.event("view", item, user_id=person.user_id) for item in ("item-5", "item-10")])
    return person


def value(plain: Any) -> common_pb2.AttributeValue:
    if isinstance(plain, bool):
        return common_pb2.AttributeValue(bool_value=plain)
    if isinstance(plain, str):
        return common_pb2.AttributeValue(string_value=plain)
    if isinstance(plain, list):
        return common_pb2.AttributeValue(string_list_value=common_pb2.StringList(values=plain))
    if isinstance(plain, Timestamp):
        return common_pb2.AttributeValue(timestamp_value=plain)
    return common_pb2.AttributeValue(number_value=plain)


def matching(attribute: str, of_profile: str = "") -> v1.Filter:
    """A filter with one condition on the profile."""
    wanted = filter_pb2.MatchProfile(attribute=attribute, profile_attribute=of_profile)
    return v1.Filter(must=[v1.Condition(match_profile=wanted)])


class About:
    """UserService of a running server."""

    def __init__(self, served: Served) -> None:
        self._stub: user_pb2_grpc.UserServiceStub = served.client._users

    def get(self, person: common_pb2.Person) -> user_pb2.GetUserResponse:
        who = {"user_id": person.user_id} if person.user_id else {"visitor_id": person.visitor_id}
        return self._stub.GetUser(user_pb2.GetUserRequest(**who), timeout=20)

    def profile(
        self,
        person: common_pb2.Person,
        *,
        attributes: dict[str, common_pb2.AttributeValue] | None = None,
        likes: Iterable[str] = (),
        dislikes: Iterable[str] = (),
        liked_categories: Iterable[str] = (),
        disliked_categories: Iterable[str] = (),
    ) -> user_pb2.SetProfileResponse:
        profile = user_pb2.Profile(
            attributes=attributes,
            liked_item_ids=likes,
            disliked_item_ids=dislikes,
            liked_categories=liked_categories,
            disliked_categories=disliked_categories,
        )
        return self._stub.SetProfile(user_pb2.SetProfileRequest(person=person, profile=profile), timeout=20)

    def decide(self, person: common_pb2.Person, *decisions: user_pb2.Consent) -> user_pb2.SetConsentResponse:
        return self._stub.SetConsent(user_pb2.SetConsentRequest(person=person, consents=decisions), timeout=20)

    def consent(self, person: common_pb2.Person) -> user_pb2.GetConsentResponse:
        return self._stub.GetConsent(user_pb2.GetConsentRequest(person=person), timeout=20)

    def link(self, source: common_pb2.Person, target: common_pb2.Person) -> user_pb2.LinkIdentityResponse:
        return self._stub.LinkIdentity(user_pb2.LinkIdentityRequest(source=source, target=target), timeout=20)

    def unlink(self, source: common_pb2.Person, target: common_pb2.Person) -> user_pb2.UnlinkIdentityResponse:
        return self._stub.UnlinkIdentity(user_pb2.UnlinkIdentityRequest(source=source, target=target), timeout=20)


@contextmanager
def refused(code: grpc.StatusCode, message: str) -> Iterator[None]:
    """The call inside ends with this status and a message that matches."""
    with pytest.raises(grpc.RpcError) as caught:
        yield
    error = caught.value
    assert isinstance(error, grpc.Call)
    assert error.code() is code, error.details()
    assert re.search(message, error.details() or ""), error.details()
