"""What is heavy about a load, done where it holds up nobody: a bundle and a journal become arrays that a server maps.

What is in the folder of a prepared release:

    ordinals.npy, histories.npz            what the server asks for: the items that have a slot, and some people
    has_vector.npy, vectors.npy            parallel to placed.npy, the ordinals of those items that the journal holds
    popularity.npy, absent.json            by ordinal; and of items that the journal does not hold, by id
    hashes.npy, rows.npy                   where the bundle's items are: `ItemRows`
    queries, centroids, list_of, needed.npy, lists.json if the index has lists
    index/                                 their snapshot, for the next start

A release is prepared for the items that the journal holds at that time; what changes later is brought to it by the server.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from index.build import build_lists
from index.bundle import Bundle, BundleError, load_text_encoder, read_bundle
from index.fingerprints import fingerprints
from index.snapshot import Snapshot, write_snapshot
from server.journal.database import open_reader
from server.journal.items import StoredItem, load_items
from server.releases.item_rows import ItemRows
from server.releases.item_vectors import ItemVectors
from server.releases.loading import popularity_of

_TEXTS_AT_ONCE = 256
_PEOPLE_AT_ONCE = 64
_ITEMS_AT_ONCE = 8192
Progress = Callable[[str, float], None]
"""Told of the stage and of how much of the whole is done, 0 to 1. It may raise, to end the work."""


@dataclass(frozen=True)
class Order:
    """What to prepare."""

    bundle: Path
    release_id: str
    journal: Path
    folder: Path
    lists_for_recall: float | None  # None: the index has no lists


def prepare(order: Order, progress: Progress) -> None:
    """Raises BundleError for a bundle that is refused."""
    progress("verifying", 0.0)
    bundle = read_bundle(order.bundle)
    if bundle.release_id != order.release_id:
        raise BundleError("manifest.json", "changed while it was loaded", "load it again", order.bundle)
    folder = order.folder
    progress("reading", 0.25)
    items = _read_items(order, bundle)
    progress("encoding", 0.35)
    rows = ItemRows.of(bundle.items.column("item_id"))
    np.save(folder / "hashes.npy", rows.hashes)
    np.save(folder / "rows.npy", rows.rows)
    has_vector, vectors = _vectors(bundle, rows, items, progress)
    np.save(folder / "placed.npy", np.array([item.ordinal for item in items], dtype=np.int64))
    np.save(folder / "has_vector.npy", has_vector)
    np.save(folder / "vectors.npy", vectors)
    if order.lists_for_recall is not None and has_vector.any():
        progress("building", 0.55)
        _build(order, bundle, items, has_vector, vectors)


def _read_items(order: Order, bundle: Bundle) -> list[StoredItem]:
    """The items that have a slot, in the order of ordinals; writes what the bundle says of all."""
    reader = open_reader(order.journal)
    try:
        items = list(load_items(reader))
    finally:
        reader.close()
    popularity, absent = popularity_of(bundle, items)
    np.save(order.folder / "popularity.npy", popularity)
    (order.folder / "absent.json").write_text(json.dumps(absent))
    wanted = set(np.load(order.folder / "ordinals.npy").tolist())
    return [item for item in items if item.ordinal in wanted]


def _vectors(
    bundle: Bundle, rows: ItemRows, items: list[StoredItem], progress: Progress
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    bulk = ItemVectors(bundle, rows).in_bulk()
    contents = [item.content for item in items]
    texts = [(place, text) for place, content in enumerate(contents) if (text := bulk.text_to_encode(content)) is not None]
    if texts and bundle.text_encoder is not None:
        encoder = load_text_encoder(bundle.text_encoder)
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            progress("encoding", 0.35 + 0.15 * start / len(texts))
            part = texts[start : start + _TEXTS_AT_ONCE]
            embeddings = np.asarray(encoder.encode([text for _, text in part]), dtype=np.float32)
            for (place, _), embedding in zip(part, embeddings, strict=True):
                contents[place] = bulk.with_embedding(contents[place], embedding)
    has_vector = np.zeros(len(items), dtype=bool)
    vectors = np.zeros((len(items), bundle.manifest.dim), dtype=np.float32)
    for start in range(0, len(items), _ITEMS_AT_ONCE):
        progress("computing", 0.5 + 0.05 * start / len(items))
        its = slice(start, start + _ITEMS_AT_ONCE)
        has_vector[its], vectors[its] = bulk.compute(contents[its])
    return has_vector, vectors


def _build(
    order: Order, bundle: Bundle, items: list[StoredItem], has_vector: NDArray[np.bool_], vectors: NDArray[np.float32]
) -> None:
    """Trains, fills and measures lists, and keeps of them what took time."""
    folder, target = order.folder, order.lists_for_recall
    if target is None:
        raise ValueError("the index has no lists")
    places = np.flatnonzero(has_vector)
    rows = torch.from_numpy(vectors[places])
    queries = _queries(bundle, folder, [item.ordinal for item in items], has_vector, vectors)
    if queries is None:
        some = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:1024]
        queries = rows.index_select(0, some)
    np.save(folder / "queries.npy", queries.numpy())
    built = build_lists(places, rows.to(torch.float16), queries, target=target)
    list_of = np.full(len(items), -1, dtype=np.int32)
    list_of[places] = built.lists.list_of[places]
    np.save(folder / "list_of.npy", list_of)
    np.save(folder / "centroids.npy", built.lists.state.centroids)
    np.save(folder / "needed.npy", built.table.needed)
    (folder / "lists.json").write_text(json.dumps({"target": target, "gather_rows": built.gather_rows}))
    snapshot = Snapshot(
        release_id=order.release_id,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        centroids=built.lists.state.centroids,
        table=built.table,
        gather_rows=built.gather_rows,
        item_ids=[items[place].content.item_id for place in places.tolist()],
        list_of=list_of[places],
        fingerprints=fingerprints(vectors[places]),
    )
    write_snapshot(folder / "index", snapshot)


def _queries(
    bundle: Bundle, folder: Path, ordinals: list[int], has_vector: NDArray[np.bool_], vectors: NDArray[np.float32]
) -> torch.Tensor | None:
    """The vectors of some people, (Q, D) float32, of whom histories.npz has the events; None if they are too few."""
    manifest = bundle.manifest
    if manifest.history_length is None:
        return None
    place_of = np.full(max(ordinals, default=0) + 2, -1, dtype=np.int64)  # by ordinal
    place_of[ordinals] = np.where(has_vector, np.arange(len(ordinals)), -1)
    with np.load(folder / "histories.npz") as histories:
        names: list[str] = histories["names"].tolist()
        bounds = histories["bounds"]
        known = np.array([manifest.event_types.get(name, 0) for name in names] or [0], dtype=np.int64)
        codes, times_us = known[histories["types"]], histories["times_us"]
        places = place_of[np.minimum(histories["ordinals"], len(place_of) - 1)]
    read = []
    for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        counts = (codes[start:stop] > 0) & (places[start:stop] >= 0)
        if counts.any():
            read.append(start + np.flatnonzero(counts)[-manifest.history_length :])
    parts = [
        _encode(bundle, read[start : start + _PEOPLE_AT_ONCE], places, codes, times_us, vectors)
        for start in range(0, len(read), _PEOPLE_AT_ONCE)
    ]
    return torch.from_numpy(np.concatenate(parts)) if len(read) >= _PEOPLE_AT_ONCE else None


def _encode(
    bundle: Bundle,
    read: list[NDArray[np.int64]],
    places: NDArray[np.int64],
    codes: NDArray[np.int64],
    times_us: NDArray[np.int64],
    vectors: NDArray[np.float32],
) -> NDArray[np.float32]:
    """The vectors of some people, each given by the rows of their events: (B, D) float32."""
    lengths = np.array([len(rows) for rows in read], dtype=np.int64)
    shape = (len(read), int(lengths.max()))
    history = np.zeros((*shape, vectors.shape[1]), dtype=np.float32)  # (B, L, D)
    types = np.zeros(shape, dtype=np.int64)
    ages = np.zeros(shape, dtype=np.float32)
    for row, its in enumerate(read):
        history[row, : len(its)] = vectors[places[its]]
        types[row, : len(its)] = codes[its]
        if bundle.manifest.time_features:
            ages[row, : len(its)] = (times_us[its[-1]] - times_us[its]) / 1e6
    return bundle.encode_users(history, types, ages, lengths)
