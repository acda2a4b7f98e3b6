"""What a person's profile does to an answer: what it never has, and what ranks higher in it.

What the person dislikes is ruled out before the search, as everything else that may not be returned. What they like gets a
bonus. The best of all with the bonus are among the best of all without it and the best of what is liked, so both are searched
for and merged: exactly, however far from the person's vector a liked item lies.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from index.filters.filter import Filter, MatchAny, Nested
from server.catalogue.catalogue import Catalogue, CatalogueItem
from server.engine.query import Answer
from server.journal.events import Person
from server.users.directory import Purpose
from server.users.people import People
from server.users.profile import Profile

_CATEGORIES = "categories"


@dataclass(frozen=True, slots=True)
class Preferences:
    """What ranking takes from a profile."""

    liked_items: frozenset[str]
    disliked_items: frozenset[str]
    liked_categories: frozenset[str]
    disliked_categories: frozenset[str]
    bonus: float  # added to the score of what is liked

    @classmethod
    def of(cls, profile: Profile | None, bonus: float) -> "Preferences | None":
        """None if the profile prefers nothing. With a bonus of 0 likes do not count."""
        if profile is None:
            return None
        preferences = cls(
            liked_items=frozenset(profile.liked_item_ids if bonus else ()),
            disliked_items=frozenset(profile.disliked_item_ids),
            liked_categories=frozenset(profile.liked_categories if bonus else ()),
            disliked_categories=frozenset(profile.disliked_categories),
            bonus=bonus,
        )
        dislikes = preferences.disliked_items or preferences.disliked_categories
        return preferences if dislikes or preferences.liked_items or preferences.liked_categories else None

    def permits(self, item: CatalogueItem | None) -> bool:
        """Whether nothing about the item is disliked."""
        return item is None or not (
            item.item_id in self.disliked_items
            or (self.disliked_categories and not self.disliked_categories.isdisjoint(json.loads(item.categories)))
        )

    def bonus_of(self, item: CatalogueItem | None) -> float:
        """What is added to the item's score."""
        is_liked = item is not None and (
            item.item_id in self.liked_items
            or (self.liked_categories and not self.liked_categories.isdisjoint(json.loads(item.categories)))
        )
        return self.bonus if is_liked else 0.0

    def narrowed(self, chosen: Filter | None) -> Filter | None:
        """The filter, without disliked categories."""
        if not self.disliked_categories:
            return chosen
        disliked = MatchAny(_CATEGORIES, frozenset[str | bool | float](self.disliked_categories))
        return Filter(_whole(chosen), must_not=(disliked,), key=_key("disliked", chosen, self.disliked_categories))

    def favoured(self, narrowed: Filter | None) -> Filter | None:
        """The part of what passes a narrowed filter that is liked; None if nothing is liked."""
        if not self.liked_items and not self.liked_categories:
            return None
        liked: list[MatchAny | Nested] = []
        if self.liked_categories:
            liked.append(MatchAny(_CATEGORIES, frozenset[str | bool | float](self.liked_categories)))
        if self.liked_items:
            liked.append(Nested(Filter(allow=self.liked_items, key=_key("liked", None, self.liked_items))))
        return Filter(
            _whole(narrowed), should=tuple(liked), key=_key("favoured", narrowed, self.liked_categories, self.liked_items)
        )

    def without_disliked(
        self, item_ids: Sequence[str], scores: Sequence[float], catalogue: Catalogue
    ) -> tuple[list[str], list[float]]:
        """Those of the items that are permitted, with their scores."""
        kept = [pair for pair in zip(item_ids, scores, strict=True) if self.permits(catalogue.get(pair[0]))]
        return [item_id for item_id, _ in kept], [score for _, score in kept]

    def ranked(self, scores: Mapping[str, float], limit: int, catalogue: Catalogue) -> tuple[list[str], list[float]]:
        """The best of the items with the bonus: ids and scores, best first, ties in the order given."""
        with_bonus = [(item_id, score + self.bonus_of(catalogue.get(item_id))) for item_id, score in scores.items()]
        with_bonus.sort(key=lambda pair: -pair[1])
        return [item_id for item_id, _ in with_bonus[:limit]], [score for _, score in with_bonus[:limit]]


def usable_profile(people: People, person: Person) -> Profile | None:
    """The profile for answers to a person who has consented: the root's if the root has too, else their own."""
    if not people.has_profiles:
        return None
    directory = people.directory
    key = directory.find(person)
    if key is None:
        return None
    root = directory.root(key)
    for one in (root, key) if root != key else (key,):
        profile = people.own_profile(one)
        if profile is not None and all(directory.may(each, Purpose.PERSONALISATION) for each in (one, key)):
            return profile
    return None


def are_alike(one: Answer, other: Answer) -> bool:
    """Whether the scores of two answers for a subject can be compared: made of the same vector, or of popularity."""
    return (one.release_id, one.fallback, one.stale, one.events_behind) == (
        other.release_id,
        other.fallback,
        other.stale,
        other.events_behind,
    )


def _whole(chosen: Filter | None) -> tuple[Nested, ...]:
    return (Nested(chosen),) if chosen is not None else ()


def _key(kind: str, chosen: Filter | None, *values: frozenset[str]) -> bytes:
    # Not left to Filter, which would sort the lists of the caller's filter for every request.
    inner = chosen.key.hex() if chosen is not None else ""
    content = json.dumps([kind, inner, *map(sorted, values)])
    return hashlib.blake2b(content.encode(), digest_size=16).digest()
