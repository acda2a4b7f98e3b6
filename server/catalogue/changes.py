"""Changes of the catalogue: computed, made durable, then visible to every search."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import NamedTuple, TypeVar

import numpy as np

from index.filters.values import Grouped, group
from server.catalogue.attributes import filterable
from server.catalogue.catalogue import Catalogue
from server.catalogue.text_workers import TextWorkers
from server.engine.engine import Engine, Steps
from server.errors import DeadlineExceeded, ServiceError
from server.journal.items import ItemContent, RemoveItems, SetAvailability, StoredItem, UpsertItems, UpsertOutcome
from server.journal.writer import JournalWriter
from server.releases.release import Release
from server.releases.releases import Made, Placed, Releases
from server.users.people import People
from server.users.refresher import Refresher

T = TypeVar("T")
_ROWS_AT_ONCE = 64  # through the item tower between two batches of queries


class Upserted(NamedTuple):
    created: bool
    searchable: bool


class CatalogueChanges:
    """Changes items. Each call returns when its change is on disk and every later search sees it."""

    def __init__(
        self,
        journal: JournalWriter,
        catalogue: Catalogue,
        people: People,
        refresher: Refresher,
        engine: Engine,
        releases: Releases,
        texts: TextWorkers,
    ) -> None:
        self._journal = journal
        self._catalogue = catalogue
        self._people = people
        self._refresher = refresher
        self._engine = engine
        self._releases = releases
        self._texts = texts

    def upsert(self, contents: Sequence[ItemContent], deadline: float) -> list[Upserted]:
        """Adds or replaces items; one result for each, in order. deadline: time.monotonic seconds."""
        live = self._releases.live
        contents = self._texts.read(contents, live.item_vectors, deadline)
        # On this thread: what is left for the engine's is to write arrays.
        attributes = group([filterable(one.attributes, one.categories) for one in contents])
        made = {live: self._compute(live, contents, deadline)}
        for release in self._releases.held:
            if release is not live:
                try:
                    read = self._texts.read(contents, release.item_vectors, deadline)
                    made[release] = self._compute(release, read, deadline)
                except ServiceError:
                    if release in self._releases.held:
                        raise  # else it went meanwhile, and its encoder with it

        def publish(outcomes: Sequence[UpsertOutcome]) -> tuple[Sequence[UpsertOutcome], Future[Placed]]:
            return outcomes, self._publish_upserts(outcomes, made, attributes)

        outcomes, visible = _wait(self._journal.submit(UpsertItems(contents, publish)), deadline)
        placed = _wait(visible, deadline)
        for release in placed.missed:  # it came while this call was under way
            try:
                self.bring(release, [one.stored for one in outcomes], placed.at)
            except ServiceError:
                if release in self._releases.held:
                    raise
        pairs = zip(outcomes, made[live].has_vector.tolist(), strict=True)
        return [Upserted(outcome.created, searchable) for outcome, searchable in pairs]

    def bring(self, release: Release, items: Sequence[StoredItem], made_at: int) -> None:
        """Gives items their vectors in a release, as far as their content is still that of `made_at`: see `Release.bring`."""
        last = list({item.ordinal: item for item in items}.values())
        contents = self._texts.read([item.content for item in last], release.item_vectors)
        made = self._compute(release, contents, None)
        ordinals = np.array([item.ordinal for item in last], dtype=np.int64)

        def steps() -> Steps[None]:
            release.bring(ordinals, *made, made_at=made_at)
            yield from release.settle()

        self._engine.call_in_steps(steps).result()

    def remove(self, item_ids: Sequence[str], deadline: float) -> set[str]:
        """Takes items out; returns those of the ids that were in the catalogue."""

        def publish(removed: Sequence[tuple[str, int]]) -> tuple[list[str], Future[None]]:
            ordinals = [self._catalogue.remove(item_id, position) for item_id, position in removed]
            unreferenced = [ordinal for ordinal in ordinals if not self._people.references(ordinal)]
            ids = [item_id for item_id, _ in removed]

            def change() -> None:
                self._releases.withdraw_items(ids)
                # At once: if an item came back in between, a history could refer to it.
                self._releases.free_items(unreferenced)

            return ids, self._change(change)

        removed, visible = _wait(self._journal.submit(RemoveItems(item_ids, publish)), deadline)
        _wait(visible, deadline)
        return set(removed)

    def set_available(self, changes: Sequence[tuple[str, bool]], deadline: float) -> set[str]:
        """Marks items as available or not; returns those of the ids that are in the catalogue."""

        def publish(done: Sequence[tuple[str, bool]]) -> tuple[Sequence[tuple[str, bool]], Future[None]]:
            for item_id, available in done:
                self._catalogue.set_available(item_id, available)
            return done, self._change(lambda: self._releases.set_available(done))

        done, visible = _wait(self._journal.submit(SetAvailability(changes, publish)), deadline)
        _wait(visible, deadline)
        return {item_id for item_id, _ in done}

    def free(self, ordinal: int) -> None:
        """Gives back the place of a removed item that no history refers to any more. It does nothing for a live item."""
        if self._catalogue.get(self._catalogue.item_id(ordinal)) is None:
            self._change(lambda: self._releases.free_items([ordinal]))

    def _change(self, change: Callable[[], T]) -> Future[T]:
        """Changes the index before any query that is asked later; the future ends when every search shows the change.

        What a search must not return any more it does not from the first step on.
        """

        def steps() -> Steps[T]:
            changed = change()
            yield from self._releases.settle()
            self._engine.poke()  # the index may have outgrown its lists
            return changed

        return self._engine.call_in_steps(steps)

    def _compute(self, release: Release, contents: Sequence[ItemContent], deadline: float | None) -> Made:
        return _wait(self._engine.call_in_steps(lambda: _compute(release, contents)), deadline)

    def _publish_upserts(
        self, outcomes: Sequence[UpsertOutcome], made: Mapping[Release, Made], attributes: Grouped
    ) -> Future[Placed]:
        items = [(one.stored.ordinal, one.stored.content.item_id, one.stored.available) for one in outcomes]
        # The engine first: it places the items before any query that is asked after the histories know them.
        visible = self._change(lambda: self._releases.put_items(items, made, attributes))
        for outcome in outcomes:
            stored = outcome.stored
            self._catalogue.put(stored)
            for release in self._releases.held:
                release.popularity.add(stored)
            for person_key in self._people.item_came_in(stored.content.item_id, stored.ordinal):
                self._refresher.mark(person_key)
        if self._releases.recorder is not None:
            self._releases.recorder([outcome.stored for outcome in outcomes])
        self._engine.poke()
        return visible


def _compute(release: Release, contents: Sequence[ItemContent]) -> Steps[Made]:
    """`ItemVectors.compute` in steps."""
    parts = [release.item_vectors.compute(contents[:_ROWS_AT_ONCE])]
    for start in range(_ROWS_AT_ONCE, len(contents), _ROWS_AT_ONCE):
        yield
        parts.append(release.item_vectors.compute(contents[start : start + _ROWS_AT_ONCE]))
    return Made(np.concatenate([has for has, _ in parts]), np.concatenate([vectors for _, vectors in parts]))


def _wait(future: Future[T], deadline: float | None) -> T:
    try:
        return future.result(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
    except TimeoutError:
        raise DeadlineExceeded("the change was not confirmed in time; it may still take effect: repeat the call") from None
