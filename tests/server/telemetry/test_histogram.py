"""Histograms as Prometheus understands them."""

from collections.abc import Iterator

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from server.telemetry.histogram import Histogram, family
from tests.server.telemetry.scraped import read


class One(Collector):
    def __init__(self, rows: dict[str, Histogram]) -> None:
        self.rows = rows

    def collect(self) -> Iterator[Metric]:
        yield family("wait_seconds", "Waited.", ["who"], (([who], histogram) for who, histogram in self.rows.items()))


def test_a_value_on_a_bound_is_below_it_and_one_above_the_last_is_counted_all_the_same():
    histogram = Histogram([0.5, 1, 2])
    for value in (0.5, 0.6, 1.0, 2.5):
        histogram.observe(value)
    assert histogram.buckets() == [("0.5", 1), ("1.0", 3), ("2.0", 3), ("+Inf", 4)]
    assert histogram.total == 4.6


def test_several_are_one_metric_with_labels():
    one, other = Histogram([1]), Histogram([1])
    one.observe(0.25)
    one.observe(7)
    assert read(One({"one": one, "other": other})) == {
        "wait_seconds_bucket{le=1.0}{who=one}": 1,
        "wait_seconds_bucket{le=+Inf}{who=one}": 2,
        "wait_seconds_count{who=one}": 2,
        "wait_seconds_sum{who=one}": 7.25,
        "wait_seconds_bucket{le=1.0}{who=other}": 0,
        "wait_seconds_bucket{le=+Inf}{who=other}": 0,
        "wait_seconds_count{who=other}": 0,
        "wait_seconds_sum{who=other}": 0,
    }


@pytest.mark.parametrize("bounds", [[], [1, 1], [2, 1]])
def test_bounds_that_do_not_ascend_are_refused(bounds: list[float]):
    with pytest.raises(ValueError, match="must ascend"):
        Histogram(bounds)
