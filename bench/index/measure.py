"""Every measurement of one run, with all engines in turn."""

import gc
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import faiss
import numpy as np
import torch
from tqdm import tqdm

from bench.index.changes import change_rates
from bench.index.data import Data
from bench.index.engines import Engine, Setting
from bench.index.filtering import time_filters
from bench.index.latency import Timing, latencies
from bench.index.memory import resident_mb
from bench.index.options import Options
from bench.index.ours import TowerbridgeExact, TowerbridgeFaissIvf, TowerbridgeIvf
from bench.index.peers import PEERS
from bench.index.stages import time_stages
from bench.index.streaming import stream
from bench.index.truth import Truth, find_truth
from bench.index.tuning import curves, tune
from bench.index.under_writes import time_under_writes

BATCHES = (1, 16, 64)
_OURS: tuple[type[TowerbridgeExact], ...] = (TowerbridgeExact, TowerbridgeIvf, TowerbridgeFaissIvf)
_ROOM = 2  # times the items that an engine must have room for: changes add some
_WARM_UP = 500


class _Phases:
    """What takes how long."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 1)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Lets torch and FAISS compute with so many threads."""
    before = torch.get_num_threads(), faiss.omp_get_max_threads()
    torch.set_num_threads(count)
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        faiss.omp_set_num_threads(before[1])


def setting_of(options: Options, data: Data) -> Setting:
    """What engines are built for. Building takes all cores, searching what the options say."""
    return Setting(
        k=options.k,
        recall=options.recall,
        calibration=data.calibration,
        hnsw_m=options.hnsw_m,
        build_threads=os.cpu_count() or 1,
        search_threads=options.threads,
        capacity=_ROOM * len(data.vectors) + 100_000,
        seed=options.seed,
    )


def measure(options: Options, data: Data, setting: Setting) -> dict[str, Any]:
    """The results: engines, stages of exact search, streaming if it was asked for, and how long each phase took."""
    kinds: list[type[Engine]] = [*_OURS, *(PEERS[peer] for peer in options.peers)]
    phases = _Phases()
    Engine.name_items(setting.capacity)
    with phases.phase("truth"), threads(setting.build_threads):
        truth = find_truth(data.vectors, data.queries, options.k)
    with phases.phase("build"):
        _warm_up(kinds, setting, data)
        engines, rows = _build(kinds, setting, data)
    with phases.phase("tune"):
        _tune(engines, rows, data, truth)
    _measure_all(engines, rows, data, truth, options, phases)
    with phases.phase("stages"):
        stages = time_stages(engines[0], data, Timing(options.repeats, options.seconds / 2))
    results = {"engines": rows, "topk": stages, "violations": sum(engine.index.violations for engine in engines[: len(_OURS)])}
    efforts = {engine.name: engine.effort for engine in engines}
    engines.clear()
    if options.streaming:
        with phases.phase("streaming"):
            results["streaming"] = stream(kinds, setting, data, efforts)
    return results | {"phases_s": phases.seconds}


def _measure_all(
    engines: Sequence[Engine], rows: Sequence[dict[str, Any]], data: Data, truth: Truth, options: Options, phases: _Phases
) -> None:
    timing = Timing(options.repeats, options.seconds)
    with phases.phase("latency"):
        by_batch = latencies(engines, data.queries, BATCHES, timing)
    with phases.phase("curves"):
        drawn = curves(engines, data, truth, scale=min(1.0, options.seconds))
    with phases.phase("filters"):
        filters = time_filters(engines, data, timing, seed=options.seed)
    with phases.phase("changes"):
        rates = change_rates(engines, data, timing, seed=options.seed)
    with phases.phase("under writes"):
        alone = {name: batches["1"]["p50_ms"] for name, batches in by_batch.items()}
        thrice = timing._replace(seconds=3 * options.seconds)
        writes = time_under_writes(engines, data, alone, options.under_writes, thrice, seed=options.seed)
    for row in rows:
        name = row["engine"]
        upserts, removes = rates.get(name, (None, None))
        row |= {"batch": by_batch[name], "upserts_per_s": upserts, "removes_per_s": removes}
        row |= {"under_writes": writes.get(name), "filters": filters.get(name), "curve": drawn[name]}


def _tune(engines: Sequence[Engine], rows: Sequence[dict[str, Any]], data: Data, truth: Truth) -> None:
    for engine, row in zip(engines, rows, strict=True):
        target = engine.setting.recall
        reached = tune(engine, data, truth, target)
        row |= {"recall": round(reached, 4), "reached": reached >= target, "settings": engine.settings}


def _warm_up(kinds: Sequence[type[Engine]], setting: Setting, data: Data) -> None:
    """Builds small indexes once, so that threads, buffers and code that a library loads late count for no one."""
    few = np.ascontiguousarray(data.vectors[:_WARM_UP])
    small = setting._replace(k=min(setting.k, len(few)), capacity=2 * len(few))
    for kind in kinds:
        engine = kind(small)
        engine.build(few)
        engine.set_effort(next(iter(engine.efforts), None))
        engine.search(engine.prepare(data.queries[:1]), small.k)


def _build(kinds: Sequence[type[Engine]], setting: Setting, data: Data) -> tuple[list[Any], list[dict[str, Any]]]:
    engines: list[Engine] = []
    rows = []
    for kind in tqdm(kinds, desc="build", unit="engine", leave=False, disable=None):
        engine = kind(setting)
        before = resident_mb()
        started = time.perf_counter()
        with threads(setting.build_threads):
            engine.build(data.vectors)
        build_s = time.perf_counter() - started
        memory_mb = max(0.0, resident_mb() - before)
        engines.append(engine)
        rows.append({"engine": engine.name, "recall": 0.0, "build_s": round(build_s, 3), "memory_mb": round(memory_mb, 1)})
    gc.collect()
    return engines, rows
