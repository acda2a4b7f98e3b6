"""Builds inverted lists over a copy of the rows: train, fill, measure. Nothing of it touches a live index."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from index.faiss_lists import FaissLists
from index.filters.filter import Filter
from index.filters.masks import SlotMask
from index.lists import TRAIN_POINTS, InvertedLists, list_count, train_centroids
from index.masked_lists import ChangeLog, MaskedLists
from index.probing import SHARES, ProbeTable, best_rows, calibrate
from index.search import K_MAX

_log = logging.getLogger(__name__)
_ROWS_AT_ONCE = 16_384
_REPEATS = 7
_CHECKED = 128  # queries
_TIE = 1e-6  # difference of scores that rounding explains
_SHARE_STEP = 1.5  # from one measured share to the next


class BuildStopped(Exception):
    """Nobody wants the lists any more."""


@dataclass(frozen=True)
class Built:
    """Lists that are ready to be searched, and what was measured of them."""

    lists: InvertedLists
    table: ProbeTable
    gather_rows: int
    """Below this number of rows it is faster to gather and score a mask's rows than to search the lists: measured here."""
    recall: float
    """Mean recall@100 of a search of these lists, on up to 128 of the queries."""
    seconds: float


def build_lists(
    slots: NDArray[np.int64],
    rows: torch.Tensor,
    queries: torch.Tensor,
    *,
    target: float,
    seed: int = 0,
    kind: type[InvertedLists] = FaissLists,
    lists: int | None = None,
    centroids: NDArray[np.float32] | None = None,
    list_of: NDArray[np.int32] | None = None,
    table: ProbeTable | None = None,
    gather_rows: int | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> Built:
    """Lists over rows: slots (n,) int64, rows (n, D) float32 or float16 unit rows, n >= 1; queries (Q, D) float32, Q >= 1.

    Deterministic for a seed and a number of threads, but for `gather_rows`, which is timed. queries: a sample of what will be
    asked, on which the recall `target` is calibrated. kind: how rows are kept. lists: how many; by default `list_count`.
    centroids and list_of: from an earlier build, (L, D) float32 and (n,) int32, -1 where unknown; then nothing is trained.
    table and gather_rows: from there too; then nothing is measured but the recall. stopping: looked at now and then; when it is
    true BuildStopped is raised.
    """
    started = time.monotonic()
    if centroids is None:
        count = min(lists or list_count(len(slots)), len(slots))
        order = torch.randperm(len(slots), generator=torch.Generator().manual_seed(seed))
        sample = order[: TRAIN_POINTS * count].sort().values
        centroids = train_centroids(rows.index_select(0, sample).to(torch.float32).numpy(), count, seed=seed)
    inverted = kind(centroids)
    for start in range(0, len(slots), _ROWS_AT_ONCE):
        _go_on(stopping)
        part = slice(start, start + _ROWS_AT_ONCE)
        own = rows[part].to(torch.float32)
        inverted.put(slots[part], own, _known_lists(inverted, own, None if list_of is None else list_of[part]))
    filled = time.monotonic()
    _go_on(stopping)
    if table is None:
        table = calibrate(inverted, slots, rows, queries, target=target, seed=seed)
    _go_on(stopping)
    if gather_rows is None:
        gather_rows = _gather_rows(inverted, table, slots, rows, queries)
    recall = _recall(inverted, table, slots, rows, queries)
    seconds = time.monotonic() - started
    _log.info(
        "%d rows in %d lists, %d of them looked into: recall@100 %.3f, target %.3f, measured on %d queries; %.1f + %.1f s",
        len(slots), inverted.count, table.unfiltered(100), recall, target, len(queries), filled - started,
        time.monotonic() - filled,
    )  # fmt: skip
    return Built(inverted, table, gather_rows, recall, seconds)


def _go_on(stopping: Callable[[], bool]) -> None:
    if stopping():
        raise BuildStopped


def _known_lists(inverted: InvertedLists, rows: torch.Tensor, list_of: NDArray[np.int32] | None) -> NDArray[np.int32] | None:
    if list_of is None:
        return None
    known = list_of.copy()
    unknown = np.flatnonzero(known < 0)
    if len(unknown):
        known[unknown] = inverted.nearest(rows[torch.from_numpy(unknown)])
    return known


def _recall(
    inverted: InvertedLists, table: ProbeTable, slots: NDArray[np.int64], rows: torch.Tensor, queries: torch.Tensor
) -> float:
    """Mean recall@100 of the lists as they will be searched, measured without the help of the table's own figures."""
    sample = queries[:_CHECKED].contiguous()
    k = min(100, len(slots))
    truth = best_rows(rows, sample, k).numpy()  # (Q, k) places
    recalls = []
    for row, query in enumerate(sample):
        # By score: of rows that are the same, which ones are found is chance.
        found = inverted.near(query.numpy(), k, min(table.unfiltered(k), inverted.count))
        places = torch.from_numpy(np.searchsorted(slots, found))
        least = float((rows[truth[row, -1]].to(torch.float32) @ query).item()) - _TIE
        good = rows.index_select(0, places).to(torch.float32) @ query >= least
        recalls.append(min(float(good.sum()) / k, 1.0))
    return float(np.mean(recalls))


def _gather_rows(
    inverted: InvertedLists, table: ProbeTable, slots: NDArray[np.int64], rows: torch.Tensor, queries: torch.Tensor
) -> int:
    """The largest measured subset that is searched faster by gathering all of it than what lies near; at least `K_MAX`."""
    one = queries[:1].contiguous()
    order = inverted.by_nearness(one[0])
    generator = np.random.default_rng(0)
    largest, share = K_MAX, _SHARE_STEP * K_MAX / len(slots)

    def gather(places: NDArray[np.int64]) -> None:
        torch.topk(one @ rows.index_select(0, torch.from_numpy(places)).to(torch.float32).T, min(100, len(places)))

    while share <= SHARES[1]:
        places = np.flatnonzero(generator.random(len(slots)) < share)
        passes = np.zeros(int(slots.max()) + 1, dtype=bool)
        passes[slots[places]] = True
        mask = SlotMask(Filter(), passes)
        listed = MaskedLists(mask, inverted, ChangeLog())
        near = order[: int(table.probes(100, share))]
        some = places[:: max(1, len(places) // max(1, len(listed.near(near, mask, None))))]  # as many, as scattered
        whole = _fastest(lambda: gather(places))  # noqa: B023
        nearby = _fastest(lambda: gather(some)) + _fastest(lambda: listed.near(near, mask, None))  # noqa: B023
        if whole > nearby:
            break
        largest, share = len(places), share * _SHARE_STEP
    return largest


def _fastest(work: Callable[[], object]) -> float:
    """Seconds of the fastest of a few runs."""
    times = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)
