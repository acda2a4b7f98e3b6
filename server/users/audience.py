"""Finding people by their vectors, a little at a time."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from server.engine.engine import Engine
from server.errors import DeadlineExceeded, FailedPrecondition, NotFound, ResourceExhausted
from server.journal.events import Person
from server.journal.people import named
from server.releases.release import Release
from server.users.directory import Purpose
from server.users.histories import History
from server.users.people import People
from server.users.refresher import Refresher
from server.users.vectors import Block, UserVectors
from server.waiting import result_of

_CALLS_MAX = 4  # each holds 12 bytes a person
_PART_PEOPLE = 1_000
_CHECKED_AT_ONCE = 128  # people looked up in the journal while its lock is held: less than a millisecond
_BLOCK_ROWS = 16_384  # about half a millisecond
T = TypeVar("T")


class Found(NamedTuple):
    """People and their cosines."""

    keys: NDArray[np.int64]  # (n,)
    scores: NDArray[np.float32]  # (n,)


class Scan:
    """Compares a vector with everyone's, in steps between which vectors may be written and dropped.

    In the end everyone who has a vector was compared, once, by the vector that they had at the last step. Steps run on the
    engine's thread, `ranked` where it holds up nobody.
    """

    def __init__(
        self, vectors: UserVectors, query: NDArray[np.float32], min_score: float | None, *, block: int = _BLOCK_ROWS
    ) -> None:
        """query: (D,) float32, unit length. min_score: the least cosine; None: any."""
        self._vectors = vectors
        self._query = query
        self._min_score = min_score
        self._block = block
        self._started = vectors.tick
        self._next = 0  # row
        self._parts: list[Found] = []
        self._written = Found(np.zeros(0, np.int64), np.zeros(0, np.float32))  # since the start: their scores count
        self._rewritten = self._written.keys
        self.compared = 0  # people, once the scan is over

    def step(self) -> bool:
        """Looks at some people; True once everyone was looked at."""
        if self._next < self._vectors.rows():
            block = self._vectors.block(self._next, self._block)
            self._parts.append(self._scored(block))
            self._next = block.following
            return False
        late = self._vectors.written_since(self._started)
        self._rewritten, self._written = late.keys, self._scored(late)
        self.compared = len(self._vectors)
        return True

    def ranked(self) -> Found:
        """Everyone whose score is enough, nearest first, ties in any order; also who lost their vector meanwhile."""
        keys = np.concatenate([part.keys for part in self._parts] or [self._written.keys[:0]])
        scores = np.concatenate([part.scores for part in self._parts] or [self._written.scores[:0]])
        if len(self._rewritten):
            kept = ~np.isin(keys, self._rewritten)
            keys = np.concatenate([keys[kept], self._written.keys])
            scores = np.concatenate([scores[kept], self._written.scores])
        order = np.argsort(-scores, kind="stable")
        return Found(keys[order], scores[order])

    def _scored(self, block: Block) -> Found:
        scores = block.vectors @ self._query  # (n,) float32
        if self._min_score is None:
            return Found(block.keys.copy(), scores)
        enough = scores >= self._min_score
        return Found(block.keys[enough], scores[enough])


@dataclass(frozen=True, slots=True)
class Part:
    """Some of the people who were found, nearest first."""

    people: list[Person]
    scores: list[float]  # parallel to people
    release_id: str
    compared: int  # people who have a vector


class Audience:
    """Finds people by fresh vectors: a step at a time on the engine's thread, so that other queries are answered in between.

    Everyone is checked again just before they are named: who withdrew their consent or was erased meanwhile is left out.
    """

    def __init__(
        self,
        people: People,
        refresher: Refresher,
        refresh: Callable[[], bool],
        engine: Engine,
        release: Callable[[], Release],
    ) -> None:
        """refresh: computes a few vectors, on the engine's thread; False if nobody waits."""
        self._people = people
        self._refresher = refresher
        self._refresh = refresh
        self._engine = engine
        self._release = release
        self.calls = 0  # in flight

    async def like(self, person: Person, limit: int, min_score: float | None, deadline: float) -> AsyncIterator[Part]:
        """The people nearest to a person, without that person. deadline: time.monotonic seconds.

        Raises NotFound, or FailedPrecondition if there is no vector of the person.
        """
        directory = self._people.directory
        if directory.find(person) is None:
            raise NotFound(f"person: nothing is known of {named(person)}")
        root = -1

        def vector(release: Release) -> Callable[[], NDArray[np.float32]]:
            nonlocal root
            key = directory.find(person)
            if key is None or not directory.may(key, Purpose.PERSONALISATION):
                raise FailedPrecondition(f"{named(person)} {directory.why_not(person, Purpose.PERSONALISATION)}")
            root = directory.root(key)
            history = self._people.history(root)  # here, before the call: see ForPerson
            return lambda: _vector_of(release, root, history)

        async with aclosing(self._find(vector, limit, min_score, lambda key: key != root, deadline)) as parts:
            async for part in parts:
                yield part

    async def for_item(
        self, ordinal: int, limit: int, min_score: float | None, *, exclude_seen: bool, deadline: float
    ) -> AsyncIterator[Part]:
        """The people nearest to an item. exclude_seen: without those whose history holds it.

        Raises FailedPrecondition if the item has no vector.
        """

        def is_wanted(key: int) -> bool:
            return not (exclude_seen and ordinal in self._people.history(key).ordinals)

        def vector(release: Release) -> Callable[[], NDArray[np.float32]]:
            return lambda: _vector_of_item(release, ordinal)

        async with aclosing(self._find(vector, limit, min_score, is_wanted, deadline)) as parts:
            async for part in parts:
                yield part

    async def _find(
        self,
        vector: Callable[[Release], Callable[[], NDArray[np.float32]]],
        limit: int,
        min_score: float | None,
        is_wanted: Callable[[int], bool],
        deadline: float,
    ) -> AsyncGenerator[Part]:
        if self.calls >= _CALLS_MAX:
            raise ResourceExhausted(f"{_CALLS_MAX} calls that look for people are in flight; repeat this one later")
        self.calls += 1
        try:
            release = await self._fresh_release(deadline)
            vectors = release.user_vectors
            query = vector(release)
            scan = await self._call(lambda: Scan(vectors, query(), min_score), deadline)
            while not await self._call(scan.step, deadline):
                pass
            found = await asyncio.to_thread(scan.ranked)
            names = _Names(self._people, vectors, found, is_wanted)
            async for people, scores in _parts(names, limit, deadline):
                yield Part(people, scores, release.release_id, scan.compared)
        finally:
            self.calls -= 1

    async def _fresh_release(self, deadline: float) -> Release:
        """The live release, once the vectors of all who wait are computed in it. A scan stays with it, come what may."""
        while True:
            release = self._release()
            if not release.has_user_tower:
                raise FailedPrecondition("the live release has no user tower: nobody has a vector")
            await self._freshen(deadline)
            if release is self._release():  # else what was computed is in another
                return release

    async def _freshen(self, deadline: float) -> None:
        """Computes the vectors of all who wait now; those before are in by then, too."""
        until = self._refresher.taken + self._refresher.waiting
        while await self._call(self._refresh, deadline) and self._refresher.taken < until:
            pass
        await self._call(self._refresh, deadline)  # those who were taken last

    async def _call(self, function: Callable[[], T], deadline: float) -> T:
        late = f"people's vectors could not be made fresh and compared in time; {self._refresher.waiting} wait: repeat the call"
        if time.monotonic() >= deadline:
            raise DeadlineExceeded(late)
        return await result_of(self._engine.call(function), deadline, late=late)


class _Names:
    """Names the people who were found, in order, as far as they may be named."""

    def __init__(self, people: People, vectors: UserVectors, found: Found, is_wanted: Callable[[int], bool]) -> None:
        self._people = people
        self._vectors = vectors
        self._found = found
        self._is_wanted = is_wanted
        self._next = 0

    def take(self, count: int) -> list[tuple[int, Person, float]]:
        """The next people: up to `count` keys, subjects and scores; none if there are no more. Reads the journal."""
        taken: list[tuple[int, Person, float]] = []
        while len(taken) < count and self._next < len(self._found.keys):
            its = slice(self._next, self._next + min(_CHECKED_AT_ONCE, count - len(taken)))
            self._next = its.stop
            keys, scores = self._found.keys[its].tolist(), self._found.scores[its].tolist()
            wanted = [(key, score) for key, score in zip(keys, scores, strict=True) if self._may(key) and self._is_wanted(key)]
            subjects = self._people.subjects([key for key, _ in wanted])
            taken += [(key, subjects[key], score) for key, score in wanted if key in subjects]
        return taken

    def may_be_named(self, key: int, person: Person) -> bool:
        """Whether the person is still there, and still consents."""
        return self._may(key) and self._people.directory.find(person) == key

    def _may(self, key: int) -> bool:
        return key in self._vectors and self._people.directory.may(key, Purpose.PERSONALISATION)


async def _parts(names: _Names, limit: int, deadline: float) -> AsyncIterator[tuple[list[Person], list[float]]]:
    """People and scores, part by part, the first even if there is nobody."""
    sent = 0
    while sent < limit:
        if time.monotonic() >= deadline:
            raise DeadlineExceeded("the answer was not taken in time; ask for fewer people or give the call more time")
        taken = await asyncio.to_thread(names.take, min(_PART_PEOPLE, limit - sent))
        named_now = [(person, score) for key, person, score in taken if names.may_be_named(key, person)]
        if named_now or (not taken and not sent):
            yield [person for person, _ in named_now], [score for _, score in named_now]
        if not taken:
            return
        sent += len(named_now)


def _vector_of(release: Release, root: int, history: History) -> NDArray[np.float32]:
    stored = release.user_vectors.get(root)
    if stored is not None and stored.version == history.version:
        return stored.vector
    if not release.counts(history):
        raise FailedPrecondition("nothing that counts is known of the person; record events first")
    vectors = release.encode([history])  # (1, D)
    vector: NDArray[np.float32] = vectors[0]
    return vector


def _vector_of_item(release: Release, ordinal: int) -> NDArray[np.float32]:
    vector = release.item_vector(ordinal)
    if vector is None:
        raise FailedPrecondition("the item has no vector in the live release; upsert it with text or a vector")
    return vector
