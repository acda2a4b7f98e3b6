"""Which targets a warm start is trained on: all that its bundle was not taught, and a sample of what it was.

Histories always stay whole, since a user's vector needs the last events, old or new; only targets are chosen. Without
any old ones the towers would forget them for the sake of the new (catastrophic forgetting; replay: arXiv 1902.10486).
"""

from dataclasses import replace

import numpy as np

from training.config import SplitConfig
from training.data.interactions import BoolArray, IntArray, Interactions, selected
from training.data.split import Split, make_split


def replayed(data: Interactions, since_us: int, *, share: float, seed: int) -> BoolArray:
    """(U,) bool: a seeded `share` of the users, others with each `since_us`."""
    again: BoolArray = np.random.default_rng([seed, max(since_us, 0) // 10**6]).random(data.users) < share
    return again


def taught_before(data: Interactions, since_us: int, split: SplitConfig) -> IntArray:
    """(U,) int64: of each user's events up to `since_us`, rows data.offsets[u] … this - 1 are those that a bundle trained
    with `split` was taught.

    What it held out then, such as each user's last two items, is new to it now. Events that came in late count as taught.
    Raises ConfigError where `split` cannot be made of what was there then.
    """
    past = selected(data, lambda rows: data.time_us[rows] <= since_us)  # each user's first events: they are in time order
    starts = data.offsets[:-1]
    if not len(past.item):
        return starts.copy()
    train_end = make_split(past, split.model_copy(update={"cold_items": 0.0})).train_end  # (U,) int64, rows of `past`
    ends: IntArray = starts + train_end - past.offsets[:-1]
    return ends


def untaught(split: Split, taught_end: IntArray) -> Split:
    """The split without the targets before `taught_end` (U,) rows: what a bundle was taught cannot test the next one."""
    validation, test = (np.where(rows < taught_end, -1, rows) for rows in (split.validation, split.test))
    return replace(split, validation=validation, test=test)
