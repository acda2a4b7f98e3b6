"""A release that is loaded beside the live one: prepared aside, filled in short steps, following every change meanwhile."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from index.bundle import Bundle, BundleError, read_again
from index.bundle.manifest import read_manifest
from index.choice import ChoiceError
from index.gpu.memory import MemoryPlanError
from server.catalogue.changes import CatalogueChanges
from server.catalogue.text_workers import TextWorkers
from server.config import Config
from server.engine.engine import Engine, Steps
from server.errors import InvalidField, ResourceExhausted, StartupError
from server.journal.items import StoredItem
from server.journal.turn import in_turn
from server.journal.writer import JournalWriter
from server.releases.aside import Stopped
from server.releases.compiled import TowerCompiler
from server.releases.live_index import QUERIES, LiveIndex
from server.releases.memory import Sizes, check_memory
from server.releases.prepared import SNAPSHOT, Prepared
from server.releases.preparing import Order, Progress
from server.releases.release import Release
from server.releases.releases import Releases
from server.releases.warm_up import encode_once, warm_up_texts
from server.users.people import People
from server.users.vectors import UserVectors

_log = logging.getLogger(__name__)
_ROWS_AT_ONCE = 2048  # filled in one step: less than a millisecond at 64 components
_LOOK_SECONDS = 0.02
Preparer = Callable[[Order, Progress, threading.Event], None]


class Parts(NamedTuple):
    """What of a tenant a load works with."""

    releases: Releases
    people: People
    engine: Engine
    journal: JournalWriter
    changes: CatalogueChanges
    texts: TextWorkers
    config: Config
    journal_file: Path
    folder: Path  # of prepared releases
    towers: TowerCompiler | None  # None: towers run as exported


class Load:
    """One load, in a thread of its own. `release_id`, `path`, `stage` and `progress` may be read by any."""

    def __init__(
        self,
        parts: Parts,
        path: Path,
        release_id: str,
        prepare: Preparer,
        available: Callable[[], int],
        make_room: Callable[[], bool],
    ) -> None:
        """path: of the bundle. available: bytes of memory that can be had. make_room: lets another release go, if one must."""
        self.release_id = release_id
        self.path = path
        self.stage = "checking"
        self.progress = 0.0
        self.stopping = threading.Event()
        self.done: Future[Release] = Future()
        self.done.set_running_or_notify_cancel()  # it goes on when its caller leaves
        self._parts = parts
        self._prepare = prepare
        self._available = available
        self._make_room = make_room
        self._prepared = Prepared(parts.folder / release_id)
        self._noted: dict[int, StoredItem] = {}  # items that were put before the release followed, by ordinal
        self._live_index: LiveIndex | None = None
        self._release: Release | None = None

    def run(self) -> Release:
        """The release, complete and following. If it fails nothing is left behind; raises what went wrong."""
        try:
            return self._load()
        except BaseException as error:
            self._undo()
            if isinstance(error, BundleError):
                raise InvalidField("bundle", str(error)) from None
            if isinstance(error, (ChoiceError, MemoryPlanError)):
                raise ResourceExhausted(f"index: {error}") from None
            if isinstance(error, StartupError):
                raise InvalidField("bundle", str(error)) from None
            raise

    def _load(self) -> Release:
        parts, started = self._parts, time.monotonic()
        dim, bundle_items = self._sizes()
        try:
            self._check_memory(dim, bundle_items)
        except ResourceExhausted:
            if not self._make_room():
                raise
            self._check_memory(dim, bundle_items)
        in_turn(parts.journal, self._record)
        placement = parts.releases.placement
        ordinals, at = parts.engine.call(lambda: (placement.placed(), placement.changes)).result()
        histories = [history for _, history in parts.people.some(QUERIES)]
        self._prepared.ask(ordinals, histories, parts.people.type_names)
        user_vectors = UserVectors(dim, parts.config.users.max_people_in_memory)
        live_index = self._live_index = self._make_index(dim, user_vectors)
        recall = parts.config.index.recall if live_index.rebuild is not None else None
        order = Order(self.path, self.release_id, parts.journal_file, self._prepared.path, recall)
        self._prepare(order, self._tell, self.stopping)
        self._prepared.forget_histories()
        self._make_room()  # not before the bundle has turned out to be good
        release = self._release = self._open(user_vectors, live_index)
        self._tell("filling", 0.8)
        followed = in_turn(parts.journal, lambda: self._follow(release)).result()
        parts.engine.call_in_steps(lambda: self._fill(release, at)).result()
        self._tell("following", 0.87)
        noted = list(self._noted.values())
        if noted:
            parts.changes.bring(release, noted, followed)
        self._make_lists(release, at)
        if parts.towers is not None:
            self._tell("compiling", 0.93)
            parts.towers.use(release, wait=True)
        self._tell("warming", 0.95)
        encode_once(release)
        parts.engine.call(lambda: _search_once(release)).result()
        parts.releases.look_after(release)
        self._prepared.keep_snapshot()
        _log.info("release %s is loaded; it took %.1f s", self.release_id, time.monotonic() - started)
        return release

    def _tell(self, stage: str, progress: float) -> None:
        self.stage, self.progress = stage, progress
        if self.stopping.is_set():
            raise Stopped

    def _sizes(self) -> tuple[int, int]:
        manifest, release_id = read_manifest(self.path)
        if release_id != self.release_id:
            raise InvalidField("bundle", "changed while it was loaded; load it again")
        vectors = manifest.files["item_vectors.safetensors"].bytes
        return manifest.dim, vectors // (4 * manifest.dim)

    def _check_memory(self, dim: int, bundle_items: int) -> None:
        parts, index = self._parts, self._parts.releases.live.live_index
        sizes = Sizes(
            items=len(parts.releases.placement.slots),
            bundle_items=bundle_items,
            people=min(parts.people.in_memory, parts.config.users.max_people_in_memory),
            dim=dim,
            row_bytes=2 if parts.config.index.rows == "float16" else 4,
            has_lists=index.rebuild is not None,
            rows_on_host=parts.config.engine.device == "cpu",
        )
        check_memory(sizes, self._available())

    def _make_index(self, dim: int, user_vectors: UserVectors) -> LiveIndex:
        parts = self._parts
        return LiveIndex(
            parts.releases.placement.slots,
            dim,
            parts.config.index,
            items=len(parts.releases.placement.slots),
            device=parts.config.engine.device,
            max_batch=parts.config.engine.max_batch,
            release_id=self.release_id,
            folder=self._prepared.path / SNAPSHOT if parts.config.index.snapshots else None,
            stored_vectors=user_vectors.some,
            wake=parts.engine.poke,
            releases=1,
        )

    def _open(self, user_vectors: UserVectors, live_index: LiveIndex) -> Release:
        """The release without items, and its texts' encoder."""
        parts = self._parts
        self._tell("opening", 0.75)
        bundle = read_again(self.path)
        if bundle.release_id != self.release_id:
            raise InvalidField("bundle", "changed while it was loaded; load it again")
        worker = parts.texts.open(bundle)
        if worker is not None:
            warm_up_texts(bundle, worker)
        popularity, rows = self._prepared.popularity(), self._prepared.rows()
        device = parts.config.engine.device
        names = parts.people.type_names
        return Release(bundle, parts.releases.placement, names, user_vectors, live_index, popularity, device=device, rows=rows)

    # On the writer's thread.

    def _record(self) -> None:
        self._parts.releases.recorder = self._note

    def _note(self, items: Sequence[StoredItem]) -> None:
        self._noted.update((item.ordinal, item) for item in items)

    def _follow(self, release: Release) -> Future[int]:
        """Every later change reaches the release. The future: `Placement.changes` when all earlier ones have been made."""
        parts = self._parts
        types = list(release.bundle.manifest.event_types)
        names = [*parts.people.type_names, *(name for name in types if name not in parts.people.type_names)]
        for one in (*parts.releases.held, release):
            one.know_types(names)  # before a history has one of them
        parts.people.learn_types(types)
        for ordinal in sorted(self._noted):
            release.popularity.add(self._noted[ordinal])
        parts.releases.hold(release)
        parts.releases.recorder = None
        return parts.engine.call(lambda: parts.releases.placement.changes)

    # On the engine's thread.

    def _fill(self, release: Release, at: int) -> Steps[None]:
        """Gives all items their vectors but those that have changed since."""
        threads = self._parts.config.engine.threads
        release.live_index.take_over(threads=threads)
        made = self._prepared.vectors()
        for start in range(0, len(made.ordinals), _ROWS_AT_ONCE):
            if self.stopping.is_set():
                raise Stopped
            its = slice(start, start + _ROWS_AT_ONCE)
            ordinals, has_vector, vectors = (
                np.array(made.ordinals[its]),
                np.array(made.has_vector[its]),
                np.array(made.vectors[its]),
            )
            release.bring(ordinals, has_vector, vectors, made_at=at)
            yield

    def _make_lists(self, release: Release, at: int) -> None:
        rebuild, engine = release.live_index.rebuild, self._parts.engine
        if rebuild is None or not self._prepared.has_lists:
            return
        self._tell("building", 0.9)
        lists, placement = self._prepared.lists(), self._parts.releases.placement
        made, lists_of = self._prepared.vectors(), self._prepared.list_of()

        def list_of() -> NDArray[np.int32]:
            ordinals = np.array(made.ordinals)
            known = placement.unchanged(ordinals, at)
            found = np.full(len(placement.slots.ids), -1, dtype=np.int32)
            slots = placement.slots_of(ordinals[known])
            inside = slots >= 0
            found[slots[inside]] = lists_of[known][inside]
            return found

        engine.call(lambda: release.live_index.take(lists, list_of)).result()
        self._parts.releases.look_after(release)
        self._until_built(release)
        if release.live_index.has_lists:
            return
        engine.call(rebuild.start).result()  # those are no good for what it has become: others, made here
        self._until_built(release)

    def _until_built(self, release: Release) -> None:
        rebuild = release.live_index.rebuild
        while rebuild is not None and rebuild.running:
            self._parts.engine.poke()
            if self.stopping.wait(_LOOK_SECONDS):
                raise Stopped

    def _undo(self) -> None:
        parts = self._parts
        parts.releases.recorder = None
        if self._release is not None:
            discard(parts, self._release)
        elif self._live_index is not None:
            self._live_index.close()
        self._prepared.remove()


def discard(parts: Parts, release: Release) -> None:
    """Gives back what a release has, which follows no more: memory, threads and processes."""
    parts.releases.let_go(release)
    release.live_index.end_threads()

    def drop() -> None:
        release.live_index.discard()
        release.user_vectors = UserVectors(release.bundle.manifest.dim, 1)

    parts.engine.call(drop).result()
    kept: list[Bundle] = [one.bundle for one in parts.releases.held]
    parts.texts.keep(kept)


def _search_once(release: Release) -> None:
    query = torch.zeros(1, release.bundle.manifest.dim, device=release.device)
    query[0, 0] = 1.0
    release.index.search(query, [1])
