"""What can be asked of the engine, and what comes back."""

from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from index.filters.filter import Filter
from index.items import Candidates
from server.catalogue.popularity import Popularity
from server.users.histories import History
from server.waiting import InPlace

NOTHING: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
"""No ordinals at all."""
NOTHING.flags.writeable = False
_EXCLUDED_FEW = 256  # what inverted lists fetch in addition; more costs them a bitmap


class ForPerson(NamedTuple):
    """A person with recorded events.

    The history is read before the query is queued: an item is placed by a call that is queued before any history names it, so
    the engine has run that call when it comes to the query.
    """

    person_key: int  # of the root, if ids are linked
    history: History


class ForHistory(NamedTuple):
    """A history that came with the request."""

    history: History


class ForVector(NamedTuple):
    """A vector that was computed elsewhere."""

    vector: NDArray[np.float32]  # (D,) float32, unit length
    release_id: str | None = None  # the release whose towers made it, if the caller says so


class ForItem(NamedTuple):
    """An item of the catalogue; its own vector is the query."""

    ordinal: int


class Fallback(Enum):
    """Why there is no vector to search with."""

    NO_HISTORY = "no history"
    NO_USER_TOWER = "no user tower"
    NO_CONSENT = "no consent"
    TOO_LATE = "no vector could be had in time, and a stale answer is allowed"


class ForNobody(NamedTuple):
    """A person of whom nothing is known, or may be used."""

    why: Fallback


Subject = ForPerson | ForHistory | ForVector | ForItem | ForNobody


@dataclass(slots=True)
class Answer:
    """The result of one query."""

    release_id: str
    popularity: Popularity | None = None  # as the release says
    candidates: Candidates | None = None  # of a search; None with a fallback
    ordinals: NDArray[np.int64] | None = None  # (n,) of the candidates
    scores: NDArray[np.float32] | None = None  # (n,) float32 of `Query.score`, NaN for an item without vector
    seen: NDArray[np.int64] = field(default_factory=lambda: NOTHING)  # ordinals ruled out as seen
    fallback: Fallback | None = None
    popular: NDArray[np.int64] | None = None  # with a fallback and a filter: the most popular ordinals that may be returned
    stale: bool = False
    computed_us: int | None = None  # when the user vector was computed; None if it came with the request
    events_behind: int = 0
    asked: float = 0.0  # time.monotonic seconds: when the query was queued
    queue_us: int = 0
    encode_us: int = 0
    search_us: int = 0


@dataclass(slots=True)
class Query:
    """One question. Exactly one of `limit` and `score` is set."""

    subject: Subject
    deadline: float  # time.monotonic seconds
    arrived: float  # time.monotonic seconds
    limit: int = 0
    exclude: NDArray[np.int64] = field(default_factory=lambda: NOTHING)  # ordinals
    exclude_seen: bool = False
    allow_stale: bool = False
    score: NDArray[np.int64] | None = None  # ordinals to score
    filter: Filter | None = None
    exact: bool = False  # compare with every item that may be returned, whatever the index is
    future: Future[Answer] | InPlace[Answer] = field(init=False, repr=False, compare=False)  # by the engine

    @property
    def is_simple(self) -> bool:
        """Whether it takes the time of most: not more for a filter, a long exclusion or a comparison with every item."""
        excluded = len(self.exclude)
        if self.exclude_seen and isinstance(self.subject, (ForPerson, ForHistory)):
            excluded += len(self.subject.history.ordinals)
        return self.filter is None and not self.exact and excluded <= _EXCLUDED_FEW
