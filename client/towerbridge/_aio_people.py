"""The asynchronous client's calls about people."""

from collections.abc import AsyncIterator, Iterable, Mapping
from datetime import datetime
from typing import Any

from towerbridge import _people_requests as requests_of
from towerbridge import v1
from towerbridge._aio_connection import AsyncConnection
from towerbridge._exports import Lines, scored
from towerbridge._people_requests import person
from towerbridge._values import AttributeInput, string, whole


class AsyncPeopleCalls(AsyncConnection):
    """Profiles, consent, identity, export, erasure and audiences. Who: exactly one of user_id and visitor_id, or TypeError."""

    async def set_profile(
        self,
        *,
        user_id: str | None = None,
        visitor_id: str | None = None,
        attributes: Mapping[str, AttributeInput] | None = None,
        liked_item_ids: Iterable[str] = (),
        disliked_item_ids: Iterable[str] = (),
        liked_categories: Iterable[str] = (),
        disliked_categories: Iterable[str] = (),
        timeout_s: float | None = None,
    ) -> v1.SetProfileResponse:
        """`Client.set_profile`, awaited."""
        whom = person(user_id=user_id, visitor_id=visitor_id)
        request = requests_of.set_profile_request(
            whom, attributes, liked_item_ids, disliked_item_ids, liked_categories, disliked_categories
        )
        return await self._call(self._users.SetProfile, request, timeout_s)

    async def set_consent(
        self,
        *,
        user_id: str | None = None,
        visitor_id: str | None = None,
        personalisation: bool | None = None,
        training: bool | None = None,
        source: str,
        given_at: datetime | None = None,
        timeout_s: float | None = None,
    ) -> v1.SetConsentResponse:
        """`Client.set_consent`, awaited."""
        whom = person(user_id=user_id, visitor_id=visitor_id)
        request = requests_of.set_consent_request(whom, personalisation, training, source, given_at)
        return await self._call(self._users.SetConsent, request, timeout_s)

    async def get_consent(
        self, *, user_id: str | None = None, visitor_id: str | None = None, timeout_s: float | None = None
    ) -> v1.GetConsentResponse:
        """`Client.get_consent`, awaited."""
        request = v1.GetConsentRequest(person=person(user_id=user_id, visitor_id=visitor_id))
        return await self._call(self._users.GetConsent, request, timeout_s)

    async def link_identity(
        self,
        *,
        visitor_id: str | None = None,
        user_id: str | None = None,
        source: v1.Person | None = None,
        target: v1.Person | None = None,
        timeout_s: float | None = None,
    ) -> v1.LinkIdentityResponse:
        """`Client.link_identity`, awaited."""
        request = requests_of.link_identity_request(visitor_id, user_id, source, target)
        return await self._call(self._users.LinkIdentity, request, timeout_s)

    async def unlink_identity(
        self,
        *,
        visitor_id: str | None = None,
        user_id: str | None = None,
        source: v1.Person | None = None,
        target: v1.Person | None = None,
        timeout_s: float | None = None,
    ) -> v1.UnlinkIdentityResponse:
        """`Client.unlink_identity`, awaited."""
        request = requests_of.unlink_identity_request(visitor_id, user_id, source, target)
        return await self._call(self._users.UnlinkIdentity, request, timeout_s)

    def export_user(
        self, *, user_id: str | None = None, visitor_id: str | None = None, timeout_s: float | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        """`Client.export_user`, asynchronously."""
        request = v1.ExportUserRequest(person=person(user_id=user_id, visitor_id=visitor_id))
        lines = Lines()
        return (line async for part in self._stream(self._users.ExportUser, request, timeout_s) for line in lines.add(part))

    async def erase_user(
        self, *, user_id: str | None = None, visitor_id: str | None = None, timeout_s: float | None = None
    ) -> v1.EraseUserResponse:
        """`Client.erase_user`, awaited."""
        request = v1.EraseUserRequest(person=person(user_id=user_id, visitor_id=visitor_id))
        deadline_s = self._settings.upsert_timeout_s if timeout_s is None else timeout_s
        return await self._call(self._users.EraseUser, request, deadline_s)

    def find_similar_users(
        self,
        *,
        user_id: str | None = None,
        visitor_id: str | None = None,
        limit: int = 100,
        min_score: float | None = None,
        timeout_s: float | None = None,
    ) -> AsyncIterator[tuple[v1.Person, float]]:
        """`Client.find_similar_users`, asynchronously."""
        whom = person(user_id=user_id, visitor_id=visitor_id)
        request = v1.FindSimilarUsersRequest(person=whom, limit=whole("limit", limit), min_score=min_score)
        return (
            pair async for part in self._stream(self._audience.FindSimilarUsers, request, timeout_s) for pair in scored(part)
        )

    def find_audience(
        self,
        item_id: str,
        *,
        limit: int = 100,
        min_score: float | None = None,
        exclude_seen: bool = False,
        timeout_s: float | None = None,
    ) -> AsyncIterator[tuple[v1.Person, float]]:
        """`Client.find_audience`, asynchronously."""
        request = v1.FindAudienceRequest(
            item_id=string("item_id", item_id), limit=whole("limit", limit), min_score=min_score, exclude_seen=exclude_seen
        )
        return (pair async for part in self._stream(self._audience.FindAudience, request, timeout_s) for pair in scored(part))
