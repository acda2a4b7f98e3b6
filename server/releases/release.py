"""A release: a user tower, an item tower and an index that belong together."""

from collections.abc import Generator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from index.bundle import Bundle
from index.filters.filter import Filter
from index.ivf import IvfSearch
from server.catalogue.placement import Placement
from server.catalogue.popularity import Popularity
from server.releases.item_rows import ItemRows
from server.releases.item_vectors import ItemVectors
from server.releases.live_index import LiveIndex
from server.releases.ranked import first_permitted
from server.releases.user_tower import user_tower_on
from server.users.histories import History
from server.users.vectors import UserVectors

Read = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
"""What a tower reads of a history: slots, type codes, times in microseconds; parallel, oldest first."""


class Release:
    """Everything that makes the vectors of one answer. The engine's thread owns it, except for what is read only.

    Read only: `release_id`, `bundle`, `item_vectors`, `has_user_tower`; any thread may read `user_vectors` and `popularity`.
    `live_index` holds `index` and looks after it. Slots and attributes are the tenant's, and one for all its releases.
    """

    def __init__(
        self,
        bundle: Bundle,
        placement: Placement,
        type_names: Sequence[str],
        user_vectors: UserVectors,
        live_index: LiveIndex,
        popularity: Popularity,
        *,
        device: str,
        rows: ItemRows | None = None,
    ) -> None:
        """rows: where the bundle's items are, if that is known; else it is looked up here."""
        manifest = bundle.manifest
        self.bundle = bundle
        self.release_id = bundle.release_id
        self.device = torch.device(device)
        self.user_vectors = user_vectors
        self.live_index = live_index
        self.index = live_index.items
        self.placement = placement
        self.popularity = popularity
        self.item_vectors = ItemVectors(bundle, rows)
        self.has_user_tower = bundle.user_program is not None
        self._user_tower = user_tower_on(bundle, self.device)
        self._history_length = manifest.history_length or 0
        self._time_features = manifest.time_features
        self.know_types(type_names)

    def use_user_tower(self, tower: torch.nn.Module) -> None:
        """Encodes with another form of the same tower from now on, such as a compiled one. On the engine's thread.

        It takes inputs on the host and gives vectors on the release's device.
        """
        self._user_tower = tower

    def know_types(self, names: Sequence[str]) -> None:
        """The types that histories have from now on; more may be added behind. Any thread, before a history has a new one."""
        known = self.bundle.manifest.event_types
        # The tower's code of each: (types,) int64, 0 for one that this release does not know.
        self._type_codes: NDArray[np.int64] = np.array([known.get(name, 0) for name in names], dtype=np.int64)

    def seen(self, history: History) -> NDArray[np.int64]:
        """The items of a history's events of types that this release knows, whether they have vectors or not: (n,) int64."""
        known = self._type_codes[history.types] > 0
        return np.unique(history.ordinals[known]).astype(np.int64)

    def slots_of(self, ordinals: NDArray[np.int64]) -> NDArray[np.int64]:
        """Slots of those of the ordinals that have one: (n,) int64 -> (<= n,) int64."""
        slots = self.placement.slots_of(ordinals)
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
        with torch.inference_mode():
            encoded: torch.Tensor = self._user_tower(*self._inputs(read))  # (B, D) float32
        return encoded.cpu().numpy()

    def item_vector(self, ordinal: int) -> NDArray[np.float32] | None:
        """The vector of an item, live or removed: (D,) float32; None if it has none."""
        slots = self.placement.slots_of(np.array([ordinal]))
        if slots[0] < 0 or not self.index.matrix.holds(slots)[0]:
            return None
        return self.index.matrix.read(slots)[0].cpu().numpy()

    def score(self, vector: NDArray[np.float32], ordinals: NDArray[np.int64]) -> NDArray[np.float32]:
        """Cosines of a (D,) user vector and the items' vectors: (n,) float32, NaN where an item has none."""
        slots = self.placement.slots_of(ordinals)
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
        return first_permitted(self.index, self.placement, filter_, ranking, limit, exclude)

    def can_find(self, ordinal: int) -> bool:
        """Whether the item has a vector. Any thread may ask."""
        slots = self.placement.slots_of(np.array([ordinal]))
        return bool(slots[0] >= 0 and self.index.matrix.holds(slots)[0])

    def searchable_count(self) -> int:
        """How many items have a vector and are available. Any thread may ask."""
        available, held = self.placement.slots.available, self.index.matrix.has_vector  # either may be longer
        known = min(len(available), len(held))
        return int(np.count_nonzero(available[:known] & held[:known]))

    def set_vectors(self, slots: NDArray[np.int64], has_vector: NDArray[np.bool_], vectors: NDArray[np.float32]) -> None:
        """Gives each slot its vector, or none: (n,) int64 each once, (n,) bool, (n, D) float32. Found once it is settled."""
        self.index.clear_vectors(slots[~has_vector])
        self.index.set_vectors(slots[has_vector], vectors[has_vector])

    def bring(
        self, ordinals: NDArray[np.int64], has_vector: NDArray[np.bool_], vectors: NDArray[np.float32], *, made_at: int
    ) -> None:
        """`set_vectors` for what took longer to compute: only for items whose content is still that of `made_at`.

        made_at: `Placement.changes` when the content that the vectors were made of was the items'. ordinals: each once.
        """
        still = self.placement.unchanged(ordinals, made_at)
        self.set_vectors(self.placement.slots_of(ordinals[still]), has_vector[still], vectors[still])

    def memory_bytes(self) -> int:
        """Of vectors and index, in bytes, as far as it is known. Any thread may ask."""
        matrix, engine = self.index.matrix, self.index.engine
        rows = min(self.placement.slots.extent, matrix.capacity)
        lists = engine.lists.memory_bytes if isinstance(engine, IvfSearch) and engine.lists is not None else 0
        return rows * (matrix.dim + matrix.padded) * matrix.dtype.itemsize + lists

    def settle(self) -> Generator[None]:
        """Brings the index up to date with all changes until now, in short steps; then every search finds them."""
        changes = self.index.queued
        while self.index.settled < changes:
            yield
            self.index.settle()

    def _inputs(self, read: Sequence[Read]) -> tuple[torch.Tensor, ...]:
        """What the user tower takes: vectors (B, L, D) float32, types (B, L) int64, ages (B, L) float32, lengths (B,) int64.

        On the host. In NumPy, whose calls cost less than torch's.
        """
        if len(read) == 1:  # as most are, and then nothing has to be filled up
            slots, codes, times_us = read[0]
            ages = (times_us[-1] - times_us) / 1e6 if self._time_features else np.zeros(len(slots))
            rows = self.index.matrix.read_on_host(slots)  # (L, D) float32
            alone = rows[None], codes[None], ages.astype(np.float32)[None], np.array([len(slots)])
            return tuple(torch.from_numpy(one) for one in alone)
        lengths = np.array([len(slots) for slots, _, _ in read], dtype=np.int64)
        shape = (len(read), int(lengths.max()))
        rows = self.index.matrix.read_on_host(np.concatenate([slots for slots, _, _ in read]))  # (sum of lengths, D) float32
        vectors = np.zeros((*shape, rows.shape[1]), dtype=np.float32)
        types = np.zeros(shape, dtype=np.int64)
        ages = np.zeros(shape, dtype=np.float32)  # seconds before the newest
        start = 0
        for row, (slots, codes, times_us) in enumerate(read):
            length = len(slots)
            vectors[row, :length] = rows[start : start + length]
            types[row, :length] = codes
            if self._time_features:
                ages[row, :length] = (times_us[-1] - times_us) / 1e6
            start += length
        return tuple(torch.from_numpy(one) for one in (vectors, types, ages, lengths))

    def _read(self, history: History) -> Read:
        codes, slots = self._type_codes.take(history.types), self.placement.slots_of(history.ordinals)
        counts = (codes > 0) & (slots >= 0)
        counts &= self.index.matrix.holds(slots)  # which says something of a slot of -1 too, that does not matter
        if len(codes) <= self._history_length and all(counts.tolist()):
            return slots, codes, history.times_us
        kept = np.flatnonzero(counts)[-self._history_length :]
        return slots[kept], codes[kept], history.times_us[kept]
