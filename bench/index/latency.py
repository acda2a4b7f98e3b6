"""Times calls in turn: block by block, so that what else the machine does falls on all of them alike."""

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from bench.index.engines import Engine, Labels

BLOCKS = 10
CALLS_MIN = 20
CALLS_MAX = 2_000
_BATCH = 64  # of searches that are not timed


class Timing(NamedTuple):
    """How long to measure."""

    repeats: int
    seconds: float  # of each thing in each repeat


@dataclass
class Lane:
    """Something that is timed in turn with others."""

    call: Callable[[int], object]
    """Does it once, for the n-th time."""
    enter: Callable[[], None] = lambda: None
    """Called before a block of calls; not timed."""
    warms: bool = True
    """The first call of a block is made twice, since others had the cache before."""
    calls_min: int = CALLS_MIN
    calls_max: int = CALLS_MAX
    p50s: list[float] = field(default_factory=list)
    p99s: list[float] = field(default_factory=list)

    @property
    def p50_ms(self) -> float:
        """Median over the repeats."""
        return float(np.median(self.p50s))

    @property
    def p99_ms(self) -> float:
        """Median over the repeats."""
        return float(np.median(self.p99s))

    @property
    def row(self) -> dict[str, float]:
        """As the JSON has it."""
        return {"p50_ms": round(self.p50_ms, 4), "p99_ms": round(self.p99_ms, 4)}


def time_in_turn(lanes: Sequence[Lane], timing: Timing, *, progress: str) -> None:
    """Fills the lanes: each has its seconds in every repeat, in `BLOCKS` blocks that alternate with those of the others."""
    calls = [_calls(lane, timing.seconds) for lane in lanes]
    gc.collect()
    for repeat in tqdm(range(timing.repeats), desc=progress, unit="repeat", leave=False, disable=None):
        times: list[list[float]] = [[] for _ in lanes]
        for block in range(BLOCKS):
            for turn in range(len(lanes)):
                place = (turn + block + repeat) % len(lanes)  # nobody always comes after the same neighbour
                first, last = (calls[place] * edge // BLOCKS for edge in (block, block + 1))
                times[place] += _time(lanes[place], first, last)
        for lane, own in zip(lanes, times, strict=True):
            p50, p99 = np.percentile(own, [50, 99])
            lane.p50s.append(float(p50))
            lane.p99s.append(float(p99))


def _calls(lane: Lane, seconds: float) -> int:
    """How many calls take about `seconds`."""
    lane.enter()
    lane.call(0)
    started = time.perf_counter()
    lane.call(1)
    lane.call(2)
    once = max((time.perf_counter() - started) / 2, 1e-7)
    return max(lane.calls_min, min(lane.calls_max, int(seconds / once)))


def _time(lane: Lane, first: int, last: int) -> list[float]:
    """Milliseconds of each call."""
    lane.enter()
    times = []
    if last > first and lane.warms:
        lane.call(first)
    for number in range(first, last):
        started = time.perf_counter()
        lane.call(number)
        times.append((time.perf_counter() - started) * 1e3)
    return times


def search_lane(engine: Engine, queries: NDArray[np.float32], batch: int, *, filter_: Any = None) -> Lane:
    """Searches with the queries in batches, one after the other, from the start again at the end."""
    k = engine.setting.k
    repeated = np.resize(np.arange(len(queries)), max(batch, len(queries) // batch * batch))
    batches = [engine.prepare(np.ascontiguousarray(queries[part])) for part in repeated.reshape(-1, batch)]
    return Lane(lambda number: engine.answer(batches[number % len(batches)], k, filter_))


def latencies(
    engines: Sequence[Engine], queries: NDArray[np.float32], batches: Sequence[int], timing: Timing
) -> Mapping[str, dict[str, dict[str, float]]]:
    """p50 and p99 a call by engine and batch size, engines in turn."""
    rows: dict[str, dict[str, dict[str, float]]] = {engine.name: {} for engine in engines}
    for batch in batches:
        lanes = [search_lane(engine, queries, batch) for engine in engines]
        time_in_turn(lanes, timing, progress=f"latency, batch {batch}")
        for engine, lane in zip(engines, lanes, strict=True):
            rows[engine.name][str(batch)] = lane.row
    return rows


def search_all(engine: Engine, queries: NDArray[np.float32], *, filter_: Any = None, batch: int = _BATCH) -> Labels:
    """What the engine finds for (Q, D) float32 queries: (Q, k) int64 labels. Not timed."""
    k = engine.setting.k
    parts = []
    for start in range(0, len(queries), batch):
        prepared = engine.prepare(np.ascontiguousarray(queries[start : start + batch]))
        parts.append(engine.labels(engine.search(prepared, k, filter_)))
    return np.concatenate(parts)
