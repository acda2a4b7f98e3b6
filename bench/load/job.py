"""What one process of the load is told, and the records it leaves."""

import dataclasses
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.load.channel import Reach
from bench.load.mix import KINDS

PAIR, PAIR_EVENTS, PAIR_RECOMMEND = len(KINDS), len(KINDS) + 1, len(KINDS) + 2
NAMES = (*KINDS, "pair", "pair_events", "pair_recommend")
"""Kinds of records: a pair is recorded as a whole and as its two calls."""

UNSENT, REFUSED = 17, 18
"""Beside gRPC's codes: not sent for want of room in this process; an event that was refused in a reply that was OK."""

RECORD = struct.Struct("<dffBB")
RECORDS = np.dtype([("due", "<f8"), ("taken", "<f4"), ("late", "<f4"), ("kind", "u1"), ("code", "u1")])
"""due: seconds since the start; taken: seconds from due to the answer; late: seconds from due to sending."""


@dataclass(frozen=True)
class Phase:
    """A stretch of time in which the reads come at `factor` times their rate."""

    seconds: float
    factor: float = 1.0


@dataclass(frozen=True)
class Load:
    """What is asked of all processes together."""

    reach: Reach
    ids: str  # path
    phases: Sequence[Phase]
    warm_up_s: float
    rates: Mapping[str, float]  # calls a second by kind; kinds of KINDS, and "pair"
    limit: int
    dim: int
    deadline_s: float
    seed: int
    connections: int = 1
    replay: str | None = None  # path
    replay_speed: float = 1.0
    releases: str | None = None  # path, see bench.load.releases
    probes_per_s: float = 1.0  # of freshness
    is_echo: bool = False  # replies mean nothing

    @property
    def seconds(self) -> float:
        """From the start to the last arrival, warm-up included."""
        return sum(phase.seconds for phase in self.phases)


@dataclass(frozen=True)
class Job:
    """One process's part of a load."""

    load: Load
    part: int
    parts: int
    run: str  # unique
    records: str  # path, gets records of RECORDS

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Job":
        values: dict[str, Any] = json.loads(text)
        load = values["load"]
        load["reach"] = Reach(**load["reach"])
        load["phases"] = [Phase(**phase) for phase in load["phases"]]
        return cls(**values | {"load": Load(**load)})
