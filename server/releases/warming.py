"""People's vectors in a release that is about to be live, computed before anybody asks."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future

from server.releases.release import Release
from server.users.histories import History
from server.users.people import People
from server.users.vectors import UserVector

_AT_ONCE = 16  # people: between one and two milliseconds


class Warming:
    """Belongs to the engine's thread, which calls `step` when it has nothing else to do."""

    def __init__(self, release: Release, people: People, keys: Sequence[int], clock_us: Callable[[], int]) -> None:
        """keys: of people, in the order in which they should have vectors."""
        self._release = release
        self._people = people
        self.keys = keys
        self._clock_us = clock_us
        self._next = 0
        self._due: list[tuple[int, History]] = []
        self.ready = 0  # people who have a vector
        self.given_up = False  # set by whoever waits for it no more
        self.done: Future[None] = Future()

    def step(self) -> bool:
        """Computes the vectors of a few people; False once everyone was looked at, or nobody waits any more.

        Their histories are read one turn before: calls that place the items which they name run in between.
        """
        if self.done.done() or self.given_up:
            return False
        due, self._due = self._due, [(key, self._people.history(key)) for key in self._following()]
        if self._release.has_user_tower:
            stale = [(key, history) for key, history in due if not self._is_fresh(key, history)]
            self._encode([(key, history) for key, history in stale if self._release.counts(history)])
        if not self._due:
            self.done.set_result(None)
        return bool(self._due)

    def _following(self) -> Sequence[int]:
        its = self.keys[self._next : self._next + _AT_ONCE]
        self._next += len(its)
        return its

    def _is_fresh(self, key: int, history: History) -> bool:
        """Whether there is a vector already: of an attempt before, or of when the release was live."""
        stored = self._release.user_vectors.get(key)
        fresh = stored is not None and stored.version == history.version
        self.ready += fresh
        return fresh

    def _encode(self, counting: list[tuple[int, History]]) -> None:
        if not counting:
            return
        vectors, now_us = self._release.encode([history for _, history in counting]), self._clock_us()
        for (key, history), vector in zip(counting, vectors, strict=True):
            # Erased, linked or without consent since the history was read: nothing is kept.
            if self._people.is_current(key, history.generation):
                made = UserVector(vector, history.version, history.counted, history.generation, now_us)
                self._release.user_vectors.put(key, made)
                self.ready += 1
