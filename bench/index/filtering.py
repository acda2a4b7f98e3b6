"""Searches among the items that pass a filter, from half of them to one in a thousand."""

from collections.abc import Mapping, Sequence

import numpy as np
from tqdm import tqdm

from bench.index.data import Data
from bench.index.engines import Engine, Filter
from bench.index.latency import Lane, Timing, search_all, search_lane, time_in_turn
from bench.index.truth import complete, find_truth, recall

SHARES = (0.5, 0.1, 0.03, 0.01, 0.001)
_SLOW_QUERIES = 20
_QUERIES = 300


def time_filters(
    engines: Sequence[Engine], data: Data, timing: Timing, *, seed: int
) -> Mapping[str, list[dict[str, float | bool | int]]]:
    """By engine that has filters, a row for each share of items that pass. Every item draws an attribute of its own.

    On 300 queries, or 20 where a library calls back into Python for each item. Latency is at batch 1 after the first use of the
    filter, which compiles and caches it; `unfiltered_p50_ms` was measured in turn with it. Recall and completeness are against
    brute force with the same filter.
    """
    engines = [engine for engine in engines if engine.filters]
    rows: dict[str, list[dict[str, float | bool | int]]] = {engine.name: [] for engine in engines}
    rolls = np.random.default_rng([seed, 1]).random(len(data.vectors))
    for share in tqdm(SHARES, desc="filters", unit="filter", leave=False, disable=None):
        filter_ = Filter(share, rolls < share, rolls)
        lanes: list[tuple[Lane, Lane]] = []
        for engine in engines:
            row, lane = _search(engine, data, filter_)
            rows[engine.name].append(row)
            lanes.append((lane, search_lane(engine, data.queries, 1)))
        pairs = [lane for pair in lanes for lane in pair]
        time_in_turn(pairs, timing._replace(seconds=timing.seconds / 4), progress=f"filter {share:g}")
        for engine, (filtered, unfiltered) in zip(engines, lanes, strict=True):
            rows[engine.name][-1] |= {**filtered.row, "unfiltered_p50_ms": round(unfiltered.p50_ms, 4)}
    return rows


def _search(engine: Engine, data: Data, filter_: Filter) -> tuple[dict[str, float | bool | int], Lane]:
    queries = data.queries[: _SLOW_QUERIES if engine.slow_filters else _QUERIES]
    prepared = engine.prepare_filter(filter_)
    truth = find_truth(data.vectors, queries, engine.setting.k, filter_.passes)
    # One by one: a library that finds too little for one query of a batch may give nothing for the others.
    found = search_all(engine, queries, filter_=prepared, batch=1)
    row: dict[str, float | bool | int] = {
        "pass": filter_.share,
        "p50_ms": 0.0,
        "p99_ms": 0.0,
        "recall": round(recall(data.vectors, queries, found, truth), 4),
        "complete": complete(found, truth),
        "eligible": int(filter_.passes.sum()),
        "queries": len(queries),
    }
    lane = search_lane(engine, queries, 1, filter_=prepared)
    if engine.slow_filters:
        lane.calls_min, lane.warms = 5, False
    return row, lane
