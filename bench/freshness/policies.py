"""How late a user's vector is: which events it may be made of when it is asked for."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
NEVER_US = np.iinfo(np.int64).max
"""A time that does not come."""

_SECOND_US = 1_000_000
_PERIODS_S = {"event": 0, "10s": 10, "2min": 120, "10min": 600, "1h": 3600, "1d": 86_400, "never": None}


@dataclass(frozen=True)
class Policy:
    """When a user's vector is made anew."""

    name: str
    period_us: int | None
    """Between two computations of a user's vector; 0: after every event; None: not since the cut."""


POLICIES = tuple(Policy(name, None if seconds is None else seconds * _SECOND_US) for name, seconds in _PERIODS_S.items())


@dataclass(frozen=True)
class Schedule:
    """A policy applied to users: each has a phase of their own, or all vectors would be made at one moment."""

    policy: Policy
    phases_us: IntArray  # (U,) int64, in 0 … period - 1
    lag_us: int
    cut_us: int

    def as_of(self, times_us: IntArray, users: IntArray) -> IntArray:
        """(n,) int64: the vector asked for at a time is made of the events with strictly earlier stamps than this.

        floor((t - phase) / period) * period + phase - lag; with no period t - lag, and the cut where vectors are never new.
        """
        period = self.policy.period_us
        if period is None:
            return np.full(len(times_us), self.cut_us, dtype=np.int64)
        if period == 0:
            return times_us - self.lag_us
        phases = self.phases_us[users]
        return (times_us - phases) // period * period + phases - self.lag_us

    def visible_from(self, times_us: IntArray, users: IntArray) -> IntArray:
        """(n,) int64: the first moment whose vector has the event in it. `as_of`, seen from the event.

        An event at s is in the vector of moment t if and only if s < as_of(t), which is t >= visible_from(s).
        """
        period = self.policy.period_us
        if period is None:
            return np.where(times_us < self.cut_us, times_us + 1, NEVER_US)
        if period == 0:
            return times_us + self.lag_us + 1
        phases = self.phases_us[users]
        return ((times_us + self.lag_us - phases) // period + 1) * period + phases


def schedule(policy: Policy, *, users: int, seed: int, lag_s: float, cut_us: int) -> Schedule:
    """Draws each user's phase: the same share of the period in every policy, by the seed alone."""
    shares = np.random.default_rng(seed).random(users)
    return Schedule(policy, (shares * (policy.period_us or 0)).astype(np.int64), round(lag_s * _SECOND_US), cut_us)
