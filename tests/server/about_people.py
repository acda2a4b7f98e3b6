"""Calls of UserService, as the wire has them, for tests that look at codes and messages."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from towerbridge.v1 import common_pb2, user_pb2, user_pb2_grpc

from tests.server.conftest import Served

PERSONALISATION = user_pb2.PURPOSE_PERSONALISATION
TRAINING = user_pb2.PURPOSE_TRAINING


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
