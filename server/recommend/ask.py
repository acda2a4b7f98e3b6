"""What is asked for one subject, and what comes of it."""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from index.filters.filter import Filter
from server.catalogue.catalogue import Catalogue
from server.engine.query import Answer
from server.journal.events import Person
from server.recommend.preferences import Preferences, are_alike
from server.users.histories import History
from server.waiting import InPlace


class Given(NamedTuple):
    """A vector that came with the request."""

    vector: NDArray[np.float32]  # (D,) float32, unit length
    release_id: str | None = None  # the release whose towers made it, if the caller says so


Who = Person | History | Given
"""A person, or a history or a vector that came with the request."""


class Degraded(Enum):
    """Why an answer is less than it could be."""

    NO_HISTORY = "no history"
    STALE_VECTOR = "stale vector"
    NO_USER_TOWER = "no user tower"
    NO_CONSENT = "no consent"


class Skip(Enum):
    """Why an item was not scored."""

    UNKNOWN_ITEM = "unknown item"
    UNAVAILABLE = "unavailable"
    NO_VECTOR = "no vector"
    DISLIKED = "disliked"


@dataclass(frozen=True, slots=True)
class Ask:
    """What a caller wants for one subject."""

    who: Who
    limit: int
    exclude_item_ids: Sequence[str] = ()
    exclude_seen: bool = False
    allow_stale: bool = False
    filter: Filter | None = None
    exact: bool = False
    preferences: Preferences | None = None
    favoured: Filter | None = None  # what the preferences favour, of what may be returned

    def preferring(self, preferences: Preferences) -> "Ask":
        """The same for a person with preferences: without what they dislike."""
        narrowed = preferences.narrowed(self.filter)
        return replace(
            self,
            exclude_item_ids=[*self.exclude_item_ids, *preferences.disliked_items],
            filter=narrowed,
            preferences=preferences,
            favoured=preferences.favoured(narrowed),
        )


@dataclass(slots=True)
class Ranked:
    """Items, best first, with all that the answer says about itself."""

    item_ids: list[str]
    scores: list[float]  # parallel to item_ids
    answer: Answer
    degraded: list[Degraded]
    recommendation_id: str


Pending = Future[Answer] | InPlace[Answer]
"""An answer that the engine computes, or has."""


class Started(NamedTuple):
    """An ask on its way through the engine."""

    answer: Pending
    favoured: Pending | None  # of what the person's preferences favour


def merged(ask: Ask, plain: Ranked, favoured: Ranked, catalogue: Catalogue) -> Ranked:
    """The best with the bonus for what the person likes: of all that was found, and of what their preferences favour."""
    if ask.preferences is None:
        return plain
    scores = dict(zip(plain.item_ids, plain.scores, strict=True))
    if are_alike(plain.answer, favoured.answer):
        for item_id, score in zip(favoured.item_ids, favoured.scores, strict=True):
            scores.setdefault(item_id, score)
    item_ids, with_bonus = ask.preferences.ranked(scores, ask.limit, catalogue)
    return replace(plain, item_ids=item_ids, scores=with_bonus)
