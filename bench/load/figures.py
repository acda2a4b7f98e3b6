"""Records to figures: latencies from the time when calls were due, codes, rates, and how late the calls were sent."""

from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np
from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]
from numpy.typing import NDArray

from bench.load.job import NAMES, PAIR, PAIR_EVENTS, PAIR_RECOMMEND, REFUSED, UNSENT
from bench.load.mix import KINDS

HIGHEST_US = 3_600_000_000
DIGITS = 3
LATE_MS = 5.0  # a run whose calls were sent later than that (p99) measures the client
_EVENTS = KINDS.index("events")
_SHED = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
CODES = {code.value[0]: code.name for code in grpc.StatusCode} | {UNSENT: "NOT_SENT", REFUSED: "EVENT_REFUSED"}
MOST_WINDOWS = 600


def histogram(seconds: NDArray[Any] | Sequence[float]) -> HdrHistogram:
    """An HdrHistogram of microseconds, 3 digits."""
    found = HdrHistogram(1, HIGHEST_US, DIGITS)
    values, counts = np.unique(
        np.clip(np.asarray(seconds, dtype=np.float64) * 1e6, 1, HIGHEST_US).astype(np.int64), return_counts=True
    )
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        found.record_value(value, count)
    return found


def encoded(found: HdrHistogram) -> str:
    """HdrHistogram's own compressed form, in base64."""
    text: bytes = found.encode()
    return text.decode("ascii")


def decoded(text: str) -> HdrHistogram:
    return HdrHistogram.decode(text.encode("ascii"))


def latency_ms(found: HdrHistogram) -> dict[str, float | None]:
    """p50, p90, p99, p99_9 and max; None for an empty one."""
    if not found.get_total_count():
        return dict.fromkeys(("p50", "p90", "p99", "p99_9", "max"))
    places = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99_9": 99.9}
    values = {name: round(found.get_value_at_percentile(place) / 1e3, 3) for name, place in places.items()}
    return {**values, "max": round(found.get_max_value() / 1e3, 3)}


def calls_of(records: NDArray[Any]) -> NDArray[Any]:
    """The records of calls: a pair as a whole is none."""
    found: NDArray[Any] = records[records["kind"] != PAIR]
    return found


def main_kinds(records: NDArray[Any]) -> list[int]:
    """The kinds that latency_ms is about: reads, and where there are none, events."""
    there = set(np.unique(records["kind"]).tolist())
    reads = [kind for kind in sorted(there) if kind not in (PAIR, PAIR_EVENTS, _EVENTS)]
    return reads or sorted(there - {PAIR})


def answered(records: NDArray[Any], kinds: Sequence[int]) -> NDArray[Any]:
    """(n,) float32 seconds of the calls that were answered OK."""
    taken: NDArray[Any] = records["taken"][np.isin(records["kind"], kinds) & (records["code"] == 0)]
    return taken


def codes(records: NDArray[Any]) -> dict[str, int]:
    """How many calls ended with each code."""
    numbers, counts = np.unique(records["code"], return_counts=True)
    return {CODES.get(number, str(number)): count for number, count in zip(numbers.tolist(), counts.tolist(), strict=True)}


def outcome(records: NDArray[Any], seconds: float) -> dict[str, Any]:
    """Rates, latencies, codes of any records over a stretch of time."""
    calls = calls_of(records)
    counted = codes(calls)
    ok, shed = counted.get("OK", 0), int((calls["code"] == _SHED).sum())
    return {
        "seconds": round(seconds, 3),
        "calls": len(calls),
        "offered_rps": round(len(calls) / seconds, 2),
        "achieved_rps": round(ok / seconds, 2),
        "latency_ms": latency_ms(histogram(answered(records, main_kinds(records)))),
        "codes": counted,
        "shed": shed,
        "failed": len(calls) - ok - shed,
    }


def by_kind(records: NDArray[Any], seconds: float) -> dict[str, Any]:
    """The same for each kind of call, and for pairs as wholes."""
    found = {}
    for kind in np.unique(records["kind"]).tolist():
        part = records[records["kind"] == kind]
        counted = codes(part)
        found[NAMES[kind]] = {
            "offered_rps": round(len(part) / seconds, 2),
            "achieved_rps": round(counted.get("OK", 0) / seconds, 2),
            "latency_ms": latency_ms(histogram(answered(part, [kind]))),
            "codes": counted,
        }
    return found


def histograms_by_kind(records: NDArray[Any]) -> dict[str, HdrHistogram]:
    """Latencies of what was answered OK."""
    kinds = np.unique(records["kind"]).tolist()
    return {NAMES[kind]: histogram(answered(records, [kind])) for kind in kinds}


def lateness(records: NDArray[Any]) -> HdrHistogram:
    """How much later than due calls were sent. The Recommend of a pair is due when its event is acknowledged."""
    sent = calls_of(records)
    return histogram(sent["late"][(sent["kind"] != PAIR_RECOMMEND) & (sent["code"] != UNSENT)])


def windows(records: NDArray[Any], begin: float, end: float) -> dict[str, Any]:
    """Columns by second, or longer where the run is long: starts, calls, answered, shed, failed, p50, p99 and max in ms."""
    width = max(1.0, np.ceil((end - begin) / MOST_WINDOWS))
    calls = calls_of(records)
    kinds = main_kinds(records)
    columns: dict[str, list[Any]] = {
        name: [] for name in ("start_s", "calls", "ok", "shed", "failed", "p50_ms", "p99_ms", "max_ms")
    }
    order = np.argsort(calls["due"], kind="stable")
    calls = calls[order]
    edges = np.arange(begin, end, width)
    places = np.searchsorted(calls["due"], [*edges.tolist(), np.inf])
    for start, low, high in zip(edges.tolist(), places[:-1], places[1:], strict=True):
        part = calls[low:high]
        ok, shed = int((part["code"] == 0).sum()), int((part["code"] == _SHED).sum())
        taken = answered(part, kinds) * 1e3
        p50, p99, most = np.percentile(taken, [50, 99, 100]).round(3).tolist() if len(taken) else (None,) * 3
        row = (round(start - begin, 3), len(part), ok, shed, len(part) - ok - shed, p50, p99, most)
        for column, value in zip(columns.values(), row, strict=True):
            column.append(value)
    return {"width_s": width, **columns}
