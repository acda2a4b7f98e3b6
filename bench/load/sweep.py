"""The knee: the largest rate of reads that is answered well, geometrically up and then by halves."""

from collections.abc import Callable
from typing import Any, NamedTuple

from bench.load.result import passes

_GROWTH = 1.5
_CLOSE = 1.05  # the knee is known to 5 %
_LEAST = 1.0


class Sweep(NamedTuple):
    """What a sweep found. best: the result at the knee, or at the smallest rate if none was answered well."""

    knee: float | None
    steps: list[dict[str, Any]]
    best: dict[str, Any]
    client_was_the_limit: bool


def sweep(run: Callable[[float], dict[str, Any]], start: float, p99_ms: float) -> Sweep:
    """Runs at rates from `start`, up until one is not answered well, or down until one is, then in between."""
    steps: list[dict[str, Any]] = []
    results: dict[float, dict[str, Any]] = {}

    def good(rate: float) -> bool:
        found = run(rate)
        why = passes(found, p99_ms)
        late = not found["valid"]
        steps.append(_step(rate, found, why, late))
        results[rate] = found
        return why is None and not late

    low, high = 0.0, start
    while good(high):
        low, high = high, high * _GROWTH
    while not low and high > _LEAST:
        lower = high / _GROWTH**2
        if good(lower):
            low = lower
        else:
            high = lower
    while low and high / low > _CLOSE:
        middle = (low * high) ** 0.5
        if good(middle):
            low = middle
        else:
            high = middle
    best = results[low] if low else results[min(results)]
    beyond = [step for step in steps if step["rate"] > low]
    # A step that is late and slow says nothing for sure of the server; one that is late and quick says that the client gave up.
    limited = bool(beyond) and min(beyond, key=lambda step: step["rate"])["past_knee_because"] is None
    return Sweep(round(low, 1) if low else None, steps, best, limited)


def _step(rate: float, found: dict[str, Any], why: str | None, late: bool) -> dict[str, Any]:
    names = ("offered_rps", "achieved_rps", "latency_ms", "codes", "shed", "failed", "send_lateness_ms", "client_cpu")
    passed = why is None and not late
    return {"rate": round(rate, 2), **{name: found[name] for name in names}, "passed": passed, "past_knee_because": why}
