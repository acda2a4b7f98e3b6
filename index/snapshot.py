"""What is expensive about inverted lists, kept across restarts.

    manifest.json                          what it is and of what, and the digest of the other file
    lists-<sha256, 16 digits>.safetensors  centroids, the list of every item's row, the table of probes

Kept is what training and calibration found. Not kept are rows, which come from bundle and journal, and slots, which every start
assigns anew: entries go by item id. Each has a fingerprint of the vector that it was made of, so that a row that has changed
since is put into its nearest list, and the others into theirs without computing anything.

Arrays as safetensors, checked by us: a pickle runs what is in it, and `faiss.read_index` trusts the sizes and numbers that it
finds in a file, so that a damaged one ends in a search that reads what is not there.
"""

import hashlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from index.fingerprints import fingerprints
from index.lists import ListsState
from index.probing import KS, SHARES, ProbeTable
from index.snapshot_files import FORMAT, KIND, VERSION, Counts, DataFile, Manifest, SnapshotError, read_pair, write_pair
from index.tensors import tensor_parts

_IDS_AT_ONCE = 4096
_PAUSE_SECONDS = 1e-4
Rows = NDArray[np.float32] | Iterable[NDArray[np.float32]]
"""(n, D) float32, whole or in blocks of adjacent rows."""


@dataclass(frozen=True)
class Snapshot:
    """Lists as they were when they were saved, by item id."""

    release_id: str
    created_at: str
    """RFC 3339, UTC."""
    centroids: NDArray[np.float32]  # (L, D) float32 unit rows
    table: ProbeTable
    gather_rows: int
    item_ids: list[str]
    list_of: NDArray[np.int32]  # (n,) int32, parallel to item_ids, as are the fingerprints
    fingerprints: NDArray[np.uint64]  # (n,) uint64

    def lists_for(self, item_ids: Sequence[str], rows: Rows) -> NDArray[np.int32]:
        """The list of each item's row, -1 where the item is unknown or its row has changed: (n,) int32.

        rows: (n, D) float32, parallel to item_ids. Raises ValueError if they are not as many, or not of D components.
        """
        place_of = {item_id: place for place, item_id in enumerate(self.item_ids)}
        places = np.fromiter((place_of.get(item_id, -1) for item_id in item_ids), dtype=np.int64, count=len(item_ids))
        now = _fingerprints(rows, len(item_ids), self.centroids.shape[1])
        if not len(self.item_ids):
            return np.full(len(item_ids), -1, dtype=np.int32)
        same = (places >= 0) & (self.fingerprints[places] == now)
        return np.where(same, self.list_of[places], np.int32(-1)).astype(np.int32)


def save_snapshot(
    folder: Path,
    *,
    release_id: str,
    item_ids: Sequence[str],
    rows: Rows,
    state: ListsState,
    table: ProbeTable,
    gather_rows: int,
) -> None:
    """Replaces the snapshot in `folder`, which is made if there is none. Any thread; nothing else may write there.

    item_ids and rows, (n, D) float32, are parallel to the state's slots. A crash, whenever it comes, leaves the old snapshot
    or the new one whole. Raises ValueError if the numbers of items, rows and slots differ, and OSError if it cannot be written.
    """
    if not len(item_ids) == len(state.slots) == len(state.list_of):
        raise ValueError(f"{len(item_ids)} item ids for {len(state.slots)} slots in lists")
    snapshot = Snapshot(
        release_id=release_id,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        centroids=state.centroids,
        table=table,
        gather_rows=gather_rows,
        item_ids=list(item_ids),
        list_of=state.list_of,
        fingerprints=_fingerprints(rows, len(item_ids), state.centroids.shape[1]),
    )
    write_snapshot(folder, snapshot)


def write_snapshot(folder: Path, snapshot: Snapshot) -> None:
    """As `save_snapshot`."""
    lists, dim = snapshot.centroids.shape
    id_bytes, id_ends = _encode(snapshot.item_ids)
    arrays: dict[str, NDArray[Any]] = {
        "centroids": np.ascontiguousarray(snapshot.centroids, dtype=np.float32),  # (L, D) float32
        "list_of": np.ascontiguousarray(snapshot.list_of, dtype=np.int32),  # (n,) int32
        "fingerprints": np.ascontiguousarray(snapshot.fingerprints, dtype=np.uint64),  # (n,) uint64
        "id_bytes": id_bytes,
        "id_ends": id_ends,
        "shares": np.array(SHARES, dtype=np.float64),
        "ks": np.array(KS, dtype=np.int64),
        "needed": np.ascontiguousarray(snapshot.table.needed, dtype=np.int32),  # (shares, ks) int32
    }
    digest, size = hashlib.sha256(), 0
    for part in tensor_parts(arrays):
        digest.update(part)
        size += len(part)
    file = DataFile(name=f"lists-{digest.hexdigest()[:16]}.safetensors", sha256=digest.hexdigest(), bytes=size)
    manifest = Manifest(
        format=FORMAT,
        format_version=VERSION,
        kind=KIND,
        release_id=snapshot.release_id,
        created_at=snapshot.created_at,
        dim=dim,
        counts=Counts(items=len(snapshot.item_ids), lists=lists),
        target=snapshot.table.target,
        gather_rows=snapshot.gather_rows,
        file=file,
    )
    write_pair(folder, manifest, tensor_parts(arrays))


def _encode(item_ids: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """All ids, one behind the other, in UTF-8: (bytes,) uint8; and where each ends: (n,) int64.

    In parts: one call over millions of ids would hold the interpreter's lock, and so searches, for as long.
    """
    texts, lengths = [np.zeros(0, dtype=np.uint8)], [np.zeros(0, dtype=np.int64)]
    for start in range(0, len(item_ids), _IDS_AT_ONCE):
        encoded = [item_id.encode() for item_id in item_ids[start : start + _IDS_AT_ONCE]]
        texts.append(np.frombuffer(b"".join(encoded), dtype=np.uint8))
        lengths.append(np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded)))
        time.sleep(_PAUSE_SECONDS)  # gives the lock away; else others wait 5 ms for it, the interpreter's switch interval
    return np.concatenate(texts), np.cumsum(np.concatenate(lengths))


def load_snapshot(folder: Path, *, release_id: str, dim: int) -> Snapshot | None:
    """The snapshot in `folder`; None if there is none, or if it is another release's.

    Raises SnapshotError for one that is damaged, of another format, or does not fit: nothing of it is used then.
    """
    pair = read_pair(folder, release_id=release_id)
    if pair is None:
        return None
    manifest, data = pair
    if manifest.dim != dim:
        raise SnapshotError(folder, "manifest.json", f"is of {manifest.dim} components, the release has {dim}")
    arrays = _Arrays(folder, manifest, data)
    return Snapshot(
        release_id=manifest.release_id,
        created_at=manifest.created_at,
        centroids=arrays.centroids(),
        table=arrays.table(),
        gather_rows=manifest.gather_rows,
        item_ids=arrays.item_ids(),
        list_of=arrays.list_of(),
        fingerprints=arrays.take("fingerprints", np.uint64, (manifest.counts.items,)),
    )


class _Arrays:
    """The arrays of the data file, each checked as it is taken."""

    def __init__(self, folder: Path, manifest: Manifest, data: bytes) -> None:
        self._folder = folder
        self._manifest = manifest
        try:
            self._arrays: dict[str, NDArray[Any]] = load(data)
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise self._refuse(f"is not a readable safetensors file ({error})") from error

    def centroids(self) -> NDArray[np.float32]:
        centroids = self.take("centroids", np.float32, (self._manifest.counts.lists, self._manifest.dim))
        if not np.isfinite(centroids).all():
            raise self._refuse("holds a centroid that is not finite")
        return centroids

    def list_of(self) -> NDArray[np.int32]:
        lists = self._manifest.counts.lists
        list_of = self.take("list_of", np.int32, (self._manifest.counts.items,))
        if len(list_of) and not (list_of.min() >= 0 and list_of.max() < lists):
            raise self._refuse(f"puts a row into a list that is none of the {lists}")
        return list_of

    def table(self) -> ProbeTable:
        shares = self.take("shares", np.float64, (len(SHARES),))
        ks = self.take("ks", np.int64, (len(KS),))
        needed = self.take("needed", np.int32, (len(SHARES), len(KS)))
        if tuple(shares) != SHARES or tuple(ks) != KS:
            raise self._refuse("was measured for other shares or ks than this Towerbridge uses")
        if needed.min() < 1 or needed.max() > self._manifest.counts.lists:
            raise self._refuse(f"looks into fewer than 1 or more than {self._manifest.counts.lists} lists")
        return ProbeTable(self._manifest.target, needed)

    def item_ids(self) -> list[str]:
        ends = self.take("id_ends", np.int64, (self._manifest.counts.items,))
        text = self.take("id_bytes", np.uint8, (int(ends[-1]) if len(ends) else 0,)).tobytes()
        bounds = np.concatenate([[0], ends])
        if (np.diff(bounds) < 0).any():
            raise self._refuse("holds item ids that end before they begin")
        places = bounds.tolist()
        try:
            item_ids = [text[start:end].decode() for start, end in pairwise(places)]
        except UnicodeDecodeError as error:
            raise self._refuse(f"holds an item id that is not UTF-8 ({error.reason})") from error
        if len(set(item_ids)) < len(item_ids):
            raise self._refuse("holds an item id twice")
        return item_ids

    def take(self, name: str, dtype: type, shape: tuple[int, ...]) -> NDArray[Any]:
        """The array of this name. Raises SnapshotError if it is not there, or of another type or shape."""
        array = self._arrays.get(name)
        if array is None:
            raise self._refuse(f"has no {name}")
        if array.dtype != np.dtype(dtype) or array.shape != shape:
            raise self._refuse(f"has {name} of {array.dtype} {array.shape}, not {np.dtype(dtype)} {shape}")
        return array

    def _refuse(self, problem: str) -> SnapshotError:
        return SnapshotError(self._folder, self._manifest.file.name, problem)


def _fingerprints(rows: Rows, count: int, dim: int) -> NDArray[np.uint64]:
    blocks = [rows] if isinstance(rows, np.ndarray) else rows
    parts = [np.zeros(0, dtype=np.uint64)]
    for block in blocks:
        if block.ndim != 2 or block.shape[1] != dim or block.dtype != np.float32:
            raise ValueError(f"expected float32 rows of {dim} components, got {block.dtype} {block.shape}")
        parts.append(fingerprints(block))
    found = np.concatenate(parts)
    if len(found) != count:
        raise ValueError(f"{len(found)} rows for {count} items")
    return found
