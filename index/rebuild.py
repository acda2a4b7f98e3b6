"""New lists aside, while the old ones are searched and changed: copy at a watermark, build, replay, check, swap."""

import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from enum import Enum

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from index.build import Built, build_lists
from index.items import ItemIndex, Searched
from index.ivf import SLICE, IvfSearch, sync

_log = logging.getLogger(__name__)
GROWTH = 1.5
"""Lists are built anew when there are this many times more rows than when they were built, or fewer by it."""
_COPIED_AT_ONCE = 8192  # rows: well under a millisecond
_SHORTFALL = 0.02  # lists whose checked recall is lower than the target by this are not used
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
        self._rows_built = 0
        self._recorded: deque[NDArray[np.int64]] = deque()
        self._slots: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._rows: torch.Tensor = torch.zeros(0)
        self._copied = 0
        self._thread: threading.Thread | None = None
        self._built: Built | None = None
        self._failed = False

    @property
    def running(self) -> bool:
        """Whether a rebuild is under way."""
        return self._state is not _State.IDLE

    def due(self) -> bool:
        """Whether there are no lists yet, or too many or too few rows for them."""
        if self.running or self._failed:
            return False
        lists = self._engine.lists
        if lists is None:
            return bool(len(self._index.slots))
        return not self._rows_built / GROWTH <= len(lists) <= max(self._rows_built, 1024) * GROWTH

    def start(self) -> None:
        """Sets the watermark; `step` does the rest. Nothing if a rebuild is under way."""
        if self.running:
            return
        extent = np.arange(self._index.slots.extent)
        self._slots = extent[self._index.slots.eligible(extent) & self._index.matrix.holds(extent)]
        self._rows = torch.empty(len(self._slots), self._index.matrix.dim, dtype=torch.float16)
        self._copied = 0
        self._recorded.clear()
        self._failed = False
        self._state = _State.COPYING if len(self._slots) else _State.IDLE

    def adopt(self, built: Built) -> None:
        """Puts lists to use that were made of all that may be returned now, from a snapshot for example."""
        self._engine.use(built.lists, built.table, gather_rows=built.gather_rows)
        self._index.settle()  # what waited for the old lists is in the new ones
        self._rows_built = len(built.lists)

    def changed(self, slots: NDArray[np.int64]) -> None:
        """See `Watcher.changed`."""
        if self.running:
            self._recorded.append(slots)

    def searched(self, searched: Searched) -> None:
        """See `Watcher.searched`: nothing to learn."""

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
            if self._thread is not None:
                self._thread.join()

    def close(self) -> None:
        """Waits for the building thread, whose work is lost."""
        if self._thread is not None:
            self._thread.join()

    def _copy(self) -> None:
        part = slice(self._copied, self._copied + _COPIED_AT_ONCE)
        self._rows[part] = self._index.matrix.read(self._slots[part]).to("cpu", torch.float16)
        self._copied = part.stop
        if self._copied >= len(self._slots):
            queries = self._queries()
            if queries is None or not len(queries):
                order = torch.randperm(len(self._rows), generator=torch.Generator().manual_seed(self._seed))
                queries = self._rows[order[:1024]].to(torch.float32)
            self._state = _State.BUILDING
            self._thread = threading.Thread(target=self._build, args=(queries,), name="index-rebuild", daemon=True)
            self._thread.start()

    def _build(self, queries: torch.Tensor) -> None:
        """In a thread of its own, on copied rows only."""
        try:
            with suppress(OSError):  # where it is not permitted, the building competes with the searches
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
            faiss.omp_set_num_threads(1)
            self._built = build_lists(
                self._slots, self._rows, queries, target=self._target, seed=self._seed, lists=self._list_count
            )
        except Exception:
            _log.error("building new lists failed; the old ones stay in use", exc_info=True)
        finally:
            self._wake()

    def _look_at_thread(self) -> bool:
        if self._thread is not None and self._thread.is_alive() and self._built is None:
            return False
        self._thread = None
        built = self._built
        if built is None or built.recall < self._target - _SHORTFALL:
            if built is not None:
                _log.error("new lists reach a recall of %.3f only, for a target of %.3f; not used", built.recall, self._target)
            self._failed = True  # until something asks for a rebuild again
            self._end()
            return False
        self._state = _State.REPLAYING
        return True

    def _replay(self) -> None:
        built = self._built
        if built is None:
            raise RuntimeError("there is nothing to replay into")
        if self._recorded:
            slots = self._recorded.popleft()
            if len(slots) > SLICE:
                self._recorded.appendleft(slots[SLICE:])
            sync(built.lists, self._index.slots, self._index.matrix, np.unique(slots[:SLICE]))
            return
        self.adopt(built)
        self._swapped(built)
        self._end()

    def _end(self) -> None:
        self._state = _State.IDLE
        self._built = None
        self._recorded.clear()
        self._slots, self._rows = np.zeros(0, dtype=np.int64), torch.zeros(0)
