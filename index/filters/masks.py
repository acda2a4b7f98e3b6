"""Filters compiled to bitmaps over the slots, cached and kept up to date."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import islice
from types import MappingProxyType, ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.filters.evaluate import IdSlots, check_comparable, evaluate
from index.filters.filter import Filter
from index.slots import SlotTable

_REMEMBERED = 65_536
"""Changes that are remembered; a mask that is further behind is computed anew."""
_BYTES_MAX = 512 * 1024 * 1024
"""What all cached masks may take together, looked at when one is added: a mask takes a byte a slot, and more as it is read."""
_SLOTS_AT_ONCE = 65_536
"""Slots that a step of `prepare` looks at, in a table of more than four times as many: some 0.2 ms."""
_PATCHED = 16_384
"""Up to so many slots a list is kept up to date by inserting; a longer one is found anew when it is asked for."""
_IDS_MAX = 1_000_000
"""Ids in the allow and deny lists of all cached filters together: some 70 bytes each."""


Holds = Callable[[NDArray[np.int64] | slice], NDArray[np.bool_]]
"""Which of some slots have a vector: (n,) int64, or a slice with a start and a stop, -> (n,) bool."""


class SlotMask:
    """Which slots a query may return: live, available, with a vector and passing its filter.

    It belongs to the index's owner thread, and says what was true at the last `MaskCache.mask`, which changes it in place.
    """

    def __init__(self, filter: Filter, passes: NDArray[np.bool_]) -> None:
        self.filter = filter
        self.passes = passes  # (capacity,) bool by slot
        self.count = int(np.count_nonzero(passes))
        self.version = 0  # grows with every change of `passes`
        self._slots: NDArray[np.int64] | None = None
        self._bits: NDArray[np.uint8] | None = None

    @property
    def slots(self) -> NDArray[np.int64]:
        """The slots that pass, ascending: (count,) int64. Computed when asked for, and kept while they are few."""
        if self._slots is None:
            self._slots = np.flatnonzero(self.passes).astype(np.int64, copy=False)
        return self._slots

    @property
    def bits(self) -> NDArray[np.uint8]:
        """`passes` with eight slots a byte, the lowest first, as FAISS takes it. Computed when asked for, then kept."""
        if self._bits is None:
            self._bits = np.packbits(self.passes, bitorder="little")
        return self._bits

    @property
    def nbytes(self) -> int:
        """The memory that it takes."""
        return self.passes.nbytes + sum(array.nbytes for array in (self._slots, self._bits) if array is not None)

    def permits(self, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of the slots pass: (n,) bool. A slot beyond the mask's end, or -1, never does."""
        inside = (slots >= 0) & (slots < len(self.passes))
        permitted: NDArray[np.bool_] = inside & self.passes[np.where(inside, slots, 0)] if len(self.passes) else inside
        return permitted

    def replace(self, passes: NDArray[np.bool_]) -> None:
        """Takes over a new bitmap: (capacity,) bool."""
        if np.array_equal(passes, self.passes):
            return
        self.passes = passes
        self.count = int(np.count_nonzero(passes))
        self.version += 1
        self._slots = self._bits = None

    def grow(self, capacity: int) -> None:
        """Makes room for slots below `capacity`; they do not pass until they are written."""
        self.passes = np.pad(self.passes, (0, capacity - len(self.passes)))
        self.version += 1
        self._bits = None

    def write(self, slots: NDArray[np.int64], passes: NDArray[np.bool_]) -> None:
        """Takes over the new answers for some slots: (n,) int64 ascending, each once, and (n,) bool."""
        changed = self.passes[slots] != passes
        slots, passes = slots[changed], passes[changed]
        if not len(slots):
            return
        self.passes[slots] = passes
        self.count += int(2 * np.count_nonzero(passes) - len(passes))
        self.version += 1
        if self._slots is not None and len(self._slots) > _PATCHED:
            self._slots = None
        elif self._slots is not None:
            kept, added = self._slots[self.passes[self._slots]], slots[passes]
            self._slots = np.insert(kept, np.searchsorted(kept, added), added)
        if self._bits is not None:
            places = np.unique(slots // 8)
            bytes_ = np.zeros((len(places), 8), dtype=bool)
            within = places[:, None] * 8 + np.arange(8)  # (m, 8) slots
            bytes_[within < len(self.passes)] = self.passes[within[within < len(self.passes)]]
            self._bits[places] = np.packbits(bytes_, axis=1, bitorder="little")[:, 0]


class MaskCache:
    """The masks of the filters used last: one cache for each index, for its owner thread only.

    `changed` only remembers which slots changed. A mask evaluates those again when it is used next, or all if they are many.
    """

    def __init__(
        self,
        slots: SlotTable,
        holds: Holds,
        *,
        capacity: int = 64,
        ids_at_once: int = 256,
        xp: ModuleType = np,
    ) -> None:
        """holds: which slots have a vector. capacity: masks kept. xp: what evaluates, see `evaluate`.

        ids_at_once: ids that a step of `prepare` looks up; 256 take up to 0.3 ms, most of which is waiting for memory.
        """
        self._table = slots
        self._holds = holds
        self._capacity = capacity
        self._ids_at_once = ids_at_once
        self._xp = xp
        self._masks: OrderedDict[bytes, SlotMask] = OrderedDict()  # by the filter's key, the one used last at the end
        self._seen: dict[bytes, int] = {}  # by key: how many changes the mask includes
        self._log: NDArray[np.int64] = np.zeros(_REMEMBERED, dtype=np.int64)  # a ring of changed slots
        self._head = 0  # changes so far

    def __len__(self) -> int:
        """The number of masks that are cached."""
        return len(self._masks)

    def mask(self, filter: Filter) -> SlotMask:
        """The filter's mask, up to date. Valid until the next call of `mask` for the same filter.

        Raises FilterError if the filter cannot be compared with any item, although there are some with its attribute.
        """
        check_comparable(filter, self._table.columns)
        mask = self._masks.get(filter.key)
        if mask is None:
            mask = self._keep(filter, self._evaluate_all(filter))
        else:
            self._masks.move_to_end(filter.key)
            self._refresh(mask, self._head - self._seen[filter.key])
        self._seen[filter.key] = self._head
        return mask

    def is_ready(self, filter: Filter) -> bool:
        """Whether `mask` will answer at once, so that there is nothing to `prepare`. Any thread may ask."""
        seen = self._seen.get(filter.key)
        if seen is not None:
            return self._head - seen <= self._caught_up_with()
        return self._table.extent <= 4 * _SLOTS_AT_ONCE and filter.id_count <= self._ids_at_once

    def prepare(self, filter: Filter) -> Iterator[None]:
        """Computes a filter's mask in short steps, if that takes long, so that `mask` finds it later.

        At a million items a hundred thousand ids take 0.1 s, and conditions 10 ms. What changes between the steps is caught up
        with by `mask`. Nothing is computed before the first step: any thread may call this, the owner takes the steps. If there
        is nothing to do, `operator.length_hint` of the steps is 0.
        """
        return iter(()) if self.is_ready(filter) else self._prepare(filter)

    def _prepare(self, filter: Filter) -> Iterator[None]:
        begun = self._head
        known = {}
        for ids in filter.id_lists():
            parts = [np.zeros(0, dtype=np.int64)]
            waiting = iter(ids)
            while some := tuple(islice(waiting, self._ids_at_once)):
                parts.append(self._table.slots(some))
                yield
            known[ids] = np.concatenate(parts)
        passes = np.zeros(len(self._table.live), dtype=bool)
        step = _SLOTS_AT_ONCE if self._table.extent > 4 * _SLOTS_AT_ONCE else self._table.extent
        for start in range(0, extent := self._table.extent, max(step, 1)):
            if start:
                yield
            if self.is_ready(filter):  # somebody else has asked for it meanwhile
                return
            part = slice(start, min(start + step, extent))
            passes[part] = self._evaluate(filter, part, known)
        mask = self._masks.get(filter.key)
        if mask is None:
            self._keep(filter, passes)
        else:
            mask.replace(passes)
        self._seen[filter.key] = begun

    def changed(self, slots: NDArray[np.int64]) -> None:
        """Takes note that vector, life, availability or attributes of slots changed: (n,) int64, in any order."""
        count = len(slots)
        if count <= _REMEMBERED:  # otherwise every mask is too far behind
            start = self._head % _REMEMBERED
            first = min(count, _REMEMBERED - start)
            self._log[start : start + first] = slots[:first]
            self._log[: count - first] = slots[first:]
        self._head += count

    def _refresh(self, mask: SlotMask, behind: int) -> None:
        table = self._table
        if len(mask.passes) < len(table.live):
            mask.grow(len(table.live))
        if behind > self._caught_up_with():
            mask.replace(self._evaluate_all(mask.filter))
        elif behind:
            recent = np.arange(self._head - behind, self._head) % _REMEMBERED
            slots = np.unique(self._log[recent])
            slots = slots[(slots >= 0) & (slots < table.extent)]
            mask.write(slots, self._evaluate(mask.filter, slots))

    def _caught_up_with(self) -> int:
        """How many changes a mask may be behind by to be brought up to date change by change."""
        return min(_REMEMBERED, max(1024, self._table.extent // 4))

    def _keep(self, filter: Filter, passes: NDArray[np.bool_]) -> SlotMask:
        mask = self._masks[filter.key] = SlotMask(filter, passes)
        ids = sum(one.filter.id_count for one in self._masks.values())
        size = sum(one.nbytes for one in self._masks.values())
        while len(self._masks) > 1 and (len(self._masks) > self._capacity or ids > _IDS_MAX or size > _BYTES_MAX):
            key, oldest = self._masks.popitem(last=False)
            ids, size = ids - oldest.filter.id_count, size - oldest.nbytes
            self._seen.pop(key, None)
        return mask

    def _evaluate_all(self, filter: Filter) -> NDArray[np.bool_]:
        """Which slots pass: (capacity,) bool."""
        table = self._table
        passes = np.zeros(len(table.live), dtype=bool)
        passes[: table.extent] = self._evaluate(filter, slice(0, table.extent))
        return passes

    def _evaluate(
        self, filter: Filter, slots: NDArray[np.int64] | slice, known: IdSlots = MappingProxyType({})
    ) -> NDArray[np.bool_]:
        passes = _on_host(evaluate(filter, self._table, slots, xp=self._xp, known=known))
        permitted: NDArray[np.bool_] = passes & self._table.eligible(slots) & self._holds(slots)
        return permitted


def _on_host(array: Any) -> NDArray[Any]:
    # cupy refuses an implicit copy to the host and offers `get`.
    host: NDArray[Any] = array.get() if hasattr(array, "get") else np.asarray(array)
    return host
