"""Figures of the live index: how much it holds, how well it finds, and whether it kept its promises."""

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from index.items import ItemIndex
from index.recall import RecallMonitor


class IndexFigures(Collector):
    """Reads the index and its recall monitor; both are asked for at every scrape, since a release change brings others."""

    def __init__(self, index: Callable[[], ItemIndex], monitor: Callable[[], RecallMonitor | None]) -> None:
        self._index = index
        self._monitor = monitor

    def collect(self) -> Iterator[Metric]:
        """Counters begin anew with a release."""
        index, monitor = self._index(), self._monitor()
        kind = index.engine.kind
        yield InfoMetricFamily("towerbridge_index_kind", "The search engine in use.", {"kind": kind})
        yield _gauge("towerbridge_index_items", "Live items, with or without a vector.", len(index.slots))
        yield _gauge(
            "towerbridge_index_unsettled",
            "Changed items that searches do not find yet as they are now.",
            max(0, index.queued - index.settled),
        )
        yield CounterMetricFamily(
            "towerbridge_filter_violations",
            "Hits of the engine that were not permitted, and were held back. More than 0 is a bug: report it.",
            index.violations,
        )
        if monitor is not None:
            yield from _recall(monitor, kind)


def _recall(monitor: RecallMonitor, kind: str) -> Iterator[Metric]:
    at_k = GaugeMetricFamily(
        "towerbridge_recall_at_k",
        "Mean share of the true k best items in answers: the last 1,000 sampled queries. Absent below 30.",
        labels=["kind"],
    )
    recall = monitor.recall
    if recall is not None:
        at_k.add_metric([kind], recall)
    yield at_k
    yield _gauge("towerbridge_recall_target", "The recall that the index is calibrated for.", monitor.target)
    yield _gauge("towerbridge_recall_alarm", "1 while recall is below its alarm threshold.", float(monitor.alarm))
    yield CounterMetricFamily("towerbridge_recall_samples", "Sampled queries that were compared.", monitor.measured)
    yield CounterMetricFamily(
        "towerbridge_recall_skipped", "Sampled queries that were not compared: too many waited or changed.", monitor.skipped
    )


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value)
