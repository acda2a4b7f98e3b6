"""Where an exact search spends its time: the scores, and choosing the best of them."""

from typing import Any

import numpy as np
import torch

from bench.index.data import Data
from bench.index.latency import Lane, Timing, time_in_turn
from bench.index.ours import TowerbridgeExact
from index.topk import TILE, tile_maxima, tiles_of, top_k, top_k_of_tiles

BATCH = 16


def time_stages(engine: TowerbridgeExact, data: Data, timing: Timing) -> dict[str, Any]:
    """Ratios at batch 16, all in turn: tile-max top-k against torch.topk on the same scores; a search against its matmul alone.

    `tile_topk` starts from scores in memory; a search takes the tiles' maxima block by block while the scores are in the cache,
    and is left with what `tile_topk_of_maxima` does. The matmul alone is one `torch.mm` into memory that is there already, over
    the rows in one piece.
    """
    k = engine.setting.k
    queries = engine.prepare(np.resize(data.queries, (BATCH, data.queries.shape[1])))  # (16, D) float32
    rows = torch.from_numpy(data.vectors)  # (N, D) float32
    padded = torch.full((BATCH, -(-len(rows) // TILE) * TILE), -torch.inf)  # whole tiles, as the engine's blocks are
    padded[:, : len(rows)] = queries @ rows.T
    scores = torch.empty(BATCH, len(rows))
    maxima = tile_maxima(padded)
    tiles = tiles_of((padded.shape[1],), None, padded.device)
    search = engine.index.engine
    lanes = {
        "torch_topk": Lane(lambda number: torch.topk(padded, k, dim=1)),
        "tile_topk": Lane(lambda number: top_k(padded, k)),
        "tile_topk_of_maxima": Lane(lambda number: top_k_of_tiles(padded.view(-1), maxima, tiles, k)),
        "matmul": Lane(lambda number: torch.mm(queries, rows.T, out=scores)),
        "search": Lane(lambda number: search.search(queries, k)),
        "facade": Lane(lambda number: engine.search(queries, k)),
    }
    time_in_turn(list(lanes.values()), timing, progress="stages of exact search")
    times = {name: lane.p50_ms for name, lane in lanes.items()}
    return {
        "batch": BATCH,
        "k": k,
        **{f"{name}_ms": round(time, 4) for name, time in times.items()},
        "topk_speedup": round(times["torch_topk"] / times["tile_topk"], 3),
        "search_over_matmul": round(times["search"] / times["matmul"], 3),
        "facade_over_matmul": round(times["facade"] / times["matmul"], 3),
    }
