"""Where an exact search spends its time: the scores, and choosing the best of them."""

from typing import Any

import numpy as np
import torch

from bench.index.data import Data
from bench.index.latency import Lane, Timing, time_in_turn
from bench.index.ours import TowerbridgeExact
from index.topk import TILE, BestSoFar, top_k

BATCH = 16
_BLOCK_ROWS = 131_072


def time_stages(engine: TowerbridgeExact, data: Data, timing: Timing) -> dict[str, Any]:
    """Ratios at batch 16, all in turn: tile-max top-k against torch.topk on the same scores; a search against its matmul alone.

    Top-k is timed twice: on scores in memory, and as a search does it, block by block on scores that are still in the cache
    (`blocks_with_topk` less `blocks`: the same matmuls with and without; None where noise hides it). The matmul alone is timed
    as anyone writes it, with a result of its own, and into memory that is there already.
    """
    k = engine.setting.k
    queries = engine.prepare(np.resize(data.queries, (BATCH, data.queries.shape[1])))  # (16, D) float32
    rows = torch.from_numpy(data.vectors)  # (N, D) float32
    padded = torch.full((BATCH, -(-len(rows) // TILE) * TILE), -torch.inf)  # whole tiles, as the engine's blocks are
    padded[:, : len(rows)] = queries @ rows.T
    scores = torch.empty(BATCH, len(rows))
    room = torch.empty(BATCH * _BLOCK_ROWS)
    parts = torch.split(rows[: len(rows) // TILE * TILE], _BLOCK_ROWS)

    def blocks(best: BestSoFar | None) -> None:
        for part in parts:
            block = room[: BATCH * len(part)].view(BATCH, -1)
            torch.mm(queries, part.T, out=block)
            if best is not None:
                best.add(block)
        if best is not None:
            best.result()

    search = engine.index.engine
    lanes = {
        "torch_topk": Lane(lambda number: torch.topk(padded, k, dim=1)),
        "tile_topk": Lane(lambda number: top_k(padded, k)),
        "blocks": Lane(lambda number: blocks(None)),
        "blocks_with_topk": Lane(lambda number: blocks(BestSoFar(k))),
        "matmul": Lane(lambda number: queries @ rows.T),
        "matmul_into": Lane(lambda number: torch.mm(queries, rows.T, out=scores)),
        "search": Lane(lambda number: search.search(queries, k)),
        "facade": Lane(lambda number: engine.search(queries, k)),
    }
    time_in_turn(list(lanes.values()), timing, progress="stages of exact search")
    times = {name: lane.p50_ms for name, lane in lanes.items()}
    stage = times["blocks_with_topk"] - times["blocks"]  # not above 0: less than the machine's noise
    return {
        "batch": BATCH,
        "k": k,
        **{f"{name}_ms": round(time, 4) for name, time in times.items()},
        "topk_in_search_ms": round(stage, 4) if stage > 0 else None,
        "topk_speedup": round(times["torch_topk"] / stage, 3) if stage > 0 else None,
        "topk_speedup_from_memory": round(times["torch_topk"] / times["tile_topk"], 3),
        "search_over_matmul": round(times["search"] / times["matmul"], 3),
        "search_over_matmul_into": round(times["search"] / times["matmul_into"], 3),
        "facade_over_matmul": round(times["facade"] / times["matmul"], 3),
    }
