"""The index of a live release and its upkeep: chosen and filled at start, rebuilt aside, saved, its recall watched."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from index.build import Built, build_lists
from index.choice import Choice, choose, installed_faiss
from index.exact import ExactSearch
from index.gpu.flat import FaissFlatSearch, padding
from index.gpu.knn import KnnOnGpu
from index.gpu.memory import Needs, faiss_temporary_bytes, free_bytes, plan_memory
from index.gpu.resources import GpuResources
from index.items import ItemIndex
from index.ivf import IvfSearch
from index.lists import ListsState
from index.matrix import VectorMatrix
from index.rebuild import Rebuild
from index.recall import RecallMonitor
from index.search import Search
from index.slots import SlotTable
from index.snapshot import load_snapshot, save_snapshot
from index.snapshot_files import SnapshotError
from server.config import Index

_log = logging.getLogger(__name__)
QUERIES = 1024
"""Queries that an index is calibrated on."""
_QUERIES_MIN = 64  # fewer say less than the items' own vectors do
_ROWS_AT_ONCE = 16_384
_SAMPLES_BETWEEN_REMEDIES = 1000


class LiveIndex:
    """The engine's thread owns it, after start. `items` is what is searched.

    Start: construct, place the items, `prepare`. Then `upkeep` whenever nothing waits.
    """

    def __init__(
        self,
        slots: SlotTable,
        dim: int,
        settings: Index,
        *,
        items: int,
        device: str,
        max_batch: int,
        release_id: str,
        folder: Path | None,
        stored_vectors: Callable[[int], Sequence[NDArray[np.float32]]],
        wake: Callable[[], None],
    ) -> None:
        """items: how many there are or will be. folder: of snapshots; None: none are kept. stored_vectors: up to so many user
        vectors, (D,) float32 each. wake: told, on any thread, that `upkeep` has work. Raises ChoiceError or MemoryPlanError for
        what cannot be had.
        """
        self.choice: Choice = choose(settings.kind, items=items, device=device, faiss=installed_faiss())
        self._settings = settings
        self._release_id = release_id
        self._folder = folder
        self._stored_vectors = stored_vectors
        self._saving: threading.Thread | None = None
        dtype = torch.float16 if settings.rows == "float16" else torch.float32
        needs = Needs(
            items=items,
            dim=dim,
            dtype_bytes=dtype.itemsize,
            max_batch=max_batch,
            padded=padding(dim) if self.choice.kind == "faiss-gpu" else 0,
            faiss=self.choice.kind == "faiss-gpu",
        )
        if device != "cpu":
            plan = plan_memory(needs, device=device)
            plan.check(free_bytes(device))
            _log.info("memory on %s:\n%s", device, plan.table())
        matrix = VectorMatrix(dim, device=device, dtype=dtype, padded=needs.padded)
        oracle = ExactSearch(slots, matrix)
        self._gpu: GpuResources | None = None
        engine: Search = oracle
        if self.choice.kind == "faiss-gpu":
            self._gpu = GpuResources(torch.device(device), temporary_bytes=faiss_temporary_bytes(needs), cupy=False)
            engine = FaissFlatSearch(slots, matrix, oracle=oracle, knn=KnnOnGpu(self._gpu))
        elif self.choice.kind == "faiss-ivf":
            engine = IvfSearch(slots, matrix, oracle=oracle)
        self.items = ItemIndex(slots, matrix, engine, oracle=oracle)
        self.rebuild: Rebuild | None = None
        if isinstance(engine, IvfSearch):
            self.rebuild = Rebuild(
                self.items, engine, target=settings.recall, queries=self._queries, wake=wake, swapped=self._swapped
            )
            self.items.watchers.append(self.rebuild)
        self.recall = RecallMonitor(
            self.items,
            target=settings.recall,
            threshold=settings.recall - settings.recall_margin,
            share=settings.sampled_share,
            wake=wake,
            on_alarm=self._recall_fell,
        )
        self.items.watchers.append(self.recall)
        self._wake = wake
        self._next_remedy = 0

    def prepare(self) -> None:
        """Makes the index ready to be searched: from the snapshot if it fits, or built now. Once, when the items are placed."""
        if self.rebuild is not None and not self._restore(self.rebuild):
            _log.info("building the index of %d items", len(self.items.slots))
            self.rebuild.finish()

    def take_over(self) -> None:
        """The calling thread is the owner from now on."""
        if self._gpu is not None:
            self._gpu.hand_over()

    def upkeep(self) -> bool:
        """Does about a millisecond of what can wait; False if nothing is left."""
        if self.items.settle():
            return True
        rebuilding = self.rebuild is not None and self.rebuild.step()
        return self.recall.step() or rebuilding

    def close(self) -> None:
        """Waits for what runs in threads of its own."""
        if self.rebuild is not None:
            self.rebuild.close()
        if self._saving is not None:
            self._saving.join()

    def _queries(self) -> torch.Tensor | None:
        """What has been asked of late; else users' vectors; else None, and the items stand in."""
        recent = self.recall.recent_queries()
        if len(recent) >= _QUERIES_MIN:
            return recent
        stored = self._stored_vectors(QUERIES)
        return torch.from_numpy(np.stack(stored)) if len(stored) >= _QUERIES_MIN else None

    def _restore(self, rebuild: Rebuild) -> bool:
        """Takes the lists from the snapshot; False if there is none that can be used."""
        started = time.monotonic()
        if self._folder is None:
            return False
        try:
            snapshot = load_snapshot(self._folder, release_id=self._release_id, dim=self.items.matrix.dim)
        except SnapshotError as error:
            _log.error("%s; the index is built anew", error)
            return False
        if snapshot is None or snapshot.table.target != self._settings.recall:
            return False
        slots = self._searchable()
        if not len(slots):
            return False
        rows = self.items.matrix.read(slots)  # (n, D) float32
        ids = self.items.slots.ids[slots].tolist()
        queries = self._queries()
        built = build_lists(
            slots,
            rows,
            rows[:QUERIES] if queries is None else queries,
            target=self._settings.recall,
            centroids=snapshot.centroids,
            list_of=snapshot.lists_for(ids, rows.numpy()),
            table=snapshot.table,
            gather_rows=snapshot.gather_rows,
        )
        if built.recall < self._settings.recall - self._settings.recall_margin:
            _log.warning("the saved lists reach a recall of %.3f only; the index is built anew", built.recall)
            return False
        rebuild.adopt(built)
        _log.info("took the lists of %d items from the snapshot in %.1f s", len(slots), time.monotonic() - started)
        return True

    def _swapped(self, built: Built) -> None:
        self.recall.forget()
        if self._folder is None:
            return
        if self._saving is not None:
            self._saving.join()
        state = built.lists.state
        ids = self.items.slots.ids[state.slots]
        # Not a daemon: a process that ends in order finishes its snapshot.
        self._saving = threading.Thread(target=self._save, args=(self._folder, built, state, ids), name="index-snapshot")
        self._saving.start()

    def _save(self, folder: Path, built: Built, state: ListsState, ids: NDArray[np.object_]) -> None:
        """In a thread of its own. A row that is written meanwhile may get a fingerprint of neither: then it is placed anew."""
        slots = state.slots
        rows = (self.items.matrix.read(slots[at : at + _ROWS_AT_ONCE]).numpy() for at in range(0, len(slots), _ROWS_AT_ONCE))
        try:
            save_snapshot(
                folder,
                release_id=self._release_id,
                item_ids=ids.tolist(),
                rows=rows,
                state=state,
                table=built.table,
                gather_rows=built.gather_rows,
            )
        except (OSError, ValueError):
            _log.error("the index's snapshot could not be saved; the next start builds the index anew", exc_info=True)

    def _recall_fell(self) -> None:
        # At most once in so many samples: lists that fall short again and again would be built without end.
        if self.rebuild is not None and self.recall.measured >= self._next_remedy:
            self._next_remedy = self.recall.measured + _SAMPLES_BETWEEN_REMEDIES
            self.rebuild.start()
            self._wake()

    def _searchable(self) -> NDArray[np.int64]:
        extent = np.arange(self.items.slots.extent)
        return extent[self.items.slots.eligible(extent) & self.items.matrix.holds(extent)]
