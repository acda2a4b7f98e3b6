"""Start: from a bundle and a journal to a catalogue, histories and a live release."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.bundle import Bundle
from index.filters.values import group
from server.catalogue.attributes import filterable, from_bundle, to_json
from server.catalogue.catalogue import Catalogue, as_catalogue_item
from server.catalogue.placement import Placement
from server.catalogue.popularity import Popularity
from server.catalogue.text_worker import TextWorker
from server.config import Index
from server.journal.database import JournalFile
from server.journal.items import ItemContent, StoredItem, is_seeded, keep_embeddings, load_items, seed_items
from server.releases.item_vectors import ItemVectors
from server.releases.live_index import QUERIES, LiveIndex
from server.releases.release import Release
from server.releases.releases import Made, Releases
from server.users.history_loading import ItemPlaces
from server.users.intake import now_us
from server.users.people import People
from server.users.vectors import UserVector, UserVectors

_log = logging.getLogger(__name__)
_TEXTS_AT_ONCE = 1024
_PEOPLE_AT_ONCE = 16
_OWN_COLUMNS = ("item_id", "text", "categories", "popularity")


def seed_catalogue(file: JournalFile, bundle: Bundle) -> None:
    """At first start only: the bundle's items become the catalogue. Later bundles bring vectors, never membership."""
    if is_seeded(file.connection):
        return
    count = seed_items(file, _bundle_items(bundle))
    _log.info("the catalogue was seeded with the bundle's %d items", count)


def load_views(
    file: JournalFile,
    bundle: Bundle,
    people: People,
    texts: TextWorker | None,
    *,
    settings: Index = Index(),  # noqa: B008  frozen
    device: str = "cpu",
    max_batch: int = 64,
    max_people: int = 1_000_000,
    snapshots: Path | None = None,
    wake: Callable[[], None] = lambda: None,
) -> tuple[Catalogue, Release]:
    """Rebuilds the views from the journal, and fills the release's index.

    Items whose text this release's encoder has not read yet are encoded here, and their embeddings kept. Raises ChoiceError or
    MemoryPlanError if the index that is configured cannot be had.
    """
    items = list(load_items(file.connection))
    placement = Placement(
        items=sum(item.removed_at is None for item in items), ordinals=max((item.ordinal for item in items), default=-1) + 1
    )
    user_vectors = UserVectors(bundle.manifest.dim, max_people)
    live_index = LiveIndex(
        placement.slots,
        bundle.manifest.dim,
        settings,
        items=sum(item.removed_at is None for item in items),
        device=device,
        max_batch=max_batch,
        release_id=bundle.release_id,
        folder=snapshots,
        stored_vectors=user_vectors.some,
        wake=wake,
    )
    popularity = Popularity(*popularity_of(bundle, items))
    release = Release(bundle, placement, people.type_names, user_vectors, live_index, popularity, device=device)
    by_id = {item.content.item_id: item for item in items}
    people.load(file.connection, item_places(items), published=file.head)
    placed = [item for item in items if item.removed_at is None or people.references(item.ordinal)]
    item_vectors = release.item_vectors.in_bulk()
    contents = _encode_texts(file, item_vectors, texts, placed)
    has_vector, vectors = item_vectors.compute(contents)
    _place(release, placed, Made(has_vector, vectors))
    if live_index.rebuild is not None:
        _encode_some_people(release, people)
    live_index.prepare()
    catalogue = _catalogue(items, popularity)
    _report(release, catalogue, by_id, people)
    return catalogue, release


def _bundle_items(bundle: Bundle) -> Iterator[tuple[ItemContent, float]]:
    for row in bundle.items.to_pylist():
        attributes = {name: value for name, value in row.items() if name not in _OWN_COLUMNS}
        content = ItemContent(
            item_id=row["item_id"],
            text=row["text"],
            categories=json.dumps(row["categories"], ensure_ascii=False),
            attributes=to_json(from_bundle(attributes)),
        )
        yield content, row["popularity"]


def _encode_texts(
    file: JournalFile, vectors: ItemVectors, worker: TextWorker | None, items: list[StoredItem]
) -> list[ItemContent]:
    """The contents of the items, with embeddings of those texts that only the text encoder can turn into vectors."""
    contents = [item.content for item in items]
    texts = [(place, text) for place, content in enumerate(contents) if (text := vectors.text_to_encode(content))]
    if not texts or worker is None:
        return contents
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        part = texts[start : start + _TEXTS_AT_ONCE]
        _log.info("encoding the texts of items that the bundle did not see: %d of %d", start, len(texts))
        embeddings = worker.encode([text for _, text in part])
        for (place, _), embedding in zip(part, embeddings, strict=True):
            contents[place] = vectors.with_embedding(contents[place], embedding)
    # What a caller sent is kept as it is: a release with its encoder may come back.
    own = [place for place, _ in texts if not items[place].content.embedding_given]
    keep_embeddings(file, [(items[place].ordinal, contents[place]) for place in own])
    return contents


def _place(release: Release, items: list[StoredItem], made: Made) -> None:
    attributes = group([filterable(item.content.attributes, item.content.categories) for item in items])
    placed = [(item.ordinal, item.content.item_id, item.available) for item in items]
    releases = Releases(release)
    releases.put_items(placed, {release: made}, attributes)
    releases.withdraw_items([item.content.item_id for item in items if item.removed_at is not None])


def _encode_some_people(release: Release, people: People) -> None:
    """Real queries for the index to be calibrated on."""
    some = [(key, history) for key, history in people.some(QUERIES) if release.has_user_tower and release.counts(history)]
    for start in range(0, len(some), _PEOPLE_AT_ONCE):
        part = some[start : start + _PEOPLE_AT_ONCE]
        vectors = release.encode([history for _, history in part])
        for (key, history), vector in zip(part, vectors, strict=True):
            release.user_vectors.put(key, UserVector(vector, history.version, history.counted, history.generation, now_us()))


def popularity_of(bundle: Bundle, items: list[StoredItem]) -> tuple[NDArray[np.float64], dict[str, float]]:
    """What the bundle says of all ordinals, (n,) float64, and of its items that are not in the journal."""
    in_bundle = dict(zip(bundle.item_ids, bundle.items.column("popularity").to_pylist(), strict=True))
    popularity = np.zeros(max((item.ordinal for item in items), default=-1) + 1)
    for item in items:
        popularity[item.ordinal] = in_bundle.pop(item.content.item_id, item.popularity)
    return popularity, in_bundle


def _catalogue(items: list[StoredItem], popularity: Popularity) -> Catalogue:
    ids = [""] * (max((item.ordinal for item in items), default=-1) + 1)
    for item in items:
        ids[item.ordinal] = item.content.item_id
    catalogue = Catalogue()
    catalogue.load(
        [as_catalogue_item(item) for item in items if item.removed_at is None],
        ids,
        popularity,
        {item.content.item_id: (item.ordinal, item.removed_at) for item in items if item.removed_at is not None},
    )
    return catalogue


def item_places(items: list[StoredItem]) -> ItemPlaces:
    """Where each item is, for events at any position."""
    removed_at = np.full(max((item.ordinal for item in items), default=0) + 1, np.iinfo(np.int64).max)
    for item in items:
        if item.removed_at is not None:
            removed_at[item.ordinal] = item.removed_at
    return ItemPlaces({item.content.item_id: item.ordinal for item in items}, removed_at)


def _report(release: Release, catalogue: Catalogue, by_id: dict[str, StoredItem], people: People) -> None:
    item_ids = release.bundle.item_ids
    absent = sum(1 for item_id in item_ids if item_id not in by_id)
    if absent == len(item_ids) and by_id:
        _log.error("none of the bundle's items are in the catalogue: does the data directory belong to another bundle?")
    elif absent:
        _log.warning("%d of the bundle's items are not in the catalogue and stay out; UpsertItems adds them", absent)
    slots = release.placement.slots
    without = int(np.count_nonzero(slots.live & ~release.index.matrix.holds(slice(0, len(slots.live)))))
    if without:
        _log.warning("%d items of the catalogue have no vector in this release and cannot be found", without)
    _log.info("%d items, %d people", len(catalogue), len(people))
