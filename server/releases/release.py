"""A live release: a user tower, an item tower and an index that belong together."""

from collections.abc import Generator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from index.bundle import Bundle, tower_module
from index.filters.filter import Filter
from index.filters.values import Grouped
from server.catalogue.placement import Placement
from server.releases.item_vectors import ItemVectors
from server.releases.live_index import LiveIndex
from server.releases.ranked import first_permitted
from server.users.histories import History
from server.users.vectors import UserVectors


class Release:
    """Everything that makes the vectors of one answer. The engine's thread owns it, except for what is read only.

    Read only: `release_id`, `bundle`, `item_vectors`, `has_user_tower`; any thread may read `user_vectors`. `live_index` holds
    `index` and looks after it.
    """

    def __init__(
        self,
        bundle: Bundle,
        placement: Placement,
        type_names: Sequence[str],
        user_vectors: UserVectors,
        live_index: LiveIndex,
        *,
        device: str,
    ) -> None:
        manifest = bundle.manifest
        self.bundle = bundle
        self.release_id = bundle.release_id
        self.device = torch.device(device)
        self.user_vectors = user_vectors
        self.live_index = live_index
        self.index = live_index.items
        self._placement = placement
        self.item_vectors = ItemVectors(bundle)
        self.has_user_tower = bundle.user_program is not None
        self._user_tower = tower_module(bundle.user_program, device) if bundle.user_program is not None else None
        self._history_length = manifest.history_length or 0
        self._time_features = manifest.time_features
        # The tower's code of each type that histories have: (types,) int64, 0 for one that this release does not know.
        codes = [manifest.event_types.get(name, 0) for name in type_names]
        self._type_codes = np.array(codes, dtype=np.int64)

    def slots_of(self, ordinals: NDArray[np.int64]) -> NDArray[np.int64]:
        """Slots of those of the ordinals that have one: (n,) int64 -> (<= n,) int64."""
        slots = self._placement.slots_of(ordinals)
        return slots[slots >= 0]

    def counts(self, history: History) -> bool:
        """Whether the user tower has anything to read: an event of a known type on an item with a vector."""
        return bool(len(self._read(history)[0]))

    def encode(self, histories: list[History]) -> NDArray[np.float32]:
        """The user vectors of histories that count: (B, D) float32, unit rows.

        The tower reads the last L_max events, in time order, of known types and on items with a vector. Ages count from the
        newest of them, so a vector is a pure function of release and history.
        """
        if self._user_tower is None:
            raise ValueError("the release has no user tower")
        read = [self._read(history) for history in histories]
        lengths = [len(slots) for slots, _, _ in read]
        rows = self.index.matrix.read(np.concatenate([slots for slots, _, _ in read]))  # (sum of lengths, D) float32
        shape = (len(read), max(lengths))
        vectors = torch.zeros(*shape, rows.shape[1], device=self.device)  # (B, L, D) float32
        types = np.zeros(shape, dtype=np.int64)  # (B, L)
        ages = np.zeros(shape, dtype=np.float32)  # (B, L) seconds before the newest
        start = 0
        for row, (slots, codes, times_us) in enumerate(read):
            length = len(slots)
            vectors[row, :length] = rows[start : start + length]
            types[row, :length] = codes
            if self._time_features:
                ages[row, :length] = (times_us[-1] - times_us) / 1e6
            start += length
        inputs = (vectors, torch.from_numpy(types), torch.from_numpy(ages), torch.tensor(lengths))
        with torch.inference_mode():
            encoded: torch.Tensor = self._user_tower(*(one.to(self.device) for one in inputs))  # (B, D) float32
        return encoded.cpu().numpy()

    def item_vector(self, ordinal: int) -> NDArray[np.float32] | None:
        """The vector of an item, live or removed: (D,) float32; None if it has none."""
        slots = self._placement.slots_of(np.array([ordinal]))
        if slots[0] < 0 or not self.index.matrix.holds(slots)[0]:
            return None
        return self.index.matrix.read(slots)[0].cpu().numpy()

    def score(self, vector: NDArray[np.float32], ordinals: NDArray[np.int64]) -> NDArray[np.float32]:
        """Cosines of a (D,) user vector and the items' vectors: (n,) float32, NaN where an item has none."""
        slots = self._placement.slots_of(ordinals)
        held = (slots >= 0) & self.index.matrix.holds(slots)
        scores = np.full(len(ordinals), np.nan, dtype=np.float32)
        if held.any():
            rows = self.index.matrix.read(slots[held])  # (m, D) float32
            scores[held] = (rows @ torch.from_numpy(vector).to(self.device)).cpu().numpy()
        return scores

    def first_permitted(
        self, filter_: Filter, ranking: NDArray[np.int64], limit: int, exclude: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """The first ordinals of a ranking whose items are available and pass the filter, with or without a vector.

        ranking, exclude: ordinals, (n,) int64. Returns (<= limit,) int64 in the ranking's order.
        """
        return first_permitted(self.index, self._placement, filter_, ranking, limit, exclude)

    def put_items(
        self,
        items: list[tuple[int, str, bool]],
        has_vector: NDArray[np.bool_],
        vectors: NDArray[np.float32],
        attributes: Grouped,
    ) -> None:
        """Places items, given as (ordinal, id, available), with their vectors, (n,) bool, (n, D) float32, and attributes.

        attributes: those of all items, in order, grouped by the caller: this thread only writes them.
        An item without vector cannot be found. If an item occurs twice the last one counts. Found once it is settled.
        """
        last = sorted({ordinal: place for place, (ordinal, _, _) in enumerate(items)}.values())
        placed = [self._placement.place(items[place][0], items[place][1], available=items[place][2]) for place in last]
        slots = np.array(placed, dtype=np.int64)
        has_vector, vectors = has_vector[last], vectors[last]
        self._placement.slots.columns.write(slots, attributes, np.array(last, dtype=np.int64))
        self.index.clear_vectors(slots[~has_vector])
        self.index.set_vectors(slots[has_vector], vectors[has_vector])

    def settle(self) -> Generator[None]:
        """Brings the index up to date with all changes until now, in short steps; then every search finds them."""
        changes = self.index.queued
        while self.index.settled < changes:
            yield
            self.index.settle()

    def withdraw_items(self, item_ids: list[str]) -> None:
        """Ends the life of items; their vectors stay readable for histories. No later search returns them."""
        slots = np.array([self._placement.withdraw(item_id) for item_id in item_ids], dtype=np.int64)
        slots = slots[slots >= 0]
        self._placement.slots.columns.clear(slots)
        self.index.changed(slots)

    def free_items(self, ordinals: Sequence[int]) -> None:
        """Gives back the slots of removed items that no history refers to any more; live items keep theirs."""
        slots = np.array([self._placement.free(ordinal) for ordinal in ordinals], dtype=np.int64)
        self.index.clear_vectors(slots[slots >= 0])

    def set_available(self, changes: list[tuple[str, bool]]) -> None:
        """Marks live items as available or not. No later search returns one that is not; others are found once settled."""
        slots = []
        for item_id, available in changes:
            slot = self._placement.slots.slot(item_id)
            if slot >= 0:
                self._placement.slots.available[slot] = available
                slots.append(slot)
        self.index.changed(np.array(slots, dtype=np.int64))

    def _read(self, history: History) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """What the tower reads of a history: slots, type codes, times in microseconds; parallel, oldest first."""
        codes = self._type_codes[history.types]
        slots = self._placement.slots_of(history.ordinals)
        counts = (codes > 0) & (slots >= 0)
        counts[counts] = self.index.matrix.holds(slots[counts])
        kept = np.flatnonzero(counts)[-self._history_length :]
        return slots[kept], codes[kept], history.times_us[kept]
