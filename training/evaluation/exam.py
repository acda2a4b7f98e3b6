"""The test in the bundle's item rows: whom to ask, with which history, and what came next."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from index.bundle import Bundle
from training.config import SplitConfig
from training.data.dataset import Dataset
from training.data.interactions import IntArray, Interactions, load_interactions
from training.data.split import Split, cold_targets, make_split


@dataclass(frozen=True)
class Asked:
    """People's histories and what came next; a user's history is the event rows starts … ends - 1, never empty."""

    user: IntArray  # (Q,) int64, the data set's user numbers
    starts: IntArray  # (Q,) int64
    ends: IntArray  # (Q,) int64
    target: IntArray  # (Q,) int64, item row or -1 where the bundle does not know the item


@dataclass(frozen=True)
class Exam:
    """All that is asked of a bundle and its baselines."""

    split: Split  # in the data set's rows
    data: Interactions  # events whose item and type the bundle knows, none of cold items
    past: npt.NDArray[np.bool_]  # (E,) bool, before the test: what baselines count
    test: Asked
    trained: npt.NDArray[np.bool_]  # (Q,) bool, the people of `test` who have training events
    cold: Asked  # the same for targets that are cold items; empty without them
    cold_rows: IntArray  # item rows of the cold items that the bundle knows

    def popularity(self) -> npt.NDArray[np.float64]:
        """(N,) float64: events of each item before the test."""
        return np.bincount(self.data.item[self.past], minlength=self.data.items).astype(np.float64)


def set_exam(dataset: Dataset, bundle: Bundle, config: SplitConfig) -> Exam:
    """Splits on all events first, then leaves out of histories what the bundle does not know, as the service does."""
    whole = load_interactions(dataset.events, dataset.items["item_id"], dict(bundle.manifest.event_types))
    split = make_split(whole, config, real_times=dataset.has_real_times)
    rows = pc.fill_null(pc.index_in(dataset.items["item_id"], value_set=pa.array(bundle.item_ids)), -1)
    row_of = rows.to_numpy().astype(np.int64)  # (items of the data set,) int64, the bundle's item rows
    item = np.append(row_of, -1)[split.data.item]  # an event's item may be in no catalogue: row -1
    known = (item >= 0) & (split.data.kind > 0)
    before = np.append(0, np.cumsum(known))  # known events before each event row
    data = replace(
        split.data,
        item=item[known],
        kind=split.data.kind[known],
        time_us=split.data.time_us[known],
        offsets=before[split.data.offsets],
        items=len(bundle.item_ids),
    )
    users = np.flatnonzero(split.test >= 0)
    test = _asked(data, users, before[split.test[users]], item[split.test[users]])
    row, end = cold_targets(whole, split)
    others = np.flatnonzero(row >= 0)
    cold = _asked(data, others, before[end[others]], row_of[whole.item[row[others]]])
    trained = split.train_end > split.data.offsets[:-1]
    cold_rows = row_of[split.cold]
    return Exam(split, data, _past(split)[known], test, trained[test.user], cold, cold_rows[cold_rows >= 0])


def _asked(data: Interactions, user: IntArray, ends: IntArray, target: IntArray) -> Asked:
    """A history of nothing that the bundle knows has no vector, so nobody is asked with it."""
    starts = data.offsets[user]
    kept = ends > starts
    return Asked(user[kept], starts[kept], ends[kept], target[kept])


def _past(split: Split) -> npt.NDArray[np.bool_]:
    """(E,) bool: events before the test; of someone without a test target all of them, unless the test has a moment."""
    if split.test_from_us is not None:
        return split.data.time_us < split.test_from_us
    ends = np.where(split.test >= 0, split.test, split.data.offsets[1:])
    past: npt.NDArray[np.bool_] = np.arange(len(split.data.item)) < ends[split.data.user]
    return past
