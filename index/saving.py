"""Saves the snapshot of a live index: read in slices between searches, written aside."""

import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.build import Built
from index.fingerprints import fingerprints
from index.items import ItemIndex
from index.snapshot import Snapshot, write_snapshot

_log = logging.getLogger(__name__)
_SLOTS_AT_ONCE = 4096  # looked at by one slice: about 1 ms at 64 components


class SnapshotSaver:
    """Belongs to the index's owner thread, which calls `step` when it has nothing else to do; only the writing is in another.

    Id, list and fingerprint of a row are read together, so that a change between two slices makes none of them wrong. A failure
    to write is logged and costs no more than a new build at the next start: the snapshot before stays.
    """

    def __init__(self, index: ItemIndex, folder: Path, *, release_id: str, wake: Callable[[], None] = lambda: None) -> None:
        """wake: told, on any thread, that `step` has work again."""
        self._index = index
        self._folder = folder
        self._release_id = release_id
        self._wake = wake
        self._wanted: Built | None = None  # to be saved next
        self._built: Built | None = None  # being read
        self._at = 0
        self._ids: list[str] = []
        self._list_of: list[NDArray[np.int32]] = []
        self._fingerprints: list[NDArray[np.uint64]] = []
        self._thread: threading.Thread | None = None
        self._written = False  # set by the thread when it has nothing left to do but to end

    def save(self, built: Built) -> None:
        """Wants a snapshot of the lists that are in use from now on. What is being read is given up."""
        self._wanted, self._built = built, None

    def step(self) -> bool:
        """Reads the next slice, or settles one of the changes that wait; False if there is nothing to do now."""
        if self._thread is not None:
            if not self._written:  # is_alive() would still be true in the step that the thread's own wake asks for
                return False
            self._thread = None
        if self._built is None:
            self._begin()
        elif self._index.settled < self._index.queued:
            self._index.settle()  # first: else a changed row would be saved with the list of the row before
        elif self._at < self._index.slots.extent:
            self._read(self._built)
        else:
            self._write(self._built)
        return self._built is not None

    def close(self) -> None:
        """Completes what is wanted and waits until it is written. For the end of a server, when nothing is asked any more."""
        while self.step() or self._thread is not None:
            if self._thread is not None:
                self._thread.join()

    def _begin(self) -> None:
        self._built, self._wanted, self._at = self._wanted, None, 0
        self._ids, self._list_of, self._fingerprints = [], [], []

    def _read(self, built: Built) -> None:
        table, matrix = self._index.slots, self._index.matrix
        slots = np.arange(self._at, min(self._at + _SLOTS_AT_ONCE, table.extent))
        slots = slots[built.lists.contains(slots) & table.eligible(slots) & matrix.holds(slots)]
        if len(slots):
            self._ids += table.ids[slots].tolist()
            self._list_of.append(built.lists.list_of[slots])
            self._fingerprints.append(fingerprints(matrix.read(slots).cpu().numpy()))
        self._at += _SLOTS_AT_ONCE

    def _write(self, built: Built) -> None:
        parts = self._ids, self._list_of, self._fingerprints
        self._begin()
        self._written = False
        self._thread = threading.Thread(target=self._write_aside, args=(built, *parts), name="index-snapshot", daemon=True)
        self._thread.start()

    def _write_aside(
        self, built: Built, ids: list[str], list_of: list[NDArray[np.int32]], prints: list[NDArray[np.uint64]]
    ) -> None:
        try:
            snapshot = Snapshot(
                release_id=self._release_id,
                created_at=datetime.now(UTC).isoformat(timespec="seconds"),
                centroids=built.lists.state.centroids,
                table=built.table,
                gather_rows=built.gather_rows,
                item_ids=ids,
                list_of=np.concatenate([np.zeros(0, dtype=np.int32), *list_of]),
                fingerprints=np.concatenate([np.zeros(0, dtype=np.uint64), *prints]),
            )
            write_snapshot(self._folder, snapshot)
            _log.info("saved a snapshot of %d rows in lists to %s", len(ids), self._folder)
        except Exception:
            _log.error("cannot save a snapshot to %s; the next start builds the index again", self._folder, exc_info=True)
        finally:
            self._written = True
            self._wake()
