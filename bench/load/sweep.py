"""The knee: the largest rate of reads that is answered well, geometrically up and then by halves."""

from collections.abc import Callable
from typing import Any, NamedTuple

from bench.load.verdict import passes

_GROWTH = 1.5
_CLOSE = 1.05  # the knee is known to 5 %
_LEAST = 1.0
_PLACES = (0.5, 0.75, 0.25)  # of the way between, by logarithm: where to look next if a step there says nothing
_LATE_IN_A_ROW = 2  # steps that say nothing, after which going on up is of no use

Run = Callable[[float, int], dict[str, Any]]
"""A result at a rate; the number is of processes more than usual that may send."""


class Sweep(NamedTuple):
    """What a sweep found. best: the result at the knee, or at the smallest rate if none was answered well.

    client_was_the_limit: whether the search ended at rates that the client could not send, not at the server's knee; the knee
    is then at least what was found.
    """

    knee: float | None
    steps: list[dict[str, Any]]
    best: dict[str, Any]
    client_was_the_limit: bool


def sweep(run: Run, start: float, p99_ms: float, *, late_is_past: bool = True) -> Sweep:
    """Runs at rates from `start`, up until one is past the knee, or down until one is good, then in between.

    A step that was sent late but answered quickly says nothing of the server: it is repeated once, with a process more, and
    then set aside. Slow answers are past the knee even if they were sent late: a busy server makes a client beside it late.
    late_is_past: False for an echo, which has so little to do that it is the client who comes late and makes them slow: to take
    that for the echo's knee would flatter the server.
    """
    search = _Search(run, p99_ms, late_is_past)
    search.up(start)
    search.down(start)
    closed = search.close_in()
    knee = search.low or None
    limited = not closed if knee else search.high is None
    best = search.results[search.low] if knee else search.results[min(search.results)]
    return Sweep(round(knee, 1) if knee else None, search.steps, best, limited)


class _Search:
    """`low` is the largest rate that was good, `high` the smallest that was past the knee."""

    def __init__(self, run: Run, p99_ms: float, late_is_past: bool) -> None:
        self._run = run
        self._p99_ms = p99_ms
        self._late_is_past = late_is_past
        self.low = 0.0
        self.high: float | None = None
        self.steps: list[dict[str, Any]] = []
        self.results: dict[float, dict[str, Any]] = {}

    def up(self, rate: float) -> None:
        late = 0
        while self.high is None and late < _LATE_IN_A_ROW:
            late = 0 if self._settled(rate) else late + 1
            rate *= _GROWTH

    def down(self, rate: float) -> None:
        while not self.low and rate > _LEAST:
            rate /= _GROWTH**2
            self._settled(rate)

    def close_in(self) -> bool:
        """Whether the knee lies between a good rate and one past it that are close."""
        if not self.low or self.high is None:
            return False
        while self.high / self.low > _CLOSE:
            rates = [self.low * (self.high / self.low) ** place for place in _PLACES]
            if not any(self._settled(rate) for rate in rates):
                return False
        return True

    def _settled(self, rate: float) -> bool:
        """Whether a step, or its repetition, told on which side of the knee the rate lies."""
        for more in (0, 1):
            found = self._run(rate, more)
            step = step_of(rate, found, self._p99_ms, late_is_past=self._late_is_past)
            self.steps.append(step)
            self.results[rate] = found
            if step["passed"]:
                self.low = max(self.low, rate)
                return True
            if step["past_knee"]:
                self.high = min(self.high or rate, rate)
                return True
        return False


def step_of(rate: float, found: dict[str, Any], p99_ms: float, *, late_is_past: bool = True) -> dict[str, Any]:
    """A step as the result lists it. Neither `passed` nor `past_knee`: it says nothing of the server."""
    slow = passes(found, p99_ms) if found["calls"] else None
    reasons = [*([slow] if slow else []), *found["invalid_because"]]
    names = ("latency_ms", "codes", "shed", "failed", "send_lateness_ms", "client_cpu", "processes")
    return {
        "rate": round(rate, 2),
        **{name: found[name] for name in ("offered_rps", "achieved_rps")},
        **{name: found["latency_ms"][name] for name in ("p50", "p99")},
        "valid": found["valid"],
        "passed": slow is None and found["valid"],
        "why": "; ".join(reasons) or None,
        "past_knee": slow is not None and (found["valid"] or late_is_past),
        **{name: found[name] for name in names},
    }
