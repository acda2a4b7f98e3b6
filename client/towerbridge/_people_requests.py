"""Keyword arguments to the request messages about people: shared by Client and AsyncClient."""

from collections.abc import Iterable, Mapping
from datetime import datetime

from towerbridge._values import AttributeInput, attribute_value, string, strings, timestamp
from towerbridge.v1 import (
    Consent,
    LinkIdentityRequest,
    Person,
    Profile,
    Purpose,
    SetConsentRequest,
    SetProfileRequest,
    UnlinkIdentityRequest,
)


def person(*, user_id: str | None = None, visitor_id: str | None = None) -> Person:
    """A person by the id under which an application knows them; the same text as user and as visitor is two people.

    Raises:
        TypeError: not exactly one of user_id and visitor_id, or an id that is not a str.
    """
    if (user_id is None) == (visitor_id is None):
        raise TypeError("give exactly one of user_id and visitor_id")
    if user_id is not None:
        return Person(user_id=string("user_id", user_id))
    return Person(visitor_id=string("visitor_id", visitor_id or ""))


def set_profile_request(
    whom: Person,
    attributes: Mapping[str, AttributeInput] | None,
    liked_item_ids: Iterable[str],
    disliked_item_ids: Iterable[str],
    liked_categories: Iterable[str],
    disliked_categories: Iterable[str],
) -> SetProfileRequest:
    given = {} if attributes is None else attributes
    profile = Profile(
        attributes={name: attribute_value(name, value) for name, value in given.items() if value is not None},
        liked_item_ids=strings("liked_item_ids", liked_item_ids),
        disliked_item_ids=strings("disliked_item_ids", disliked_item_ids),
        liked_categories=strings("liked_categories", liked_categories),
        disliked_categories=strings("disliked_categories", disliked_categories),
    )
    return SetProfileRequest(person=whom, profile=profile)


def set_consent_request(
    whom: Person, personalisation: bool | None, training: bool | None, source: str, given_at: datetime | None
) -> SetConsentRequest:
    """TypeError if nothing was decided."""
    decisions = {Purpose.PURPOSE_PERSONALISATION: personalisation, Purpose.PURPOSE_TRAINING: training}
    when = None if given_at is None else timestamp("given_at", given_at)
    consents = [
        Consent(purpose=purpose, granted=granted, source=string("source", source), given_at=when)
        for purpose, granted in decisions.items()
        if granted is not None
    ]
    if not consents:
        raise TypeError("give personalisation, training or both: True for a yes, False for a no")
    return SetConsentRequest(person=whom, consents=consents)


def link_identity_request(
    visitor_id: str | None, user_id: str | None, source: Person | None, target: Person | None
) -> LinkIdentityRequest:
    first, second = _pair(visitor_id, user_id, source, target)
    return LinkIdentityRequest(source=first, target=second)


def unlink_identity_request(
    visitor_id: str | None, user_id: str | None, source: Person | None, target: Person | None
) -> UnlinkIdentityRequest:
    first, second = _pair(visitor_id, user_id, source, target)
    return UnlinkIdentityRequest(source=first, target=second)


def _pair(visitor_id: str | None, user_id: str | None, source: Person | None, target: Person | None) -> tuple[Person, Person]:
    """Who belongs to whom; TypeError unless it is said in exactly one of the two ways."""
    if visitor_id is not None and user_id is not None and source is None and target is None:
        return person(visitor_id=visitor_id), person(user_id=user_id)
    if source is not None and target is not None and visitor_id is None and user_id is None:
        return source, target
    raise TypeError("give visitor_id and user_id, or source and target made with person")
