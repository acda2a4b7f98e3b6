"""New lists aside, while the old ones are searched and changed: copy at a watermark, build, replay, check, swap."""

import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from enum import Enum

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from index.build import BuildStopped, Built, build_lists
from index.items import ItemIndex, Searched
from index.ivf import SLICE, IvfSearch, sync
from index.lists import InvertedLists
from index.probing import SAMPLE
from index.slot_queue import SlotQueue

_log = logging.getLogger(__name__)
GROWTH = 1.5
"""Lists are built anew when there are this many times more rows than when they were built, or fewer by it."""
_ROWS_MIN = 1024  # with fewer rows than this, lists need not be built anew for growth
_COPIED_AT_ONCE = 8192  # rows: well under a millisecond
_SHORTFALL = 0.02  # lists whose checked recall is lower than the target by this are not used
_PATIENCE_S = 2.0  # for the building thread to see that it is not wanted any more
_NICENESS = 10  # of the building thread: searches come first


class _State(Enum):
    IDLE = "idle"
    COPYING = "copying"
    BUILDING = "building"
    REPLAYING = "replaying"


class Rebuild:
    """Builds the lists of an index's `IvfSearch`, as often as it is needed. A `Watcher` of the index.

    The owner's thread calls `step` when it has nothing else to do; each step is well under a millisecond. Only the building
    itself, of copied rows, runs in a thread of its own, at a low priority. What changes after the watermark is recorded and
    replayed into the new lists; they are put to use between two searches, in the step in which nothing is left to replay.
    """

    def __init__(
        self,
        index: ItemIndex,
        engine: IvfSearch,
        *,
        target: float,
        queries: Callable[[], torch.Tensor | None],
        wake: Callable[[], None] = lambda: None,
        swapped: Callable[[Built], None] = lambda built: None,
        seed: int = 0,
        lists: int | None = None,
    ) -> None:
        """target: recall, 0 to 1. queries: a sample of real ones, (Q, D) float32, called on the owner's thread; if it has none
        the items' own vectors stand in for them. wake: told, on any thread, that `step` has work again. swapped: told of new
        lists in use.
        """
        self._index = index
        self._engine = engine
        self._target = target
        self._queries = queries
        self._wake = wake
        self._swapped = swapped
        self._seed = seed
        self._list_count = lists
        self._state = _State.IDLE
        self._rows_tried: int | None = None  # how many there were for the last lists, or would have been
        self._recorded = SlotQueue()
        self._parts: list[tuple[NDArray[np.int64], torch.Tensor]] = []  # copied: slots, and rows as float16
        self._copied = 0
        self._extent = 0
        self._thread: threading.Thread | None = None
        self._built: Built | None = None
        self._stopping = threading.Event()
        self._ended = False  # the building thread has nothing left to do

    @property
    def lists_type(self) -> type[InvertedLists]:
        """What kind of lists are built."""
        return self._engine.lists_type

    @property
    def running(self) -> bool:
        """Whether a rebuild is under way."""
        return self._state is not _State.IDLE

    def due(self) -> bool:
        """Whether there are no lists yet, or too many or too few rows for them; after a failure, when that has changed much."""
        if self.running:
            return False
        rows = len(self._index.slots) if self._engine.lists is None else len(self._engine.lists)
        if self._rows_tried is None:
            return rows > 0
        return not self._rows_tried / GROWTH <= rows <= max(self._rows_tried, _ROWS_MIN) * GROWTH

    def start(self) -> None:
        """Sets the watermark; `step` does the rest. Nothing if a rebuild is under way."""
        if self.running:
            return
        self._recorded.clear()
        self._parts = []
        self._copied = 0
        self._extent = self._index.slots.extent
        self._rows_tried = len(self._index.slots) if self._engine.lists is None else len(self._engine.lists)
        self._state = _State.COPYING

    def start_with(self, build: Callable[[], Built]) -> None:
        """Like `start`, with lists that `build` makes in the thread, of what the index holds then or later.

        Whatever changes from now on is replayed, so it may read while things change, and need not make all rows its own.
        """
        if self.running:
            raise RuntimeError("a rebuild is under way")
        self._recorded.clear()
        self._rows_tried = len(self._index.slots)
        self._run(build)

    def adopt(self, built: Built, *, made_for: int) -> None:
        """Puts lists to use that were made of all that may be returned now, from a snapshot for example.

        made_for: how many rows their centroids were trained for.
        """
        old = [self._engine.use(built.lists, built.table, gather_rows=built.gather_rows)]
        self._index.settle()  # what waited for the old lists is in the new ones
        self._rows_tried = made_for
        # In a thread of its own: to free a million rows takes a tenth of a second.
        threading.Thread(target=old.clear, name="index-free", daemon=True).start()

    def changed(self, slots: NDArray[np.int64]) -> None:
        """See `Watcher.changed`."""
        if self.running:
            self._recorded.append(slots)

    def wants_answer(self) -> bool:
        """See `Watcher.wants_answer`: there is nothing to learn."""
        return False

    def searched(self, searched: Searched) -> None:
        """See `Watcher.searched`."""

    def step(self) -> bool:
        """Does a little of what there is to do; False if there is nothing to do now."""
        if self._state is _State.IDLE and self.due():
            self.start()
        if self._state is _State.COPYING:
            self._copy()
        elif self._state is _State.BUILDING:
            return self._look_at_thread()
        elif self._state is _State.REPLAYING:
            self._replay()
        return self.running

    def finish(self) -> None:
        """Completes what is under way, waiting for it. For the start of a server, before anything is asked."""
        while self.step() or self.running:
            self.wait()

    def wait(self) -> None:
        """Waits for the building thread, if there is one."""
        if self._thread is not None:
            self._thread.join()

    def close(self) -> None:
        """Ends the building thread, whose work is lost. k-means cannot be stopped half way: it is left to the process's end."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(_PATIENCE_S)

    def _copy(self) -> None:
        """The next slots of what may be returned. Later changes are recorded, those of slots that are not copied yet too."""
        slots = np.arange(self._copied, min(self._copied + _COPIED_AT_ONCE, self._extent))
        slots = slots[self._index.slots.eligible(slots) & self._index.matrix.holds(slots)]
        self._parts.append((slots, self._index.matrix.read(slots).to("cpu", torch.float16)))
        self._copied += _COPIED_AT_ONCE
        if self._copied < self._extent:
            return
        if not any(len(part) for part, _ in self._parts):
            self._end()
            return
        parts, queries = self._parts, self._queries()
        self._parts = []
        self._run(lambda: self._of_copied(parts, queries))

    def _run(self, build: Callable[[], Built]) -> None:
        self._state, self._ended, self._built = _State.BUILDING, False, None
        self._thread = threading.Thread(target=self._build, args=(build,), name="index-rebuild", daemon=True)
        self._thread.start()

    def _of_copied(self, parts: list[tuple[NDArray[np.int64], torch.Tensor]], queries: torch.Tensor | None) -> Built:
        slots, rows = np.concatenate([part for part, _ in parts]), torch.cat([part for _, part in parts])
        parts.clear()
        if queries is None or not len(queries):
            some = torch.randint(len(rows), (SAMPLE,), generator=torch.Generator().manual_seed(self._seed))
            queries = rows.index_select(0, some).to(torch.float32)
        return build_lists(
            slots,
            rows,
            queries,
            target=self._target,
            seed=self._seed,
            kind=self.lists_type,
            lists=self._list_count,
            stopping=self._stopping.is_set,
        )

    def _build(self, build: Callable[[], Built]) -> None:
        """In a thread of its own."""
        try:
            with suppress(OSError):  # where it is not permitted, the building competes with the searches
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
            faiss.omp_set_num_threads(1)
            self._built = build()
        except BuildStopped:
            _log.info("building new lists was given up")
        except Exception:
            _log.error("building new lists failed; the old ones stay in use", exc_info=True)
        finally:
            self._ended = True
            self._wake()

    def _look_at_thread(self) -> bool:
        if not self._ended:
            return False
        self._thread = None
        built = self._built
        if built is not None and built.recall >= self._target - _SHORTFALL:
            self._state = _State.REPLAYING
            return True
        if built is not None:
            _log.error("new lists reach a recall of %.3f only, for a target of %.3f; not used", built.recall, self._target)
        self._end()
        return False

    def _replay(self) -> None:
        built = self._built
        if built is None:
            raise RuntimeError("there is nothing to replay into")
        if self._recorded:
            slots = self._recorded.take(SLICE)
            sync(built.lists, self._index.slots, self._index.matrix, np.unique(slots))
            self._recorded.done(len(slots))
            return
        self.adopt(built, made_for=len(built.lists))
        self._swapped(built)
        self._end()

    def _end(self) -> None:
        self._state = _State.IDLE
        self._built = None
        self._recorded.clear()
        self._parts = []
