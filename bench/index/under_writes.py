"""Searches that come in at random while a writer changes items at a fixed rate: one owner does both, in turn.

Arrivals are an open loop: a Poisson timeline at about 20 % of what the engine can do. Latency counts from when a search was
due, so that waiting for a slice of a write counts. A write of 32 upserts is due every 32/rate seconds. The owner does what is
due: a search first, then one slice of a write. So a search waits for one slice at most.

Every upsert is probed when it is acknowledged: a search with its own vector must return it. The clock stands still meanwhile:
probes are not part of the load, and at 10,000 upserts a second would be most of it.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from bench.index.changes import Changes
from bench.index.data import Data
from bench.index.engines import Engine, Labels
from bench.index.latency import Timing

WRITE = 32
UTILISATION = 0.2
_SEARCHES_MIN = 500
_STRETCH_MAX = 2.0  # how much longer a slow engine is measured, so that its p99 stands on something
_PROBE_K = 10
_REPEATS_MAX = 3
_SLOW_MS = 2.0


@dataclass
class _Run:
    """What one run saw."""

    seconds: float
    latencies_ms: list[float] = field(default_factory=list)
    waits_ms: list[float] = field(default_factory=list)  # from when a write was due to its acknowledgement
    slices_ms: list[float] = field(default_factory=list)
    acknowledged: int = 0
    probed: int = 0
    missed: int = 0


class _Clock:
    """Seconds since the start, less the pauses."""

    def __init__(self) -> None:
        self._zero = time.perf_counter()

    def now(self) -> float:
        return time.perf_counter() - self._zero

    def pause(self) -> float:
        return time.perf_counter()

    def resume(self, paused_at: float) -> None:
        self._zero += time.perf_counter() - paused_at


@dataclass
class _Write:
    """A batch that is being applied."""

    due: float
    labels: Labels
    vectors: NDArray[np.float32]
    applied: int = 0
    mark: int = 0  # what must be settled for it


class _Owner:
    """The thread that owns an engine, as a loop over what is due."""

    def __init__(self, engine: Engine, data: Data, changes: Changes, *, rate: int, arrivals: NDArray[np.float64]) -> None:
        self._engine = engine
        self._arrivals = arrivals
        self._queries = [engine.prepare(data.queries[row : row + 1]) for row in range(len(data.queries))]
        self._changes = changes
        self._period = WRITE / rate if rate else np.inf
        self._write: _Write | None = None  # begun and not acknowledged

    def run(self, seconds: float) -> _Run:
        run = _Run(seconds)
        served = writes = 0
        upcoming = self._changes.take(WRITE)
        clock = _Clock()
        while (now := clock.now()) < seconds:
            if served < len(self._arrivals) and self._arrivals[served] <= now:
                self._engine.answer(self._queries[served % len(self._queries)], self._engine.setting.k)
                run.latencies_ms.append((clock.now() - self._arrivals[served]) * 1e3)
                served += 1
            elif self._write is not None:
                self._do_slice(self._write, run, clock)
            elif writes * self._period <= now:
                self._write = _Write(writes * self._period, *upcoming)
                writes += 1
                paused_at = clock.pause()  # making up vectors is not part of the load
                upcoming = self._changes.take(WRITE)
                clock.resume(paused_at)
        return run

    def _do_slice(self, write: _Write, run: _Run, clock: _Clock) -> None:
        started = clock.now()
        if write.applied < len(write.labels):
            part = slice(write.applied, write.applied + self._engine.rows_per_slice)
            self._engine.upsert(write.labels[part], write.vectors[part])
            self._changes.note(write.labels[part])
            write.applied = part.stop
            write.mark = self._engine.queued
        else:
            self._engine.settle()
        now = clock.now()
        run.slices_ms.append((now - started) * 1e3)
        if write.applied >= len(write.labels) and self._engine.settled >= write.mark:
            self._write = None
            run.acknowledged += len(write.labels)
            run.waits_ms.append((now - write.due) * 1e3)
            paused_at = clock.pause()
            self._probe(write, run)
            clock.resume(paused_at)

    def _probe(self, write: _Write, run: _Run) -> None:
        """Whether each of the vectors finds its own item."""
        engine = self._engine
        k = min(_PROBE_K, engine.setting.k)
        found = engine.labels(engine.search(engine.prepare(write.vectors), k))
        run.probed += len(write.labels)
        run.missed += int((found != write.labels[:, None]).all(axis=1).sum())


def time_under_writes(
    engines: Sequence[Engine],
    data: Data,
    p50_ms: Mapping[str, float],
    rates: Sequence[int],
    timing: Timing,
    *,
    seed: int,
) -> Mapping[str, list[dict[str, float]]]:
    """By engine that takes changes, a row for each rate: medians of the repeats, which go through rates and engines in turn.

    Engines with slow changes or searches have one repeat.

    p50_ms: of a lone search at batch 1, by engine.
    """
    engines = [engine for engine in engines if engine.changes]
    runs: dict[tuple[str, int], list[_Run]] = {(engine.name, rate): [] for engine in engines for rate in rates}
    repeats = range(min(timing.repeats, _REPEATS_MAX))
    rounds = [(repeat, rate, engine) for repeat in repeats for rate in rates for engine in engines]
    # Probes by an engine that is slow take most of a run's time.
    once = {engine.name for engine in engines if engine.slow_changes or p50_ms[engine.name] > _SLOW_MS}
    rounds = [(repeat, rate, engine) for repeat, rate, engine in rounds if repeat == 0 or engine.name not in once]
    for repeat, rate, engine in tqdm(rounds, desc="under writes", unit="run", leave=False, disable=None):
        per_s = UTILISATION * 1e3 / p50_ms[engine.name]
        span = min(max(timing.seconds, _SEARCHES_MIN / per_s), _STRETCH_MAX * timing.seconds)
        random = np.random.default_rng([seed, repeat, rate])
        arrivals = np.cumsum(random.exponential(1 / per_s, size=int(1.2 * span * per_s) + 100))
        changes = Changes(data.vectors, seed + repeat)
        runs[engine.name, rate].append(_Owner(engine, data, changes, rate=rate, arrivals=arrivals).run(span))
        changes.undo(engine)
    return {engine.name: [_row(rate, runs[engine.name, rate]) for rate in rates] for engine in engines}


def _row(rate: int, runs: Sequence[_Run]) -> dict[str, float]:
    """Medians of the repeats; probed and missed are sums, and the longest slice is the longest of all."""
    latencies = np.array([np.percentile(run.latencies_ms or [np.nan], [50, 99]) for run in runs])  # (repeats, 2)
    waits = [np.percentile(run.waits_ms or [0.0], 99) for run in runs]
    return {
        "upserts_per_s": round(float(np.median([run.acknowledged / run.seconds for run in runs])), 1),
        "p50_ms": round(float(np.median(latencies[:, 0])), 4),
        "p99_ms": round(float(np.median(latencies[:, 1])), 4),
        "rate": rate,
        "searches": sum(len(run.latencies_ms) for run in runs),
        "probed": sum(run.probed for run in runs),
        "missed": sum(run.missed for run in runs),
        "acknowledged_p99_ms": round(float(np.median(waits)), 4),
        "slice_p99_ms": round(float(np.median([np.percentile(run.slices_ms or [0.0], 99) for run in runs])), 4),
    }
