"""Our engines, through the facade that the server uses: string ids in, candidates with ids and scores out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench.index.engines import Engine, Filter, Labels, Setting
from index.build import Built, build_lists
from index.exact import ExactSearch
from index.faiss_lists import FaissLists
from index.filters.filter import Filter as ItemFilter
from index.filters.filter import Range
from index.items import Candidates, ItemIndex
from index.ivf import IvfSearch
from index.lists import InvertedLists
from index.matrix import VectorMatrix
from index.native.lists import NativeLists
from index.probing import KS, SHARES, ProbeTable
from index.slots import SlotTable

ATTRIBUTE = "roll"
_ITEMS_AT_ONCE = 16_384


class TowerbridgeExact(Engine):
    """Compares with every item: `index.exact`."""

    name = "towerbridge-exact"
    changes = True
    filters = True
    rows_per_slice = 32

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._has_attributes = False

    def build(self, vectors: NDArray[np.float32]) -> None:
        """See `Engine.build`. Every item gets an id, a slot and a row, as in the server."""
        slots, matrix = SlotTable(), VectorMatrix(vectors.shape[1])
        self.index = self._index(slots, matrix)
        for start in range(0, len(vectors), _ITEMS_AT_ONCE):
            part = vectors[start : start + _ITEMS_AT_ONCE]
            self.upsert(np.arange(start, start + len(part)), part)

    def _index(self, slots: SlotTable, matrix: VectorMatrix) -> ItemIndex:
        return ItemIndex(slots, matrix, ExactSearch(slots, matrix))

    @property
    def queued(self) -> int:
        """See `Engine.queued`."""
        return self.index.queued

    @property
    def settled(self) -> int:
        """See `Engine.settled`."""
        return self.index.settled

    def prepare(self, queries: NDArray[np.float32]) -> torch.Tensor:
        """See `Engine.prepare`."""
        return torch.from_numpy(queries)

    def prepare_filter(self, filter_: Filter) -> ItemFilter:
        """See `Engine.prepare_filter`. The first call gives every item its attribute."""
        if not self._has_attributes:
            self._has_attributes = True
            slots = self.index.slots.slots([str(label) for label in range(len(filter_.rolls))])
            self.index.slots.columns.set(slots, [{ATTRIBUTE: float(roll)} for roll in filter_.rolls])
            self.index.changed(slots)
            self.index.finish()
        return ItemFilter(must=(Range(ATTRIBUTE, lt=filter_.share),))

    def search(self, queries: torch.Tensor, k: int, filter_: ItemFilter | None = None) -> list[Candidates]:
        """See `Engine.search`."""
        filters = [filter_] * len(queries) if filter_ is not None else None
        return self.index.search(queries, [k] * len(queries), filters=filters)

    def answer(self, queries: torch.Tensor, k: int, filter_: ItemFilter | None = None) -> list[Candidates]:
        """See `Engine.answer`: candidates have their items' ids."""
        return self.search(queries, k, filter_)

    def labels(self, found: list[Candidates]) -> Labels:
        """See `Engine.labels`."""
        labels = np.full((len(found), self.setting.k), -1, dtype=np.int64)
        for row, candidates in enumerate(found):
            labels[row, : len(candidates.item_ids)] = [int(item_id) for item_id in candidates.item_ids]
        return labels

    def upsert(self, labels: Labels, vectors: NDArray[np.float32]) -> None:
        """See `Engine.upsert`."""
        insert = self.index.slots.insert
        slots = np.array([insert(str(label)) for label in labels.tolist()], dtype=np.int64)
        self.index.set_vectors(slots, vectors)

    def remove(self, labels: Labels) -> None:
        """See `Engine.remove`. The slots are free at once, as when no history refers to the items."""
        slots = self.index.slots
        removed = np.array([slots.remove(str(label)) for label in labels.tolist()], dtype=np.int64)
        self.index.clear_vectors(removed)
        for slot in removed.tolist():
            slots.free(slot)

    def settle(self) -> bool:
        """See `Engine.settle`."""
        return self.index.settle()


class TowerbridgeIvf(TowerbridgeExact):
    """Inverted lists that choose how many of them to look into by themselves: `index.ivf`."""

    name = "towerbridge-ivf"
    lists: type[InvertedLists] = NativeLists

    def build(self, vectors: NDArray[np.float32]) -> None:
        """See `Engine.build`. Builds the lists over the live items, and calibrates them on the calibration queries."""
        super().build(vectors)
        slots = np.arange(self.index.slots.extent)
        setting = self.setting
        self._built: Built = build_lists(
            slots,
            self.index.matrix.read(slots),
            torch.from_numpy(setting.calibration),
            target=setting.recall,
            seed=setting.seed,
            kind=self.lists,
        )
        self.set_effort(None)

    def _index(self, slots: SlotTable, matrix: VectorMatrix) -> ItemIndex:
        oracle = ExactSearch(slots, matrix)
        self._search = IvfSearch(slots, matrix, oracle=oracle, lists=self.lists)
        return ItemIndex(slots, matrix, self._search, oracle=oracle)

    @property
    def settings(self) -> dict[str, Any]:
        """See `Engine.settings`."""
        built = self._built
        return {
            "lists": built.lists.count,
            "probes": built.table.unfiltered(self.setting.k),
            "gather_rows": built.gather_rows,
            "checked_recall_at_100": round(built.recall, 4),
        }

    @property
    def curve(self) -> Sequence[float]:
        """See `Engine.curve`: numbers of lists."""
        return [2**power for power in range(2, 9) if 2**power <= self._built.lists.count]

    def set_effort(self, effort: float | None) -> None:
        """See `Engine.set_effort`: a fixed number of lists, or None for the table that was measured."""
        super().set_effort(effort)
        table = self._built.table
        if effort is not None:
            table = ProbeTable(table.target, np.full((len(SHARES), len(KS)), int(effort), dtype=np.int32))
        self.index.finish()
        self._search.use(self._built.lists, table, gather_rows=self._built.gather_rows)


class TowerbridgeFaissIvf(TowerbridgeIvf):
    """The same over FAISS's lists, as where there is no compiler."""

    name = "towerbridge-faiss-ivf"
    lists = FaissLists
