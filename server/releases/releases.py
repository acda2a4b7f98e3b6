"""The releases that a tenant holds: one of them is live, all of them follow the catalogue."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from index.filters.values import Grouped
from server.engine.turns import Turns
from server.journal.items import StoredItem
from server.releases.release import Release
from server.releases.warming import Warming


class Made(NamedTuple):
    """Items' vectors in one release."""

    has_vector: NDArray[np.bool_]  # (n,)
    vectors: NDArray[np.float32]  # (n, D) float32 unit rows, zeros where there is none


class Placed(NamedTuple):
    """Items that are in their places."""

    at: int  # `Placement.changes` then
    missed: list[Release]  # releases for which no vectors had been made: the items have none in them until somebody brings them


class Releases:
    """`live` makes the answers. A batch reads it once, and it changes by one assignment between two batches.

    The other releases in `held` follow: every change of an item reaches all of them, so that any can be made live as it is. The
    engine's thread changes items here, and `live`; `held` is replaced whole, under a lock.
    """

    def __init__(self, live: Release) -> None:
        self.live = live
        self.previous: Release | None = None
        self.held: tuple[Release, ...] = (live,)
        self.placement = live.placement
        self.recorder: Callable[[Sequence[StoredItem]], None] | None = None
        """Told on the writer's thread of items that were put, for a release that does not follow yet."""
        self.warming: Warming | None = None
        """Computes people's vectors in the background, before a release is made live."""
        self._kept_up: tuple[Release, ...] = ()
        self._upkeep = Turns(lambda: False)
        self._lock = threading.Lock()
        self.look_after(live)

    def hold(self, release: Release) -> None:
        """Has a release follow from now on. On the writer's thread, so that each change comes before or after it."""
        with self._lock:
            self.held = (*self.held, release)

    def let_go(self, release: Release) -> None:
        """Has a release, which is not live, follow no more."""
        with self._lock:
            self.held = tuple(one for one in self.held if one is not release)
            self._keep_up([one for one in self._kept_up if one is not release])
            if self.previous is release:
                self.previous = None

    def look_after(self, release: Release) -> None:
        """Has the index of a release that is complete rebuilt, saved and watched from now on."""
        with self._lock:
            self._keep_up([*(one for one in self._kept_up if one is not release), release])

    def _keep_up(self, releases: Sequence[Release]) -> None:
        self._kept_up = tuple(releases)
        self._upkeep = Turns(*(one.live_index.upkeep for one in releases))

    def find(self, release_id: str) -> Release | None:
        """The release of this name that is held."""
        return next((release for release in self.held if release.release_id == release_id), None)

    # What follows is for the engine's thread.

    def make_live(self, release: Release) -> None:
        """Answers are made by this release from now on: one assignment, between two batches."""
        self.previous, self.live = self.live, release

    def warm(self) -> bool:
        """Computes a few of the vectors that the next live release should have; False if nothing is left."""
        return self.warming is not None and self.warming.step()

    def upkeep(self) -> bool:
        """Does one job of one release's index for about a millisecond; False if nothing is left for now."""
        return self._upkeep()

    def put_items(self, items: Sequence[tuple[int, str, bool]], made: Mapping[Release, Made], attributes: Grouped) -> Placed:
        """Places items, given as (ordinal, id, available), with their attributes and the vectors that were made of them.

        attributes: those of all items, in order, grouped by the caller: this thread only writes them. An item without vector
        cannot be found. If an item occurs twice the last one counts. Found once it is settled.
        """
        last = sorted({ordinal: place for place, (ordinal, _, _) in enumerate(items)}.values())
        kept = [items[place] for place in last]
        placed = [self.placement.place(ordinal, item_id, available=available) for ordinal, item_id, available in kept]
        slots = np.array(placed, dtype=np.int64)
        self.placement.slots.columns.write(slots, attributes, np.array(last, dtype=np.int64))
        missed = []
        for release in self.held:
            one = made.get(release)
            if one is not None:
                release.set_vectors(slots, one.has_vector[last], one.vectors[last])
            else:
                release.index.clear_vectors(slots)
                missed.append(release)
        return Placed(self.placement.changed(np.array([ordinal for ordinal, _, _ in kept], dtype=np.int64)), missed)

    def withdraw_items(self, item_ids: Sequence[str]) -> None:
        """Ends the life of items; their vectors stay readable for histories. No later search returns them."""
        slots = np.array([self.placement.withdraw(item_id) for item_id in item_ids], dtype=np.int64)
        slots = slots[slots >= 0]
        self.placement.slots.columns.clear(slots)
        self._changed(slots)

    def free_items(self, ordinals: Sequence[int]) -> None:
        """Gives back the slots of removed items that no history refers to any more; live items keep theirs."""
        slots = np.array([self.placement.free(ordinal) for ordinal in ordinals], dtype=np.int64)
        for release in self.held:
            release.index.clear_vectors(slots[slots >= 0])

    def set_available(self, changes: Sequence[tuple[str, bool]]) -> None:
        """Marks live items as available or not. No later search returns one that is not; others are found once settled."""
        slots = []
        for item_id, available in changes:
            slot = self.placement.slots.slot(item_id)
            if slot >= 0:
                self.placement.slots.available[slot] = available
                slots.append(slot)
        self._changed(np.array(slots, dtype=np.int64))

    def settle(self) -> Iterator[None]:
        """Brings all indexes up to date with all changes until now, in short steps; then every search finds them."""
        for release in self.held:
            yield from release.settle()

    def drop_people(self, keys: Sequence[int]) -> None:
        """Forgets people's vectors in all releases; nothing of them stays in memory."""
        for release in self.held:
            release.user_vectors.drop(keys)

    def _changed(self, slots: NDArray[np.int64]) -> None:
        for release in self.held:
            release.index.changed(slots)
