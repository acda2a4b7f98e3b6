"""A histogram that costs its writer next to nothing."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from prometheus_client.core import HistogramMetricFamily


class Histogram:
    """Counts values by bucket. One thread writes, any thread reads: there is no lock.

    A scrape may see a value's count a moment before its sum; both are exact as soon as the writer rests.
    """

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        """bounds: upper bounds of the buckets, ascending, each inclusive; one bucket more takes what is above the last."""
        if not bounds or list(bounds) != sorted(set(bounds)):
            raise ValueError("bounds must ascend, and there must be at least one")
        self._bounds = tuple(map(float, bounds))
        self.counts = [0] * (len(self._bounds) + 1)  # by bucket, not cumulative
        self.total = 0.0  # the sum of all values

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Upper bounds and how many values are not above them, as Prometheus has it."""
        total, counts = 0, list(self.counts)  # one copy, so that a value that comes in meanwhile is in no bucket
        cumulative: list[tuple[str, float]] = []
        for bound, count in zip((*map(str, self._bounds), "+Inf"), counts, strict=True):
            total += count
            cumulative.append((bound, total))
        return cumulative


def family(
    name: str, text: str, labels: Sequence[str], rows: Iterable[tuple[Sequence[str], Histogram]]
) -> HistogramMetricFamily:
    """Several histograms as one metric; each row has the values of the labels."""
    made = HistogramMetricFamily(name, text, labels=labels)
    for values, histogram in rows:
        made.add_metric(values, histogram.buckets(), histogram.total)
    return made
