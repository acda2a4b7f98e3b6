"""One run: the same vectors into every engine, and every measurement with all engines in turn."""

import gc
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import faiss
import numpy as np
import torch
from tqdm import tqdm

from bench.hardware import hardware
from bench.index.changes import change_rates
from bench.index.data import Data, load_data
from bench.index.engines import Engine, Setting
from bench.index.filtering import time_filters
from bench.index.latency import Timing, latencies
from bench.index.memory import resident_mb
from bench.index.options import InputError, Options
from bench.index.ours import TowerbridgeExact, TowerbridgeIvf
from bench.index.peers import EF_CONSTRUCTION, INSTALLS, PEERS, is_installed, versions
from bench.index.report import plot, table
from bench.index.stages import time_stages
from bench.index.streaming import stream
from bench.index.truth import find_truth
from bench.index.tuning import curves, tune
from bench.index.under_writes import time_under_writes

BATCHES = (1, 16, 64)
_ROOM = 2  # times the items that an engine must have room for: changes add some
_WARM_UP = 2_000
_NOTES = {
    "recall": "an item as good as the last of the true k counts as found, so duplicates tie",
    "effort": "peers: the first ef of a ladder of 12 % steps that reaches the recall on the measured queries themselves; "
    "towerbridge-ivf: chosen by itself on other queries",
    "memory_mb": "growth of the process's resident memory while the index is built, 10^6 bytes; ours hold string ids too",
    "latency": "a call from Python, engines in turn block by block; median over repeats of each repeat's p50 and p99",
    "upserts_per_s": "batches of 256, half replacements and half new, each settled to its end; null: cannot replace or remove",
    "under_writes": "open loop at 20 % of the engine's own capacity, latency from the intended arrival; every upsert probed by "
    "a search when acknowledged, with the clock standing still; rate is what was asked for, upserts_per_s what was reached",
    "filters": "batch 1, one attribute drawn at random for each item; unfiltered_p50_ms in turn with it",
    "streaming": "inserts, deletes, searches 4:4:1 from the first half of the items; p50_ms of the searches between",
}


def run(options: Options) -> dict[str, Any]:
    """Measures everything and writes the JSON and the picture. Raises InputError."""
    _check_peers(options.peers)
    with _threads(options.threads):
        data = load_data(options)
        started = time.monotonic()
        results = _measure(options, data)
        results["settings"]["seconds"] = round(time.monotonic() - started, 1)
    options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    plot(results, options.plot)
    print(table(results))
    print(f"\nwritten: {options.json}, {options.plot}")
    return results


def _check_peers(peers: Sequence[str]) -> None:
    for peer in peers:
        if not is_installed(peer):
            raise InputError(f"the peer {peer} is not installed; pip install {INSTALLS[peer]}, or leave it out of --peers")


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads(), faiss.omp_get_max_threads()
    torch.set_num_threads(count)
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        faiss.omp_set_num_threads(before[1])


def _measure(options: Options, data: Data) -> dict[str, Any]:
    setting = Setting(
        k=options.k,
        recall=options.recall,
        calibration=data.calibration,
        hnsw_m=options.hnsw_m,
        build_threads=os.cpu_count() or 1,
        search_threads=options.threads,
        capacity=_ROOM * len(data.vectors) + 100_000,
        seed=options.seed,
    )
    kinds: list[type[Engine]] = [TowerbridgeExact, TowerbridgeIvf, *(PEERS[peer] for peer in options.peers)]
    with _threads(setting.build_threads):
        truth = find_truth(data.vectors, data.queries, options.k)
    _warm_up(kinds, setting, data)
    engines, rows = _build(kinds, setting, data)
    for engine, row in zip(engines, rows, strict=True):
        row["recall"] = round(tune(engine, data, truth, options.recall), 4)
        row["reached"] = row["recall"] >= round(options.recall, 4)
        row["settings"] = engine.settings
    timing = Timing(options.repeats, options.seconds)
    by_batch = latencies(engines, data.queries, BATCHES, timing)
    drawn = curves(engines, data, truth, scale=min(1.0, options.seconds))
    filters = time_filters(engines, data, timing, seed=options.seed)
    rates = change_rates(engines, data, timing, seed=options.seed)
    alone = {name: batches["1"]["p50_ms"] for name, batches in by_batch.items()}
    thrice = timing._replace(seconds=3 * options.seconds)
    writes = time_under_writes(engines, data, alone, options.under_writes, thrice, seed=options.seed)
    stages = time_stages(engines[0], data, timing)
    efforts = {engine.name: engine.effort for engine in engines}
    for row in rows:
        name = row["engine"]
        row["batch"] = by_batch[name]
        row["upserts_per_s"], row["removes_per_s"] = (
            round(rate, 1) if rate else None for rate in rates.get(name, (None, None))
        )
        row |= {"under_writes": writes.get(name), "filters": filters.get(name), "curve": drawn[name]}
    violations = sum(engine.index.violations for engine in engines[:2])
    results = {"hardware": hardware(), "engines": rows, "topk": stages, "violations": violations}
    engines.clear()
    if options.streaming:
        results["streaming"] = stream([kind(setting) for kind in kinds], data, efforts)
    return results | {"settings": _settings(options, data, setting), "versions": _versions(options.peers), "notes": _NOTES}


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
        with _threads(setting.build_threads):
            engine.build(data.vectors)
        build_s = time.perf_counter() - started
        memory_mb = max(0.0, resident_mb() - before)
        engines.append(engine)
        rows.append({"engine": engine.name, "recall": 0.0, "build_s": round(build_s, 3), "memory_mb": round(memory_mb, 1)})
    gc.collect()
    return engines, rows


def _settings(options: Options, data: Data, setting: Setting) -> dict[str, Any]:
    return {
        "items": len(data.vectors),
        "dim": data.vectors.shape[1],
        "k": options.k,
        "recall": options.recall,
        "source": data.source,
        "measured_queries": len(data.queries),
        "calibration_queries": len(data.calibration),
        "calibration_and_measured_queries_are_disjoint": True,
        "threads": options.threads,
        "build_threads": setting.build_threads,
        "repeats": options.repeats,
        "seconds_per_measurement": options.seconds,
        "hnsw_m": options.hnsw_m,
        "hnsw_ef_construction": EF_CONSTRUCTION,
        "seed": options.seed,
    }


def _versions(peers: Sequence[str]) -> dict[str, str]:
    return {"torch": torch.__version__, "numpy": version("numpy"), "faiss": faiss.__version__, **versions(peers)}
