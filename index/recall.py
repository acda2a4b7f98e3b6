"""Live recall: a share of the answered queries is compared with exact search, in the background."""

import logging
import math
import random
import time
from collections import deque
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from index.items import ItemIndex, Searched
from index.shadow import Changes, Sample, ShadowScan

_log = logging.getLogger(__name__)
SAMPLES_MIN = 30
"""Samples below which nothing is said of recall."""
WINDOW = 1000
"""Samples, the newest, that recall is the mean of."""
_WAITING_MAX = 4  # samples; they are compared together, so a slice grows with them
_RECENT = 512  # queries kept for a new calibration
_CHANGES = 131_072  # that are remembered; a sample that waited longer is skipped
_CONFIDENCE = 1.64  # standard errors: one-sided 95 %


class RecallMonitor:
    """Watches an index: how many of the true k best hits its answers have, on a random share of its queries.

    It belongs to the index's owner thread; `recall`, `samples`, `measured`, `skipped` and `alarm` may be read by any. Put it
    into `ItemIndex.watchers`, and call `step` in the background. An exact engine is measured too: that costs no more, and
    shows that the measurement and the engine agree.

    Slots that have changed since an answer, or whose change had not been settled when it was given, are left out.
    """

    def __init__(
        self,
        index: ItemIndex,
        *,
        target: float,
        threshold: float,
        share: float = 0.01,
        seed: int = 0,
        wake: Callable[[], None] = lambda: None,
        on_alarm: Callable[[], None] = lambda: None,
        most_time: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """target: the recall that the engine was made for, 0 to 1. threshold: below it `on_alarm` is called, once, until recall
        is back. share: of the queries that are compared, 0 (none) to 1. wake: told that `step` has work. most_time: of the
        thread's time, the part that comparing may take over a while, above 0 to 1; fewer queries are compared then.
        """
        self.target = target
        self.threshold = threshold
        self.recall: float | None = None
        """Mean over the window; None below `SAMPLES_MIN` samples."""
        self.samples = 0
        """Samples in the window."""
        self.measured = 0
        """Samples that were ever compared."""
        self.skipped = 0
        """Samples that were not: too many waited, too much had changed, or nothing could be found."""
        self.alarm = False
        self._index = index
        self._share = share
        self._random = random.Random(seed)
        self._wake = wake
        self._on_alarm = on_alarm
        self._most_time = most_time
        self._clock = clock
        self._spent = 0.0  # seconds of the scan that is under way
        self._due = 0.0  # when the next query may be compared, on the clock
        self._changes = Changes(_CHANGES)
        self._waiting: deque[Sample] = deque()
        self._scan: ShadowScan | None = None
        self._compared = 0  # samples of a finished scan
        self._window: deque[float] = deque(maxlen=WINDOW)
        self._recent: deque[torch.Tensor] = deque(maxlen=_RECENT)

    def changed(self, slots: NDArray[np.int64]) -> None:
        """See `Watcher.changed`."""
        self._changes.append(slots)

    def wants_answer(self) -> bool:
        """See `Watcher.wants_answer`."""
        return self._random.random() < self._share and self._clock() >= self._due

    def searched(self, searched: Searched) -> None:
        """See `Watcher.searched`."""
        query = searched.query.clone()  # of a batch that would be kept as a whole
        self._recent.append(query)
        if len(self._waiting) >= _WAITING_MAX:
            self.skipped += 1
            return
        unsettled = self._index.queued - self._index.settled
        exclude = None if searched.exclude is None else searched.exclude.copy()
        since = self._changes.count - unsettled
        self._waiting.append(Sample(query, searched.k, exclude, searched.mask, searched.slots, since))
        self._wake()

    def step(self) -> bool:
        """Does one slice of the comparisons, about a millisecond; False if nothing is left."""
        scanning, started = self._scan is not None, self._clock()
        more = self._step()
        ended = self._clock()
        self._spent += ended - started
        if scanning and self._scan is None:
            self._due, self._spent = ended + self._spent * (1 / self._most_time - 1), 0.0
        return more

    def below(self, threshold: float) -> bool:
        """Whether recall is below a threshold, and not by chance: by more than 1.64 standard errors of the window's mean."""
        if self.recall is None:
            return False
        error = float(np.std(self._window)) / math.sqrt(self.samples)
        return self.recall + _CONFIDENCE * error < threshold

    def recent_queries(self) -> torch.Tensor:
        """The last sampled queries, up to 512, for a new calibration: (Q, D) float32 on the CPU."""
        if not self._recent:
            return torch.empty(0, self._index.matrix.dim)
        return torch.stack(tuple(self._recent)).cpu()

    def forget(self) -> None:
        """Begins anew, since the engine is another now: with other lists, or calibrated again. Recent queries are kept."""
        self._waiting.clear()
        self._scan = None
        self._window.clear()
        self.recall, self.samples, self.alarm = None, 0, False

    def _step(self) -> bool:
        if self._scan is None:
            if not self._waiting:
                return False
            self._scan, self._compared = ShadowScan(self._index, tuple(self._waiting)), 0
            self._waiting.clear()
        elif not self._scan.step():
            self._compare(self._scan, self._compared)
            self._compared += 1
            if self._compared == len(self._scan.samples):
                self._scan = None
        return self._scan is not None or bool(self._waiting)

    def _compare(self, scan: ShadowScan, number: int) -> None:
        changed = self._changes.since(scan.samples[number].since)
        recall = None if changed is None else scan.recall(number, changed)
        if recall is None:
            self.skipped += 1
            return
        self._window.append(recall)
        self.measured += 1
        self.samples = len(self._window)
        self.recall = float(np.mean(self._window)) if self.samples >= SAMPLES_MIN else None
        self._watch()

    def _watch(self) -> None:
        if self.alarm and self.recall is not None and self.recall >= self.threshold:
            self.alarm = False
            _log.info("recall is back at %.3f over %d sampled queries", self.recall, self.samples)
        elif not self.alarm and self.below(self.threshold):
            self.alarm = True
            _log.warning(
                "recall is %.3f over %d sampled queries of %s, below the alarm's %.3f (target %.3f): items or queries moved "
                "from what the index was calibrated for; build it again, with a higher target if that does not help",
                self.recall, self.samples, self._index.engine.kind, self.threshold, self.target,
            )  # fmt: skip
            self._on_alarm()
