"""One batch: fresh user vectors, then one search."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from index.filters.evaluate import check_comparable
from index.filters.filter import FilterError
from server.engine.query import Answer, Fallback, ForHistory, ForItem, ForNobody, ForPerson, ForVector, Query
from server.errors import DeadlineExceeded, FailedPrecondition, InvalidField
from server.releases.release import Release
from server.telemetry.stages import StageFigures
from server.users.histories import History
from server.users.people import People
from server.users.refresher import Mark, Refresher
from server.users.vectors import UserVector

_REPLY_SECONDS = 0.002  # kept of a deadline for building and sending the reply
_REFRESH_AT_ONCE = 4  # people refreshed between two looks at the queue: about a millisecond
_REFRESH_OF_MANY = 16  # the same when more than twice as many wait: 16 take 1.3 times as long as 4


@dataclass(slots=True)
class _Asked:
    """A query on its way through a batch."""

    query: Query
    answer: Answer
    history: History | None = None
    vector: NDArray[np.float32] | None = None  # (D,)


class BatchComputer:
    """Answers batches of queries, each batch from exactly one release. Runs on the engine's thread."""

    def __init__(
        self,
        release: Callable[[], Release],
        people: People,
        refresher: Refresher,
        *,
        clock_us: Callable[[], int],
        stages: StageFigures | None = None,
    ) -> None:
        self._stages = stages if stages is not None else StageFigures()
        self._release = release
        self._people = people
        self._refresher = refresher
        self._clock_us = clock_us
        self._encode_seconds = 0.0  # of a batch, smoothed
        self._due: list[tuple[Mark, History]] = []  # to be refreshed next

    def answer(self, queries: list[Query]) -> None:
        """Completes the future of every query."""
        release = self._release()
        started = time.monotonic()
        asked = [self._ask(query, release, started) for query in queries if self._can_filter(query, release)]
        encode_seconds = self._find_vectors(asked, release)
        found = time.monotonic()
        approximate: list[_Asked] = []
        exact: list[_Asked] = []
        for one in asked:  # one loop for all: most batches are of one query
            if one.vector is None:
                self._fall_back(one, release)
            elif one.query.score is not None:
                one.answer.scores = release.score(one.vector, one.query.score)
            else:
                (exact if one.query.exact else approximate).append(one)
        if approximate:
            self._search(approximate, release, exact=False)
        if exact:
            self._search(exact, release, exact=True)
        searched = time.monotonic()
        self._observe(queries, started, encode_seconds, searched - found)
        encode_us, search_us = int(encode_seconds * 1e6), int((searched - found) * 1e6)
        for one in asked:
            one.answer.encode_us, one.answer.search_us = encode_us, search_us
            if not one.query.future.done():
                one.query.future.set_result(one.answer)

    def refresh(self) -> bool:
        """Computes the vectors of a few people whose histories changed; False if there are none left.

        The histories are read one turn before they are encoded: calls that place the items which they name run in between.
        """
        if not (self._due or self._refresher.has_any):
            return False
        release = self._release()
        release.user_vectors.drop(self._refresher.take_outdated())
        count = _REFRESH_OF_MANY if self._refresher.waiting > 2 * _REFRESH_OF_MANY else _REFRESH_AT_ONCE
        due, self._due = self._due, [(mark, self._people.history(mark.key)) for mark in self._refresher.take(count)]
        if release.has_user_tower:
            fresh = [_is_fresh(release.user_vectors.get(mark.key), history) for mark, history in due]
            behind = [one for one, is_fresh in zip(due, fresh, strict=True) if not is_fresh]
            stored = self._encode_people([(mark.key, history) for mark, history in behind], release)
            for (mark, _), is_fresh in zip(due, fresh, strict=True):
                if is_fresh or mark.key in stored:
                    self._refresher.stored(mark)
        return bool(self._due)

    def _observe(self, queries: list[Query], started: float, encode_seconds: float, search_seconds: float) -> None:
        stages = self._stages
        stages.batch_size.observe(len(queries))
        for query in queries:
            stages.queue.observe(started - query.arrived)
        if encode_seconds:
            stages.encode.observe(encode_seconds)
        stages.search.observe(search_seconds)

    def _can_filter(self, query: Query, release: Release) -> bool:
        """Refuses a query whose filter cannot be applied, so that it fails alone and not with its batch."""
        if query.filter is None:
            return True
        try:
            check_comparable(query.filter, release.index.slots.columns)
        except FilterError as error:
            query.future.set_exception(InvalidField("filter", str(error)))
            return False
        return True

    def _ask(self, query: Query, release: Release, started: float) -> _Asked:
        queue_us = int((started - query.arrived) * 1e6)
        answer = Answer(release.release_id, release.popularity, asked=query.arrived, queue_us=queue_us)
        asked = _Asked(query, answer)
        match query.subject:
            case ForPerson(_, history) | ForHistory(history):
                asked.history = history
            case ForVector(vector, release_id):
                # Again, after the edge: another release may have been made live meanwhile.
                if release_id not in (None, release.release_id) or len(vector) != release.index.matrix.dim:
                    query.future.set_exception(FailedPrecondition(other_release(release.release_id, release_id)))
                else:
                    asked.vector = vector
            case ForNobody(why):
                answer.fallback = why
            case ForItem(ordinal):
                asked.vector = release.item_vector(ordinal)
                if asked.vector is None:
                    query.future.set_exception(
                        FailedPrecondition("the item has no vector in the live release; upsert it with text or a vector")
                    )
        if query.exclude_seen and asked.history is not None:
            answer.seen = release.seen(asked.history)
        return asked

    def _find_vectors(self, asked: list[_Asked], release: Release) -> float:
        """Gives each subject with a history its fresh vector: the stored one, or one encoded in this batch.

        Returns the seconds of encoding, 0 if none was needed.
        """
        to_encode: list[tuple[_Asked, History]] = []
        for one in asked:
            if one.history is None:
                continue
            if not release.has_user_tower:
                one.answer.fallback = Fallback.NO_USER_TOWER
            elif isinstance(one.query.subject, ForPerson) and self._use_stored(one, one.query.subject, release, stale=False):
                continue
            elif not release.counts(one.history):
                one.answer.fallback = Fallback.NO_HISTORY
                one.answer.events_behind = one.history.counted  # those on items without a vector, as GetUser tells
            elif self._in_time(one, release):
                to_encode.append((one, one.history))
        if not to_encode:
            return 0.0
        started = time.monotonic()
        encoded = self._encode([history for _, history in to_encode], release)
        for (one, _), made in zip(to_encode, encoded, strict=True):
            one.vector = made.vector
            one.answer.computed_us = made.computed_us
            if isinstance(one.query.subject, ForPerson):
                self._store(one.query.subject.person_key, made, release)
                self._refresher.asked(one.query.subject.person_key)
        seconds = time.monotonic() - started
        self._encode_seconds += 0.2 * (seconds - self._encode_seconds)
        return seconds

    def _use_stored(self, one: _Asked, subject: ForPerson, release: Release, *, stale: bool) -> bool:
        stored = release.user_vectors.get(subject.person_key)
        if one.history is None or stored is None or not (stale or _is_fresh(stored, one.history)):
            return False
        if stored.generation != one.history.generation:
            return False  # it was made of what belonged to the person before a link or a withdrawal
        one.vector = stored.vector
        one.answer.computed_us = stored.computed_us
        one.answer.events_behind = max(0, one.history.counted - stored.counted)
        one.answer.stale = stale
        return True

    def _in_time(self, one: _Asked, release: Release) -> bool:
        """Whether the vector can be encoded within the deadline; if not, answers without it or refuses."""
        query = one.query
        if time.monotonic() + self._encode_seconds + _REPLY_SECONDS <= query.deadline:
            return True
        # Refused queries encode nothing: without this, one stall would refuse short deadlines for ever.
        self._encode_seconds *= 0.9
        if not query.allow_stale:
            query.future.set_exception(
                DeadlineExceeded("the vector could not be made fresh in time; give the call more time or set allow_stale")
            )
        elif not (isinstance(query.subject, ForPerson) and self._use_stored(one, query.subject, release, stale=True)):
            one.answer.stale = True
            one.answer.fallback = Fallback.TOO_LATE
            one.answer.events_behind = one.history.counted if one.history else 0
        return False

    def _encode_people(self, people: list[tuple[int, History]], release: Release) -> set[int]:
        """Stores the vectors of those whose histories count; returns their keys."""
        people = [(key, history) for key, history in people if release.counts(history)]
        encoded = self._encode([history for _, history in people], release) if people else []
        return {key for (key, _), made in zip(people, encoded, strict=True) if self._store(key, made, release)}

    def _store(self, key: int, vector: UserVector, release: Release) -> bool:
        # Erased, linked or without consent since the history was read: nothing is kept.
        is_current = self._people.is_current(key, vector.generation)
        if is_current:
            release.user_vectors.put(key, vector)
        return is_current

    def _encode(self, histories: list[History], release: Release) -> list[UserVector]:
        """The vectors of histories that count, one for each, computed now."""
        vectors = release.encode(histories)  # (B, D) float32
        now_us = self._clock_us()
        pairs = zip(vectors, histories, strict=True)
        return [UserVector(one, made.version, made.counted, made.generation, now_us) for one, made in pairs]

    def _search(self, asked: list[_Asked], release: Release, *, exact: bool) -> None:
        filters = [one.query.filter for one in asked]
        limits = [one.query.limit for one in asked]
        queries = _stack([one.vector for one in asked if one.vector is not None])
        if release.device.type != "cpu":
            queries = queries.to(release.device)
        found = release.index.search(queries, limits, _excluded(asked, release), filters if any(filters) else None, exact=exact)
        for one, candidates in zip(asked, found, strict=True):
            one.answer.candidates = candidates
            one.answer.ordinals = release.placement.ordinals_of(candidates.slots)

    def _fall_back(self, one: _Asked, release: Release) -> None:
        query = one.query
        if one.answer.fallback is not None and query.filter is not None and query.score is None:
            exclude = np.concatenate([query.exclude, one.answer.seen])
            ranking = release.popularity.ranking
            one.answer.popular = release.first_permitted(query.filter, ranking, query.limit, exclude)


def other_release(live: str, given: str | None) -> str:
    """Why a vector of another release is refused."""
    made = f"not {given!r}" if given is not None else "of another kind than the one before"
    return f"the live release is {live}, {made}; compute the vector with its towers"


def _excluded(asked: list[_Asked], release: Release) -> list[NDArray[np.int64]] | None:
    """For each, the slots that must not be returned, of those that are known: (n,) int64. None if there are none at all."""
    for one in asked:
        if len(one.query.exclude) or len(one.answer.seen):
            break
    else:
        return None
    return [release.slots_of(np.concatenate([one.query.exclude, one.answer.seen])) for one in asked]


def _is_fresh(stored: UserVector | None, history: History) -> bool:
    return stored is not None and stored.version == history.version


def _stack(vectors: list[NDArray[np.float32]]) -> torch.Tensor:
    return torch.from_numpy(vectors[0][None] if len(vectors) == 1 else np.stack(vectors))  # (B, D) float32
