"""Search on one device under writes, and how far it is from what the device's memory allows."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from index.exact import ExactSearch
from index.filters.filter import Filter, MatchAny
from index.gpu.flat import FaissFlatSearch, padding
from index.gpu.knn import Knn, KnnOnGpu, knn_on_cpu
from index.gpu.memory import Needs, faiss_temporary_bytes, free_bytes, plan_memory
from index.gpu.resources import GpuResources
from index.items import ItemIndex
from index.matrix import VectorMatrix
from index.slots import SlotTable

K = 100
BATCHES = (1, 16, 64)
ENGINES = ("exact", "faiss-gpu")
LAUNCH_SECONDS = 1e-4
"""t0 of the bound on a GPU: launching kernels and copying hits. The middle of the 0.05 to 0.15 ms of the formula's source."""
_ROWS_AT_ONCE = 262_144
TENTH = Filter(must=(MatchAny("tenth", frozenset({True})),))
_WRITE_ROWS_MAX = 1_024  # rows of one write at most, so that a search waits for a short one


class Size(NamedTuple):
    """One index to measure."""

    items: int
    dim: int
    filtered: bool = False  # searched with a filter that lets a tenth of the items pass


@dataclass(frozen=True)
class Measured:
    """One engine, size, batch and rate of writes. Latencies in milliseconds."""

    engine: str
    items: int
    dim: int
    filtered: bool
    batch: int
    upserts_per_s: float  # done, not asked for
    wanted_upserts_per_s: int
    searches: int
    p50_ms: float
    p99_ms: float
    with_writes_p99_ms: float  # with the writes that were due before the search, as in the thread that does both
    stale: int  # written vectors that the next search did not find: stays 0
    bound_ms: float
    ratio: float  # p50_ms / bound_ms


def copy_bandwidth(device: str, size: int) -> float:
    """Bytes a second of a copy inside the device's memory, read and written counted each; the median of 9 copies of `size`."""
    source = torch.ones(size // 4, device=device)  # (n,) float32
    target = torch.empty_like(source)
    target.copy_(source)
    seconds = []
    for _ in range(9):
        synchronise(device)
        started = time.perf_counter()
        target.copy_(source)
        synchronise(device)
        seconds.append(time.perf_counter() - started)
    return 2 * size / float(np.median(seconds))


def bound_seconds(
    *, rows: int, columns: int, dtype_bytes: int, batch: int, bandwidth: float, passes: float, t0: float
) -> float:
    """The least time of a search of all rows: t0 + (N·d·s + p·B·N·4) / BW.

    N rows of d columns of s bytes are read once for the whole batch of B, and p times the (B, N) float32 scores are written or
    read. p is 0 for a kernel that keeps scores on the chip, about 5 for a matmul followed by a radix top-k, and 1 or more for
    anything that writes scores to memory. BW is the measured bandwidth of a copy, which takes the place of the 0.8 times the
    card's nominal bandwidth of the formula's source.
    """
    return t0 + (rows * columns * dtype_bytes + passes * batch * rows * 4) / bandwidth


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def make_slots(items: int) -> SlotTable:
    """So many items, every tenth of which `TENTH` lets pass."""
    slots = SlotTable(capacity=items)
    for number in range(items):
        slots.insert(str(number))
    tenth = np.arange(0, items, 10, dtype=np.int64)
    for start in range(0, len(tenth), _ROWS_AT_ONCE):
        part = tenth[start : start + _ROWS_AT_ONCE]
        slots.columns.set(part, [{"tenth": True}] * len(part))
    return slots


def build(engine: str, size: Size, slots: SlotTable, device: str, knn: Knn) -> ItemIndex:
    """An index of unit rows in float16. Comparing with every row takes the same time whatever is in them.

    Raises MemoryPlanError if it does not fit.
    """
    padded = padding(size.dim) if engine == "faiss-gpu" else 0
    plan_memory(_needs(size, padded), device=device).check(free_bytes(device))
    matrix = VectorMatrix(size.dim, device=device, dtype=torch.float16, padded=padded)
    oracle = ExactSearch(slots, matrix)
    search = oracle if engine == "exact" else FaissFlatSearch(slots, matrix, oracle=oracle, knn=knn)
    index = ItemIndex(slots, matrix, search, oracle=oracle)
    drawn = unit_rows(np.random.default_rng(0), min(_ROWS_AT_ONCE, size.items), size.dim)
    for block, start in enumerate(range(0, size.items, _ROWS_AT_ONCE)):
        placed = np.arange(start, min(start + _ROWS_AT_ONCE, size.items), dtype=np.int64)
        # Other rows in each block, for a fraction of what drawing them takes.
        index.set_vectors(placed, np.roll(drawn, block % size.dim, axis=1)[: len(placed)] * (-1) ** (block // size.dim))
    index.finish()
    return index


def unit_rows(random: np.random.Generator, count: int, dim: int) -> NDArray[np.float32]:
    """(count, dim) float32 unit rows."""
    rows = random.standard_normal((count, dim), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def measure(index: ItemIndex, size: Size, *, batch: int, rate: int, seconds: float, bandwidth: float, device: str) -> Measured:
    """Searches one after the other while `rate` vectors a second are overwritten, both in this thread, as the server does."""
    random = np.random.default_rng(batch + rate)
    queries = torch.from_numpy(unit_rows(random, batch, size.dim)).to(device)  # (B, D) float32
    filters = [TENTH] * batch if size.filtered else None
    writes = _Writes(index, size, random, rate)
    for _ in range(3):
        index.search(queries, [K] * batch, filters=filters)
    alone: list[float] = []
    both: list[float] = []
    started = time.perf_counter()
    while (now := time.perf_counter()) < started + seconds or len(alone) < 5:
        writes.do_due(now - started)
        before = time.perf_counter()
        index.search(queries, [K] * batch, filters=filters)  # ends with a copy of the hits to the host, so the device is done
        after = time.perf_counter()
        alone.append(after - before)
        both.append(after - now)
        writes.check_last()
    elapsed = time.perf_counter() - started
    matrix = index.matrix
    bound = bound_seconds(
        rows=size.items,
        columns=matrix.dim + matrix.padded,
        dtype_bytes=2,
        batch=batch,
        bandwidth=bandwidth,
        passes=0.0,
        t0=LAUNCH_SECONDS if device.startswith("cuda") else 0.0,
    )
    p50 = float(np.median(alone))
    return Measured(
        engine=index.engine.kind,
        items=size.items,
        dim=size.dim,
        filtered=size.filtered,
        batch=batch,
        upserts_per_s=round(writes.done / elapsed, 1),
        wanted_upserts_per_s=rate,
        searches=len(alone),
        p50_ms=1e3 * p50,
        p99_ms=1e3 * float(np.quantile(alone, 0.99)),
        with_writes_p99_ms=1e3 * float(np.quantile(both, 0.99)),
        stale=writes.stale,
        bound_ms=1e3 * bound,
        ratio=p50 / bound,
    )


class _Writes:
    """Overwrites vectors at a fixed rate, and asks for the last one written."""

    def __init__(self, index: ItemIndex, size: Size, random: np.random.Generator, rate: int) -> None:
        self._index = index
        self._size = size
        self._random = random
        self._rate = rate
        self._last: tuple[int, NDArray[np.float32]] | None = None
        self._fresh = unit_rows(random, _WRITE_ROWS_MAX, size.dim)  # drawn once: drawing is not what is measured
        self.done = 0
        self.stale = 0

    def do_due(self, elapsed: float) -> None:
        count = min(int(elapsed * self._rate) - self.done, _WRITE_ROWS_MAX, self._size.items)
        if count <= 0:
            return
        start = int(self._random.integers(0, self._size.items - count + 1))
        slots = np.arange(start, start + count, dtype=np.int64)
        vectors = np.roll(self._fresh, self.done, axis=0)[:count]
        self._index.set_vectors(slots, vectors)
        self._index.finish()
        self._last = int(slots[-1]), vectors[-1]
        self.done += count

    def check_last(self) -> None:
        if self._last is None:
            return
        slot, vector = self._last
        [found] = self._index.search(torch.from_numpy(vector[None]).to(self._index.matrix.device), [K])
        self.stale += slot not in found.slots
        self._last = None


def _needs(size: Size, padded: int) -> Needs:
    return Needs(size.items, size.dim, 2, growth=1.0, padded=padded, releases=1, max_batch=max(BATCHES))


def _knn(device: str, sizes: list[Size]) -> Knn:
    if not device.startswith("cuda"):
        return knn_on_cpu
    temporary = max(faiss_temporary_bytes(_needs(size, padding(size.dim))) for size in sizes)
    resources = GpuResources(torch.device(device), temporary_bytes=temporary, cupy=False)
    resources.hand_over()
    return KnnOnGpu(resources)


def measure_all(
    sizes: list[Size],
    rates: tuple[int, ...],
    *,
    seconds: float,
    device: str,
    bandwidth: float,
    told: Callable[[Measured], None],
) -> list[Measured]:
    """Every size, engine, batch and rate, in this order; `told` hears of each as it is done."""
    found = []
    knn = _knn(device, sizes)
    slots = SlotTable()
    for size in sizes:
        if len(slots) != size.items:
            slots = make_slots(size.items)
        for engine in ENGINES if not size.filtered else ENGINES[:1]:  # FAISS on a GPU takes no filter
            index = build(engine, size, slots, device, knn)
            for batch in BATCHES:
                for rate in rates:
                    one = measure(index, size, batch=batch, rate=rate, seconds=seconds, bandwidth=bandwidth, device=device)
                    told(one)
                    found.append(one)
            del index  # before the next one takes its memory
    return found
