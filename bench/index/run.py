"""One run: what is asked, measured and written."""

import json
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import faiss
import torch

from bench.hardware import hardware
from bench.index.data import Data, load_data
from bench.index.engines import Setting
from bench.index.measure import measure, setting_of, threads
from bench.index.options import InputError, Options
from bench.index.peers import EF_CONSTRUCTION, INSTALLS, is_installed, versions
from bench.index.report import plot, table

_NOTES = {
    "recall": "an item as good as the last of the true k counts as found, so duplicates tie",
    "effort": "peers: the first ef of a ladder of 12 % steps that reaches the recall on the measured queries themselves; "
    "towerbridge-ivf and -faiss-ivf: chosen by themselves on other queries",
    "memory_mb": "growth of the process's resident memory while the index is built, 10^6 bytes; ours hold string ids too",
    "latency": "a call from Python that ends with the items' ids as strings, for every engine; engines in turn block by block; "
    "median over repeats of each repeat's p50 and p99",
    "upserts_per_s": "batches of 256, half replacements and half new, each settled to its end; null: cannot replace or remove",
    "under_writes": "open loop at 20 % of the engine's own capacity, latency from the intended arrival; every upsert probed by "
    "a search when acknowledged, with the clock standing still; rate is what was asked for, upserts_per_s what was reached",
    "filters": "batch 1, one attribute drawn at random for each item; unfiltered_p50_ms in turn with it",
    "streaming": "inserts, deletes, searches 4:4:1 from the first half of the items; p50_ms of the searches between",
}


def run(options: Options) -> dict[str, Any]:
    """Measures everything and writes the JSON and the picture. Raises InputError."""
    _check_peers(options.peers)
    started = time.monotonic()
    with threads(options.threads):
        data = load_data(options)
        setting = setting_of(options, data)
        results = {"hardware": hardware(), **measure(options, data, setting)}
    settings = _settings(options, data, setting) | {"seconds": round(time.monotonic() - started, 1)}
    results |= {"settings": settings, "versions": _versions(options.peers), "notes": _NOTES}
    options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    plot(results, options.plot)
    print(table(results))
    print(f"\nwritten: {options.json}, {options.plot}")
    return results


def _check_peers(peers: Sequence[str]) -> None:
    for peer in peers:
        if not is_installed(peer):
            raise InputError(f"the peer {peer} is not installed; pip install {INSTALLS[peer]}, or leave it out of --peers")


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
