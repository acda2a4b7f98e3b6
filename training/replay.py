"""Which targets a warm start is trained on: all that its bundle was not taught, and a sample of what it was.

Histories always stay whole, since a user's vector needs the last events, old or new; only targets are chosen. Without
any old ones the towers would forget them for the sake of the new (catastrophic forgetting; replay: arXiv 1902.10486).
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from training.config import SplitConfig
from training.interactions import Interactions
from training.split import make_split

BoolArray = npt.NDArray[np.bool_]


def replayed(data: Interactions, since_us: int, *, share: float, seed: int) -> BoolArray:
    """(E,) bool: the events of a seeded `share` of the users, of other users with each `since_us`."""
    again: BoolArray = np.random.default_rng([seed, max(since_us, 0) // 10**6]).random(data.users) < share
    return again[data.user]


def taught_before(data: Interactions, since_us: int, split: SplitConfig) -> BoolArray:
    """(E,) bool: events up to `since_us` that a bundle trained with `split` was taught.

    What it held out then, such as each user's last two items, is new to it now. Events that came in late count as taught,
    and so do those that were held out by a draw over other users.
    """
    old = data.time_us <= since_us  # each user's first events, which are in time order
    if not old.any():
        return old
    before = np.append(0, np.cumsum(old))
    past = replace(data, item=data.item[old], kind=data.kind[old], time_us=data.time_us[old], offsets=before[data.offsets])
    train_end = make_split(past, split.model_copy(update={"cold_items": 0.0})).train_end  # (U,) int64, rows of `past`
    taught = np.zeros(len(old), dtype=np.bool_)
    taught[old] = np.arange(len(past.item)) < train_end[past.user]
    return taught
