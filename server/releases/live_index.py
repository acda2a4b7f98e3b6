"""The index of a live release and its upkeep: chosen and filled at start, rebuilt aside, saved, its recall watched."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from index.build import Built, build_lists
from index.choice import Choice, choose, installed_faiss
from index.exact import ExactSearch
from index.faiss_lists import FaissLists
from index.gpu.flat import FaissFlatSearch, padding
from index.gpu.knn import KnnOnGpu
from index.gpu.memory import Needs, faiss_temporary_bytes, free_bytes, plan_memory
from index.gpu.resources import GpuResources
from index.items import ItemIndex
from index.ivf import IvfSearch
from index.lists import InvertedLists
from index.matrix import VectorMatrix
from index.native.library import why_not
from index.native.lists import NativeLists
from index.probing import ProbeTable
from index.rebuild import Rebuild
from index.recall import RecallMonitor
from index.saving import SnapshotSaver
from index.search import Search
from index.slots import SlotTable
from index.snapshot import load_snapshot
from index.snapshot_files import SnapshotError
from server.config import Index
from server.engine.turns import Turns

_log = logging.getLogger(__name__)
_LISTS: dict[str, type[InvertedLists]] = {one.kind: one for one in (NativeLists, FaissLists)}
QUERIES = 1024
"""Queries that an index is calibrated on."""
_ROWS_AT_ONCE = 16_384  # copied for a build
_QUERIES_MIN = 64  # fewer say less than the items' own vectors do
_MOST_TIME = 0.02  # of the engine's thread, for comparing with exact search, whose scans empty the processor's cache
_SAMPLES_BETWEEN_REMEDIES = 1000


class Lists(NamedTuple):
    """Lists that were trained and measured elsewhere, without rows."""

    centroids: NDArray[np.float32]  # (L, D) float32 unit rows
    table: ProbeTable
    gather_rows: int
    queries: torch.Tensor  # (Q, D) float32, on which recall is checked


class LiveIndex:
    """The engine's thread owns it, after start. `items` is what is searched.

    Start: construct, place the items, `prepare`. Then `upkeep` in the background.
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
        releases: int = 2,
    ) -> None:
        """items: how many there are or will be. folder: of snapshots; None: none are kept. stored_vectors: up to so many user
        vectors, (D,) float32 each. wake: told, on any thread, that `upkeep` has work. releases: how many there must be
        memory for. Raises ChoiceError or MemoryPlanError for what cannot be had.
        """
        self.choice: Choice = choose(settings.kind, items=items, device=device, faiss=installed_faiss(), why_not_native=why_not)
        self._settings = settings
        self._release_id = release_id
        self._folder = folder
        self._stored_vectors = stored_vectors
        dtype = torch.float16 if settings.rows == "float16" else torch.float32
        needs = Needs(
            items=items,
            dim=dim,
            dtype_bytes=dtype.itemsize,
            max_batch=max_batch,
            releases=releases,
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
        engine = self._engine(slots, matrix, oracle, needs)
        self.items = ItemIndex(slots, matrix, engine, oracle=oracle)
        self._saver = SnapshotSaver(self.items, folder, release_id=release_id, wake=wake) if folder is not None else None
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
            most_time=_MOST_TIME if settings.sampled_share < 1.0 else 1.0,
            wake=wake,
            on_alarm=wake,
        )
        self.items.watchers.append(self.recall)
        self._next_remedy = 0
        self._is_saved = False  # whether a snapshot of the lists that come next is on disk already
        self.upkeep = Turns(self.items.settle, self._build, self._save, self._watch)
        """Does one job for about a millisecond, in turns; False if nothing is left."""

    def prepare(self) -> None:
        """Makes the index ready to be searched: from the snapshot if it fits, or built now. Once, when the items are placed."""
        if self.rebuild is not None and not self._restore(self.rebuild):
            _log.info("building the index of %d items", len(self.items.slots))
            self.rebuild.finish()

    def take(self, prepared: Lists, list_of: Callable[[], NDArray[np.int32]]) -> None:
        """Begins to make the index ready with lists that were trained elsewhere; `rebuild` says when it is done.

        list_of: the list of each slot's row, (slots,) int32, -1 where it is not known; it is called in another thread.
        """
        rebuild, matrix = self.rebuild, self.items.matrix
        if rebuild is None:
            raise ValueError("the index has no lists")

        def build() -> Built:
            known = list_of()
            slots = self._searchable()
            pieces = [slots[at : at + _ROWS_AT_ONCE] for at in range(0, len(slots), _ROWS_AT_ONCE)]
            return build_lists(
                slots,
                torch.cat([matrix.read(piece).to(torch.float16) for piece in pieces]),
                prepared.queries,
                target=self._settings.recall,
                kind=rebuild.lists_type,
                centroids=prepared.centroids,
                list_of=np.pad(known, (0, max(0, len(self.items.slots.ids) - len(known))), constant_values=-1)[slots],
                table=prepared.table,
                gather_rows=prepared.gather_rows,
            )

        self._is_saved = True  # by whoever prepared them
        rebuild.start_with(build)

    def discard(self) -> None:
        """Gives back the memory of vectors and lists: of a release that nobody asks any more. On the owner's thread."""
        # By hand: what is left is in circles of references, which the garbage collector may never visit.
        self.items.watchers.clear()
        self._stored_vectors = lambda count: []
        held: list[object] = [self.items.matrix.give_up(), self.items.oracle.give_up()]
        if isinstance(self.items.engine, IvfSearch):
            held.append(self.items.engine.give_up())
        # In a thread of its own: to free a million rows takes a tenth of a second.
        threading.Thread(target=held.clear, name="index-free", daemon=True).start()

    def take_over(self, *, threads: int) -> None:
        """The calling thread is the owner from now on. threads: of one search on the CPU."""
        faiss.omp_set_num_threads(threads)  # OpenMP keeps it for each thread that calls it
        if self._gpu is not None:
            self._gpu.hand_over()

    @property
    def has_lists(self) -> bool:
        """Whether there are lists to search."""
        return isinstance(self.items.engine, IvfSearch) and self.items.engine.lists is not None

    def end_threads(self) -> None:
        """Ends what runs in threads of its own; what they did is lost."""
        if self.rebuild is not None:
            self.rebuild.close()

    def close(self) -> None:
        """Ends what runs in threads of its own, and completes a snapshot that was begun."""
        if self.rebuild is not None:
            self.rebuild.close()
        if self._saver is not None:
            self._saver.close()

    def _engine(self, slots: SlotTable, matrix: VectorMatrix, oracle: ExactSearch, needs: Needs) -> Search:
        """The chosen one, over the same slots and matrix as the oracle."""
        if self.choice.kind == "faiss-gpu":
            self._gpu = GpuResources(matrix.device, temporary_bytes=faiss_temporary_bytes(needs), cupy=False)
            return FaissFlatSearch(slots, matrix, oracle=oracle, knn=KnnOnGpu(self._gpu))
        if self.choice.kind in _LISTS:
            return IvfSearch(slots, matrix, oracle=oracle, lists=_LISTS[self.choice.kind])
        return oracle

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
        matrix, ids = self.items.matrix, self.items.slots.ids[slots].tolist()
        rows = matrix.read(slots)  # (n, D) float32
        queries = self._queries()
        built = build_lists(
            slots,
            rows,
            rows[:QUERIES] if queries is None else queries,
            target=self._settings.recall,
            kind=rebuild.lists_type,
            centroids=snapshot.centroids,
            list_of=snapshot.lists_for(ids, rows.numpy()),
            table=snapshot.table,
            gather_rows=snapshot.gather_rows,
        )
        if built.recall < self._settings.recall - self._settings.recall_margin:
            _log.warning("the saved lists reach a recall of %.3f only; the index is built anew", built.recall)
            return False
        rebuild.adopt(built, made_for=len(snapshot.item_ids))
        _log.info("took the lists of %d items from the snapshot in %.1f s", len(slots), time.monotonic() - started)
        return True

    def _swapped(self, built: Built) -> None:
        self.recall.forget()
        if self._saver is not None and not self._is_saved:
            self._saver.save(built)
        self._is_saved = False

    def _build(self) -> bool:
        if self.rebuild is None:
            return False
        if self._remedy_due():
            self._next_remedy = self.recall.measured + _SAMPLES_BETWEEN_REMEDIES
            self.rebuild.start()
        return self.rebuild.step()

    def _save(self) -> bool:
        return self._saver is not None and self._saver.step()

    def _watch(self) -> bool:
        return self.recall.step() or self._remedy_due()

    def _remedy_due(self) -> bool:
        """Whether to build anew since recall is low: as long as it is, but at most once in so many samples.

        Lists that fall short again and again would be built without end.
        """
        waited = self.recall.measured >= self._next_remedy
        return self.recall.alarm and waited and self.rebuild is not None and not self.rebuild.running

    def _searchable(self) -> NDArray[np.int64]:
        extent = np.arange(self.items.slots.extent)
        return extent[self.items.slots.eligible(extent) & self.items.matrix.holds(extent)]
