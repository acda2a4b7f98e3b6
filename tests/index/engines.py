"""Every engine as the contract suite builds it, and random unit rows."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from index.build import build_lists
from index.exact import ExactSearch
from index.faiss_lists import FaissLists
from index.items import ItemIndex
from index.ivf import IvfSearch
from index.lists import InvertedLists
from index.matrix import VectorMatrix
from index.native.lists import NativeLists
from index.rebuild import Rebuild
from index.slots import SlotTable
from tests.index.gpu.engine import faiss_flat

DIM = 4


def unit_rows(count: int, seed: int, dim: int = DIM) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def exact(dim: int, chunk_rows: int) -> ItemIndex:
    slots, matrix = SlotTable(capacity=2), VectorMatrix(dim, chunk_rows=chunk_rows)
    return ItemIndex(slots, matrix, ExactSearch(slots, matrix))


def exact_float16(dim: int, chunk_rows: int) -> ItemIndex:
    slots, matrix = SlotTable(capacity=2), VectorMatrix(dim, chunk_rows=chunk_rows, dtype=torch.float16)
    return ItemIndex(slots, matrix, ExactSearch(slots, matrix))


def ivf(dim: int, chunk_rows: int, *, lists: type[InvertedLists], dtype: torch.dtype = torch.float32) -> ItemIndex:
    slots, matrix = SlotTable(capacity=2), VectorMatrix(dim, chunk_rows=chunk_rows, dtype=dtype)
    oracle = ExactSearch(slots, matrix)
    return ItemIndex(slots, matrix, IvfSearch(slots, matrix, oracle=oracle, lists=lists), oracle=oracle)


def rebuilt_ivf(dim: int, chunk_rows: int, *, lists: type[InvertedLists]) -> ItemIndex:
    """Its lists are built aside while it is changed and searched."""
    index = ivf(dim, chunk_rows, lists=lists)
    assert isinstance(index.engine, IvfSearch)
    index.watchers.append(Rebuild(index, index.engine, target=0.9, queries=lambda: None, lists=4))
    return index


ENGINES: dict[str, Callable[[int, int], ItemIndex]] = {
    "exact": exact,
    "exact-float16": exact_float16,
    "ivf": partial(ivf, lists=NativeLists),
    "ivf-float16": partial(ivf, lists=NativeLists, dtype=torch.float16),
    "ivf, rebuilt": partial(rebuilt_ivf, lists=NativeLists),
    "faiss-ivf": partial(ivf, lists=FaissLists),
    "faiss-ivf, rebuilt": partial(rebuilt_ivf, lists=FaissLists),
    "faiss-gpu, on a CPU": faiss_flat,
}


def make_lists(index: ItemIndex, *, lists: int = 4, target: float = 0.9, gather_rows: int | None = None) -> None:
    """Gives an approximate engine lists over all that may be returned now; nothing for the others."""
    if isinstance(index.engine, IvfSearch):
        extent = np.arange(index.slots.extent)
        slots = extent[index.slots.eligible(extent) & index.matrix.holds(extent)]
        if len(slots):
            queries = torch.from_numpy(unit_rows(32, 7, index.matrix.dim))
            built = build_lists(
                slots, index.matrix.read(slots), queries, target=target, lists=lists, kind=index.engine.lists_type
            )
            rows = built.gather_rows if gather_rows is None else gather_rows
            index.engine.use(built.lists, built.table, gather_rows=rows)
