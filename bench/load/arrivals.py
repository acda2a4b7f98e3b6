"""When calls are due: a Poisson process, made as it is needed, so that a long run needs no more memory than a short one."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bench.load.job import NAMES, Phase
from bench.load.mix import KINDS, Replay

_AT_ONCE = 1_024
_NOT_SCALED = ("events", "pair")


class Arrival(NamedTuple):
    """A call that is due `due` seconds after the start. `pick` chooses the request; for a replay it is the event's number."""

    due: float
    kind: int
    pick: int


REPLAYED = KINDS.index("events") + 100
"""The kind of an arrival that is an event of a replay."""


def arrivals(rates: Mapping[str, float], phases: Sequence[Phase], random: np.random.Generator) -> Iterator[Arrival]:
    """Arrivals of all kinds, in order. A phase's factor multiplies the rates of reads; events and pairs keep theirs."""
    begin = 0.0
    for phase in phases:
        scaled = {name: rate * (1.0 if name in _NOT_SCALED else phase.factor) for name, rate in rates.items() if rate}
        yield from _of_one_phase(scaled, begin, begin + phase.seconds, random)
        begin += phase.seconds


def _of_one_phase(rates: Mapping[str, float], begin: float, end: float, random: np.random.Generator) -> Iterator[Arrival]:
    total = sum(rates.values())
    if not total:
        return
    kinds = np.array([NAMES.index(name) for name in rates])
    shares = np.array(list(rates.values())) / total
    due = begin
    while True:
        times = due + np.cumsum(random.exponential(1 / total, _AT_ONCE))
        chosen = kinds[random.choice(len(kinds), size=_AT_ONCE, p=shares)]
        picks = random.integers(0, 2**62, _AT_ONCE)
        for found in zip(times.tolist(), chosen.tolist(), picks.tolist(), strict=True):
            if found[0] >= end:
                return
            yield Arrival(*found)
        due = float(times[-1])


def replay_arrivals(replay: Replay, part: int, parts: int, seconds: float) -> Iterator[Arrival]:
    """This process's part of the events that fall into the run."""
    for number in range(part, len(replay.due), parts):
        due = float(replay.due[number])
        if due >= seconds:
            return
        yield Arrival(due, REPLAYED, number)
