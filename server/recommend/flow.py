"""The product in one flow: identify -> permit -> refresh -> search -> re-check -> rank -> reply."""

import random
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from index.filters.filter import Filter
from server.catalogue.catalogue import Catalogue
from server.engine.engine import Engine, Steps
from server.engine.query import (
    NOTHING,
    Answer,
    Fallback,
    ForHistory,
    ForItem,
    ForNobody,
    ForPerson,
    ForVector,
    Query,
    Subject,
)
from server.errors import DeadlineExceeded, FailedPrecondition, NotFound, Unavailable
from server.journal.events import Person
from server.recommend.ask import Ask, Degraded, Given, Pending, Ranked, Skip, Started, Who, merged
from server.recommend.preferences import Preferences
from server.releases.release import Release
from server.telemetry import current
from server.telemetry.stages import StageFigures
from server.users.directory import Purpose
from server.users.histories import History
from server.users.people import People
from server.waiting import InPlace, result_of

_LATE = "no answer within the deadline"
_SWAPS_MAX = 3  # changes of the live release during one call
_ids = random.Random()  # seeded by the system once: uuid4 asks it for every id, and lets other threads have the interpreter


class Recommender:
    """Answers for one subject at a time, in two halves around the engine's work, so that a batch is queued whole."""

    def __init__(
        self,
        people: People,
        catalogue: Catalogue,
        engine: Engine,
        release: Callable[[], Release],
        stages: StageFigures | None = None,
    ) -> None:
        self._stages = stages if stages is not None else StageFigures()
        self._people = people
        self._catalogue = catalogue
        self._engine = engine
        self._release = release

    async def recommend(self, ask: Ask, deadline: float) -> Ranked:
        """The best permitted items. deadline: time.monotonic seconds.

        Raises DeadlineExceeded if the subject's vector cannot be made fresh in time and the ask does not allow a stale one.
        """
        return await self.finish(ask, self.start(ask, deadline, here=True), deadline)

    async def prepare(self, chosen: Filter | None, deadline: float) -> None:
        """Lets the engine compute a filter's mask in steps, between others' queries, before anything is asked with it.

        A filter that the index knows, or that takes no time, costs no turn of the engine.
        """
        index = self._release().index
        if chosen is not None and not index.is_ready(chosen):
            await result_of(self._engine.call_in_steps(lambda: _in_steps(index.prepare(chosen))), deadline, late=_LATE)

    def start(self, ask: Ask, deadline: float, *, here: bool = False) -> Started:
        """Identify and permit: turns the ask into queries for the engine, which refreshes and searches.

        here: the only one that is asked now, so that it may be computed at once: see `Engine.ask_here`.
        """
        subject = self._identify(ask.who)
        exclude = self._catalogue.ordinals(ask.exclude_item_ids) if ask.exclude_item_ids else NOTHING

        def submit(filter_: Filter | None) -> Pending:
            return self._submit(
                subject,
                deadline,
                limit=ask.limit,
                exclude=exclude,
                exclude_seen=ask.exclude_seen,
                allow_stale=ask.allow_stale,
                filter=filter_,
                exact=ask.exact,
                here=here,
            )

        return Started(submit(ask.filter), submit(ask.favoured) if ask.favoured is not None else None)

    async def together(self, asks: Sequence[Ask], deadline: float) -> list[Ranked]:
        """The answers to several asks, all from one release.

        Raises Unavailable if the live release changes again and again meanwhile.
        """
        for _ in range(_SWAPS_MAX):
            started = [self.start(ask, deadline) for ask in asks]
            ranked = [await self.finish(ask, one, deadline) for ask, one in zip(asks, started, strict=True)]
            if len({one.answer.release_id for one in ranked}) == 1:
                return ranked
        raise Unavailable("the live release changed while the call was answered; repeat it")

    async def finish(self, ask: Ask, started: Started, deadline: float) -> Ranked:
        """Waits for the answer to a started ask, re-checks and ranks it."""
        ranked = await self._finish(ask, started, deadline)
        if ranked is None:  # an item was withdrawn between search and re-check: once more, without it
            ranked = await self._finish(ask, self.start(ask, deadline), deadline, final=True)
        if ranked is None:
            raise RuntimeError("the final ranking gave nothing")
        return ranked

    async def _finish(self, ask: Ask, started: Started, deadline: float, *, final: bool = False) -> Ranked | None:
        ranked = self.rank(ask, await result_of(started.answer, deadline, late=_LATE), final=final)
        if ranked is None or ask.preferences is None or started.favoured is None:
            return ranked
        favoured = self.rank(ask, await result_of(started.favoured, deadline, late=_LATE), final=final)
        if favoured is not None and favoured.answer.release_id != ranked.answer.release_id and not final:
            return None  # another release was made live in between
        return merged(ask, ranked, favoured, self._catalogue) if favoured is not None else None

    def rank(self, ask: Ask, answer: Answer, *, final: bool = False) -> Ranked | None:
        """Re-check and rank. None if a candidate is no longer permitted, unless this is the final attempt."""
        started = time.monotonic()
        degraded = [Degraded.STALE_VECTOR] if answer.stale else []
        if answer.candidates is None:
            exclude = np.concatenate([self._catalogue.ordinals(ask.exclude_item_ids), answer.seen])
            item_ids, scores = self._catalogue.popular(ask.limit, exclude, answer.popular, answer.popularity)
            if ask.preferences is not None:
                item_ids, scores = ask.preferences.without_disliked(item_ids, scores, self._catalogue)
            if answer.popular is not None and len(item_ids) < len(answer.popular) and not final:
                return None
            if answer.fallback is not Fallback.TOO_LATE:
                degraded.append(_DEGRADED[answer.fallback or Fallback.NO_HISTORY])
        else:
            item_ids, scores = answer.candidates.item_ids, answer.candidates.scores.tolist()
            permitted = self._permitted(ask, answer, item_ids)
            if permitted is not None and not all(permitted):
                if not final:
                    return None
                item_ids = [item_id for item_id, good in zip(item_ids, permitted, strict=True) if good]
                scores = [score for score, good in zip(scores, permitted, strict=True) if good]
        ended = time.monotonic()
        self._stages.rules.observe(ended - started)
        if (trace := current.trace()) is not None:
            trace.in_turn(answer.asked, ("queue", answer.queue_us), ("encode", answer.encode_us), ("search", answer.search_us))
            trace.stage("rules", started, ended)
        return Ranked(item_ids, scores, answer, degraded, f"{_ids.getrandbits(128):032x}")

    def _permitted(self, ask: Ask, answer: Answer, item_ids: Sequence[str]) -> list[bool] | None:
        """Which of the candidates may be returned now; None: all of them."""
        plain = not ask.exclude_item_ids and ask.preferences is None
        if plain and answer.ordinals is not None and self._catalogue.permits(answer.ordinals):
            return None
        # By id: an excluded item may have come into the catalogue after its id was looked up.
        excluded = set(ask.exclude_item_ids)
        permitted = [item_id not in excluded and self._catalogue.is_permitted(item_id) for item_id in item_ids]
        if ask.preferences is None:
            return permitted
        pairs = zip(item_ids, permitted, strict=True)
        return [good and ask.preferences.permits(self._catalogue.get(item_id)) for item_id, good in pairs]

    async def similar(
        self,
        item_id: str,
        limit: int,
        exclude_item_ids: Sequence[str],
        filter_: Filter | None,
        *,
        exact: bool,
        deadline: float,
    ) -> Ranked:
        """The permitted items nearest to an item of the catalogue, without itself.

        Raises NotFound, or FailedPrecondition if the item has no vector.
        """
        item = self._catalogue.get(item_id)
        if item is None:
            raise NotFound(f"item_id: no item {item_id!r} is in the catalogue")
        ask = Ask(Given(np.zeros(0, dtype=np.float32)), limit, [*exclude_item_ids, item_id])
        exclude = self._catalogue.ordinals(ask.exclude_item_ids)
        subject = ForItem(item.ordinal)
        for final in (False, True):
            now = time.monotonic()
            query = Query(subject, deadline, now, limit=limit, exclude=exclude, filter=filter_, exact=exact)
            ranked = self.rank(ask, await result_of(self._engine.ask_here(query), deadline, late=_LATE), final=final)
            if ranked is not None:
                return ranked
        raise RuntimeError("the final ranking gave nothing")

    async def score(
        self,
        who: Who,
        item_ids: Sequence[str],
        *,
        preferences: Preferences | None,
        allow_stale: bool,
        deadline: float,
    ) -> tuple[list[str], list[float], list[tuple[str, Skip]], Answer]:
        """Scores the permitted ones among the items, in their order; also says which were skipped, and why.

        Raises FailedPrecondition if there is no vector to score with.
        """
        items = [(item_id, self._catalogue.get(item_id)) for item_id in item_ids]
        ordinals = np.array([item.ordinal for _, item in items if item is not None], dtype=np.int64)
        future = self._submit(self._identify(who), deadline, score=ordinals, allow_stale=allow_stale, here=True)
        answer = await result_of(future, deadline, late=_LATE)
        if answer.fallback is Fallback.TOO_LATE:
            raise DeadlineExceeded("no vector could be computed in time, and there is no older one; give the call more time")
        if answer.scores is None:
            raise FailedPrecondition(f"nothing to score with: {self._why_not(who, answer.fallback or Fallback.NO_HISTORY)}")
        scored: list[str] = []
        scores: list[float] = []
        skipped: list[tuple[str, Skip]] = []
        values = iter(answer.scores.tolist())
        for item_id, item in items:
            score = next(values) if item is not None else float("nan")
            now = self._catalogue.get(item_id) if item is not None else None  # the last check: it may have gone meanwhile
            if now is None:
                skipped.append((item_id, Skip.UNKNOWN_ITEM))
            elif not now.available:
                skipped.append((item_id, Skip.UNAVAILABLE))
            elif preferences is not None and not preferences.permits(now):
                skipped.append((item_id, Skip.DISLIKED))
            elif score != score:
                skipped.append((item_id, Skip.NO_VECTOR))
            else:
                scored.append(item_id)
                scores.append(score)
        return scored, scores, skipped, answer

    def _why_not(self, who: Who, fallback: Fallback) -> str:
        if fallback is Fallback.NO_CONSENT and isinstance(who, Person):
            why = self._people.directory.why_not(who, Purpose.PERSONALISATION)
            return f"the person {why}; or send a history"
        return _WHY_NOT[fallback]

    def _submit(
        self,
        subject: Subject | Fallback,
        deadline: float,
        *,
        limit: int = 0,
        exclude: NDArray[np.int64] | None = None,
        exclude_seen: bool = False,
        allow_stale: bool = False,
        score: NDArray[np.int64] | None = None,
        filter: Filter | None = None,
        exact: bool = False,
        here: bool = False,
    ) -> Pending:
        if isinstance(subject, Fallback) and filter is not None:
            subject = ForNobody(subject)  # what passes the filter is known to the engine alone
        if isinstance(subject, Fallback):
            nobody: InPlace[Answer] = InPlace()
            release = self._release()
            nobody.set_result(Answer(release.release_id, release.popularity, fallback=subject))
            return nobody
        query = Query(
            subject,
            deadline,
            time.monotonic(),
            limit=limit,
            exclude=exclude if exclude is not None else NOTHING,
            exclude_seen=exclude_seen,
            allow_stale=allow_stale,
            score=score,
            filter=filter,
            exact=exact,
        )
        return self._engine.ask_here(query) if here else self._engine.ask(query)

    def _identify(self, who: Who) -> Subject | Fallback:
        """The subject for the engine, or why there is none. Without consent nothing that is known of a person is looked at."""
        if not isinstance(who, Person):
            return ForHistory(who) if isinstance(who, History) else ForVector(*who)
        directory = self._people.directory
        key = directory.find(who)
        if key is None:
            if not directory.may_person(who, Purpose.PERSONALISATION):
                return Fallback.NO_CONSENT
            return Fallback.NO_HISTORY if self._release().has_user_tower else Fallback.NO_USER_TOWER
        if not directory.may(key, Purpose.PERSONALISATION):
            return Fallback.NO_CONSENT
        root = directory.root(key)
        return ForPerson(root, self._people.history(root))


def _in_steps(steps: Iterator[None]) -> Steps[None]:
    yield from steps


_DEGRADED = {
    Fallback.NO_HISTORY: Degraded.NO_HISTORY,
    Fallback.NO_USER_TOWER: Degraded.NO_USER_TOWER,
    Fallback.NO_CONSENT: Degraded.NO_CONSENT,
}
_WHY_NOT = {
    Fallback.NO_HISTORY: "nothing that counts is known of the subject; record events first or send a history",
    Fallback.NO_USER_TOWER: "the live release has no user tower; send a vector",
}
