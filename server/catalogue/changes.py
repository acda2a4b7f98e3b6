"""Changes of the catalogue: computed, made durable, then visible to every search."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from index.filters.values import Grouped, group
from server.catalogue.attributes import filterable
from server.catalogue.catalogue import Catalogue
from server.catalogue.text_worker import TextWorker
from server.engine.engine import Engine, Steps
from server.errors import DeadlineExceeded, FailedPrecondition
from server.journal.items import ItemContent, RemoveItems, SetAvailability, UpsertItems, UpsertOutcome
from server.journal.writer import JournalWriter
from server.releases.release import Release
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
        release: Callable[[], Release],
        texts: TextWorker | None,
    ) -> None:
        self._journal = journal
        self._catalogue = catalogue
        self._people = people
        self._refresher = refresher
        self._engine = engine
        self._release = release
        self._texts = texts

    def upsert(self, contents: Sequence[ItemContent], deadline: float) -> list[Upserted]:
        """Adds or replaces items; one result for each, in order. deadline: time.monotonic seconds."""
        contents = self._encode_texts(contents, deadline)
        # On this thread: what is left for the engine's is to write arrays.
        attributes = group([filterable(one.attributes, one.categories) for one in contents])
        release = self._release()
        has_vector, vectors = _wait(self._engine.call_in_steps(lambda: _compute(release, contents)), deadline)

        def publish(outcomes: Sequence[UpsertOutcome]) -> tuple[Sequence[UpsertOutcome], Future[None]]:
            return outcomes, self._publish_upserts(release, outcomes, has_vector, vectors, attributes)

        outcomes, visible = _wait(self._journal.submit(UpsertItems(contents, publish)), deadline)
        _wait(visible, deadline)
        pairs = zip(outcomes, has_vector.tolist(), strict=True)
        return [Upserted(outcome.created, searchable) for outcome, searchable in pairs]

    def remove(self, item_ids: Sequence[str], deadline: float) -> set[str]:
        """Takes items out; returns those of the ids that were in the catalogue."""

        def publish(removed: Sequence[tuple[str, int]]) -> tuple[list[str], Future[None]]:
            release = self._release()
            ordinals = [self._catalogue.remove(item_id, position) for item_id, position in removed]
            unreferenced = [ordinal for ordinal in ordinals if not self._people.references(ordinal)]
            ids = [item_id for item_id, _ in removed]

            def change() -> None:
                release.withdraw_items(ids)
                release.free_items(unreferenced)  # at once: if an item came back in between, a history could refer to it

            return ids, self._change(release, change)

        removed, visible = _wait(self._journal.submit(RemoveItems(item_ids, publish)), deadline)
        _wait(visible, deadline)
        return set(removed)

    def set_available(self, changes: Sequence[tuple[str, bool]], deadline: float) -> set[str]:
        """Marks items as available or not; returns those of the ids that are in the catalogue."""

        def publish(done: Sequence[tuple[str, bool]]) -> tuple[Sequence[tuple[str, bool]], Future[None]]:
            release = self._release()
            for item_id, available in done:
                self._catalogue.set_available(item_id, available)
            return done, self._change(release, lambda: release.set_available(list(done)))

        done, visible = _wait(self._journal.submit(SetAvailability(changes, publish)), deadline)
        _wait(visible, deadline)
        return {item_id for item_id, _ in done}

    def free(self, ordinal: int) -> None:
        """Gives back the place of a removed item that no history refers to any more. It does nothing for a live item."""
        if self._catalogue.get(self._catalogue.item_id(ordinal)) is None:
            release = self._release()
            self._change(release, lambda: release.free_items([ordinal]))

    def _change(self, release: Release, change: Callable[[], None]) -> Future[None]:
        """Changes the index before any query that is asked later; the future ends when every search shows the change.

        What a search must not return any more it does not from the first step on.
        """

        def steps() -> Steps[None]:
            change()
            yield from release.settle()
            self._engine.poke()  # the index may have outgrown its lists

        return self._engine.call_in_steps(steps)

    def _encode_texts(self, contents: Sequence[ItemContent], deadline: float) -> list[ItemContent]:
        encoded = list(contents)
        vectors = self._release().item_vectors
        texts = [(place, text) for place, one in enumerate(encoded) if (text := vectors.text_to_encode(one)) is not None]
        if not texts:
            return encoded
        if self._texts is None:
            raise FailedPrecondition("the live release has no text encoder; send text_embedding or vector")
        embeddings = self._texts.encode([text for _, text in texts], deadline=deadline)
        for (place, _), embedding in zip(texts, embeddings, strict=True):
            encoded[place] = vectors.with_embedding(encoded[place], embedding)
        return encoded

    def _publish_upserts(
        self,
        release: Release,
        outcomes: Sequence[UpsertOutcome],
        has_vector: NDArray[np.bool_],
        vectors: NDArray[np.float32],
        attributes: Grouped,
    ) -> Future[None]:
        items = [(one.stored.ordinal, one.stored.content.item_id, one.stored.available) for one in outcomes]
        # The engine first: it places the items before any query that is asked after the histories know them.
        visible = self._change(release, lambda: release.put_items(items, has_vector, vectors, attributes))
        for outcome, searchable in zip(outcomes, has_vector.tolist(), strict=True):
            stored = outcome.stored
            self._catalogue.put(stored, searchable=searchable)
            for person_key in self._people.item_came_in(stored.content.item_id, stored.ordinal):
                self._refresher.mark(person_key)
        self._engine.poke()
        return visible


def _compute(release: Release, contents: Sequence[ItemContent]) -> Steps[tuple[NDArray[np.bool_], NDArray[np.float32]]]:
    """`ItemVectors.compute` in steps."""
    parts = [release.item_vectors.compute(contents[:_ROWS_AT_ONCE])]
    for start in range(_ROWS_AT_ONCE, len(contents), _ROWS_AT_ONCE):
        yield
        parts.append(release.item_vectors.compute(contents[start : start + _ROWS_AT_ONCE]))
    return np.concatenate([has for has, _ in parts]), np.concatenate([vectors for _, vectors in parts])


def _wait(future: Future[T], deadline: float) -> T:
    try:
        return future.result(timeout=max(0.0, deadline - time.monotonic()))
    except TimeoutError:
        raise DeadlineExceeded("the change was not confirmed in time; it may still take effect: repeat the call") from None
