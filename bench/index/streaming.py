"""A runbook of inserts, deletes and searches 4:4:1: a window that slides over the items."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from bench.index.changes import settle
from bench.index.data import Data
from bench.index.engines import Engine, Setting
from bench.index.latency import search_all
from bench.index.truth import find_truth, recall

STEP = 64
"""Inserts of a step, and deletes; then a quarter as many searches, one by one."""
CHECKPOINTS = 10
_INSERTS_MAX = 250_000
_SECONDS_MAX = 60.0


def stream(
    kinds: Sequence[type[Engine]], setting: Setting, data: Data, efforts: Mapping[str, float | None]
) -> list[dict[str, Any]]:
    """Runs the runbook on each kind of engine that takes changes, one after the other.

    It starts from the first half of the items. A step inserts the next 64, deletes the 64 that are there longest, and searches
    16 times, until the items are used up or 250,000 were inserted. An engine that needs more than a minute ends with the
    checkpoints that it got to, and `stopped` says so. At checkpoints, recall is that of all queries among the items that live
    then; p50 is that of the searches since the last one. efforts: what reached the target recall on all items.
    """
    rows: list[dict[str, Any]] = []
    for kind in tqdm([kind for kind in kinds if kind.changes], desc="streaming", leave=False, disable=None):
        engine = kind(setting)
        half = len(data.vectors) // 2
        engine.build(np.ascontiguousarray(data.vectors[:half]))
        engine.set_effort(efforts[engine.name])
        checkpoints, stopped = _run(engine, data, half)
        rows.append({"engine": engine.name, "checkpoints": checkpoints, "stopped": stopped})
    return rows


def _run(engine: Engine, data: Data, half: int) -> tuple[list[dict[str, float]], bool]:
    first, end = 0, half  # the items in [first, end) live
    last = min(len(data.vectors), half + _INSERTS_MAX)
    edges = np.linspace(half, last, CHECKPOINTS + 1).astype(int)[1:].tolist()
    checkpoints = [_checkpoint(engine, data, first, end, 0, _search(engine, data, 0, max(1, STEP // 4)))]
    operations, searches = 0, 0
    times: list[float] = []
    started = time.monotonic()
    while end < last and time.monotonic() - started < _SECONDS_MAX:
        inserted = np.arange(end, min(end + STEP, last))
        engine.upsert(inserted, data.vectors[inserted])
        settle(engine)
        end += len(inserted)
        engine.remove(np.arange(first, first + len(inserted)))
        settle(engine)
        first += len(inserted)
        count = max(1, len(inserted) // 4)
        times += _search(engine, data, searches, count)
        searches += count
        operations += 2 * len(inserted) + count
        if end >= edges[0] or time.monotonic() - started >= _SECONDS_MAX:
            checkpoints.append(_checkpoint(engine, data, first, end, operations, times))
            times = []
            edges = [edge for edge in edges if edge > end]
    return checkpoints, end < last


def _search(engine: Engine, data: Data, start: int, count: int) -> list[float]:
    """Milliseconds of each of `count` searches, from the query `start` on."""
    times = []
    for number in range(start, start + count):
        query = engine.prepare(data.queries[[number % len(data.queries)]])
        started = time.perf_counter()
        engine.answer(query, engine.setting.k)
        times.append((time.perf_counter() - started) * 1e3)
    return times


def _checkpoint(engine: Engine, data: Data, first: int, end: int, operations: int, times: list[float]) -> dict[str, float]:
    live = np.zeros(len(data.vectors), dtype=bool)
    live[first:end] = True
    truth = find_truth(data.vectors, data.queries, engine.setting.k, live)
    found = search_all(engine, data.queries)
    return {
        "operations": operations,
        "live": end - first,
        "recall": round(recall(data.vectors, data.queries, found, truth), 4),
        "p50_ms": round(float(np.median(times)), 4),
        "stale": int(((found >= 0) & ~live[np.maximum(found, 0)]).sum()),
    }
