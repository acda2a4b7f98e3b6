"""The events in time order, the cut, and what is asked after it."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bench.freshness.policies import IntArray
from index.bundle import Bundle
from training.data.dataset import Dataset
from training.data.interactions import Interactions, first_interactions, load_interactions
from training.errors import DatasetError

SHARE_BEFORE = 0.8


@dataclass(frozen=True)
class Timeline:
    """Everyone's events, and which of them lie after the cut and are asked for.

    Item rows are those of `dataset.items`, -1 for one that is not listed there, which is never asked for. Event rows are
    those of `table`. Users are numbered as they come in it.
    """

    dataset: Dataset
    table: pa.Table  # the events as imported
    events: Interactions
    cut_us: int
    first_seen_us: IntArray  # (N,) int64, of each item's first event by anybody
    asked: IntArray  # (A,) int64, event rows of first interactions after the cut, in time order

    @cached_property
    def known(self) -> NDArray[np.bool_]:
        """(N,) bool: items with an event before the cut."""
        known: NDArray[np.bool_] = self.first_seen_us < self.cut_us
        return known

    @property
    def targets(self) -> IntArray:
        """(T,) int64: those of `asked` whose item was known before the cut."""
        return self.asked[self.known[self.events.item[self.asked]]]

    @property
    def excluded_share(self) -> float:
        """Of the first interactions after the cut, those with items that nobody had touched before it."""
        return 1 - len(self.targets) / len(self.asked)


def read_timeline(dataset: Dataset) -> Timeline:
    """Cuts at the stamp of the event that four fifths come before; those with the same stamp all lie after the cut.

    Raises DatasetError if there is no time, or nothing to ask.
    """
    if not dataset.has_real_times:
        raise DatasetError(
            f"{dataset.path}: has only an order and no times, so nothing in it can be late; give data with times"
        )
    table = dataset.events.table()
    events = load_interactions(table, dataset.items["item_id"])
    cut_us = int(np.sort(events.time_us)[int(SHARE_BEFORE * len(events.time_us))])
    first_seen_us = np.full(events.items, np.iinfo(np.int64).max)
    listed = events.item >= 0
    np.minimum.at(first_seen_us, events.item[listed], events.time_us[listed])
    after = np.flatnonzero(first_interactions(events) & listed & (events.time_us >= cut_us))
    asked = after[np.argsort(events.time_us[after], kind="stable")]
    timeline = Timeline(dataset, table, events, cut_us, first_seen_us, asked)
    if not len(timeline.targets):
        raise DatasetError(f"{dataset.path}: nobody meets a known item for the first time after the cut; give more events")
    return timeline


def in_bundle(timeline: Timeline, bundle: Bundle) -> Interactions:
    """The same events with the bundle's item rows and type codes: -1 and 0 where it does not know them.

    Raises DatasetError for a bundle without a user tower or of other items.
    """
    if bundle.user_tower is None:
        raise DatasetError(f"{bundle.path}: has no user tower; give a bundle that `python -m training fit` wrote")
    ids = timeline.dataset.items["item_id"]
    rows = pc.fill_null(pc.index_in(ids, value_set=pa.array(bundle.item_ids)), -1).to_numpy().astype(np.int64)  # (N,)
    missing = int(np.count_nonzero(rows[timeline.known] < 0))
    if missing * 2 > np.count_nonzero(timeline.known):
        raise DatasetError(
            f"{bundle.path}: does not know {missing:,} of the {np.count_nonzero(timeline.known):,} items from before the cut; "
            "give a bundle that was trained on this data's events before the cut, or a path where one is to be written"
        )
    types = dict(bundle.manifest.event_types)
    coded = load_interactions(timeline.table, ids, types)
    return replace(coded, item=np.append(rows, -1)[coded.item], items=len(bundle.item_ids))
