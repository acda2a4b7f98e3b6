"""The synchronous client's calls about people."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from towerbridge import _people_requests as requests_of
from towerbridge import v1
from towerbridge._connection import Connection
from towerbridge._exports import Lines, scored
from towerbridge._people_requests import person
from towerbridge._values import AttributeInput, string, whole


class PeopleCalls(Connection):
    """Profiles, consent, identity, export, erasure and audiences. Who: exactly one of user_id and visitor_id, or TypeError."""

    def set_profile(
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
        """Replaces a person's profile whole; one without anything removes it. FailedPrecondition without their consent.

        Args:
            user_id: a known user.
            visitor_id: an anonymous visitor.
            attributes: such as a country or a size, for `match_profile`; values as in `item`.
            liked_item_ids: items that rank higher.
            disliked_item_ids: items that are never returned.
            liked_categories: categories whose items rank higher.
            disliked_categories: categories whose items are never returned.
            timeout_s: seconds for this call; None: the client's.
        """
        whom = person(user_id=user_id, visitor_id=visitor_id)
        request = requests_of.set_profile_request(
            whom, attributes, liked_item_ids, disliked_item_ids, liked_categories, disliked_categories
        )
        return self._call(self._users.SetProfile, request, timeout_s)

    def set_consent(
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
        """Records what a person decided: True is a yes, False a no, None was not asked.

        Of several decisions about a purpose the one given last counts, whatever the order of arrival.

        Args:
            user_id: a known user.
            visitor_id: an anonymous visitor.
            personalisation: whether answers may be made for this person; without a yes their events are dropped.
            training: whether towers may learn from this person's events.
            source: where it was decided, such as "cookie banner v3".
            given_at: when, with a time zone; None: when the server receives it.
            timeout_s: seconds for this call; None: the client's.

        Raises:
            TypeError: neither purpose was decided. ValueError: given_at has no time zone.
        """
        whom = person(user_id=user_id, visitor_id=visitor_id)
        request = requests_of.set_consent_request(whom, personalisation, training, source, given_at)
        return self._call(self._users.SetConsent, request, timeout_s)

    def get_consent(
        self, *, user_id: str | None = None, visitor_id: str | None = None, timeout_s: float | None = None
    ) -> v1.GetConsentResponse:
        """What a person's data may be used for now, and every decision that was recorded."""
        request = v1.GetConsentRequest(person=person(user_id=user_id, visitor_id=visitor_id))
        return self._call(self._users.GetConsent, request, timeout_s)

    def link_identity(
        self,
        *,
        visitor_id: str | None = None,
        user_id: str | None = None,
        source: v1.Person | None = None,
        target: v1.Person | None = None,
        timeout_s: float | None = None,
    ) -> v1.LinkIdentityResponse:
        """Says that a visitor is a user, or that `source` belongs to `target`: both have one history from then on.

        Give visitor_id and user_id, or source and target made with `person`. FailedPrecondition if the source belongs to
        another id; unlink it first.
        """
        request = requests_of.link_identity_request(visitor_id, user_id, source, target)
        return self._call(self._users.LinkIdentity, request, timeout_s)

    def unlink_identity(
        self,
        *,
        visitor_id: str | None = None,
        user_id: str | None = None,
        source: v1.Person | None = None,
        target: v1.Person | None = None,
        timeout_s: float | None = None,
    ) -> v1.UnlinkIdentityResponse:
        """Takes a link back; the arguments are those of `link_identity`."""
        request = requests_of.unlink_identity_request(visitor_id, user_id, source, target)
        return self._call(self._users.UnlinkIdentity, request, timeout_s)

    def export_user(
        self, *, user_id: str | None = None, visitor_id: str | None = None, timeout_s: float | None = None
    ) -> Iterator[dict[str, Any]]:
        """Everything held about a person and all ids linked to them: one dict a line, by "kind".

        The call is made, and its errors are raised, while you iterate.
        """
        request = v1.ExportUserRequest(person=person(user_id=user_id, visitor_id=visitor_id))
        lines = Lines()
        return (line for part in self._stream(self._users.ExportUser, request, timeout_s) for line in lines.add(part))

    def erase_user(
        self, *, user_id: str | None = None, visitor_id: str | None = None, timeout_s: float | None = None
    ) -> v1.EraseUserResponse:
        """Removes a person and all ids linked to them for good; the reply has a receipt for each store. Safe to repeat."""
        request = v1.EraseUserRequest(person=person(user_id=user_id, visitor_id=visitor_id))
        deadline_s = self._settings.upsert_timeout_s if timeout_s is None else timeout_s
        return self._call(self._users.EraseUser, request, deadline_s)

    def find_similar_users(
        self,
        *,
        user_id: str | None = None,
        visitor_id: str | None = None,
        limit: int = 100,
        min_score: float | None = None,
        timeout_s: float | None = None,
    ) -> Iterator[tuple[v1.Person, float]]:
        """The people nearest to a person, nearest first, with their cosines; only at least `min_score`.

        The call is made, and its errors are raised, while you iterate. PermissionDenied if the server does not offer it.
        """
        whom = person(user_id=user_id, visitor_id=visitor_id)
        request = v1.FindSimilarUsersRequest(person=whom, limit=whole("limit", limit), min_score=min_score)
        return (pair for part in self._stream(self._audience.FindSimilarUsers, request, timeout_s) for pair in scored(part))

    def find_audience(
        self,
        item_id: str,
        *,
        limit: int = 100,
        min_score: float | None = None,
        exclude_seen: bool = False,
        timeout_s: float | None = None,
    ) -> Iterator[tuple[v1.Person, float]]:
        """The people nearest to an item, nearest first, with their cosines; only at least `min_score`.

        `exclude_seen` leaves out those whose history holds the item. The call is made, and its errors are raised, while you
        iterate. PermissionDenied if the server does not offer it.
        """
        request = v1.FindAudienceRequest(
            item_id=string("item_id", item_id), limit=whole("limit", limit), min_score=min_score, exclude_seen=exclude_seen
        )
        return (pair for part in self._stream(self._audience.FindAudience, request, timeout_s) for pair in scored(part))
