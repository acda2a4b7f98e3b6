"""What it would give to serve popularity in place of a vector whose newest event is too old."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.freshness.policies import IntArray
from bench.freshness.ranking import gains
from bench.freshness.replay import POPULARITY, Replayed

LIMITS_S = (600, 3600, 86_400)


def fallbacks(replayed: Replayed, policies: Sequence[str]) -> list[dict[str, Any]]:
    """By policy and limit: R@10, and the share of the targets that got popularity for the age of their vector.

    The age is the time between the newest event in the vector and the target: what a server knows that gets no events
    in between.
    """
    questions = replayed.questions
    times_us = questions.histories.kept.time_us
    rows = []
    for name in policies:
        has = replayed.has_vector[name]
        age_us: IntArray = np.where(has, questions.times_us - times_us[np.maximum(replayed.ends[name] - 1, 0)], 0)
        for limit in LIMITS_S:
            replaced = has & (age_us > limit * 1_000_000)
            ranks = np.where(replaced, replayed.ranks[POPULARITY], replayed.ranks[name])
            recall = float(gains(ranks)[:, 0].mean())
            rows.append({"policy": name, "older_than_s": limit, "R@10": recall, "replaced_share": float(replaced.mean())})
    return rows
