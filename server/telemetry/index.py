"""Figures of the live index: how much it holds, how well it finds, and whether it kept its promises."""

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from index.items import ItemIndex
from index.recall import RecallMonitor


class IndexFigures(Collector):
    """Reads a tenant's index and its recall monitor: those that are live at the scrape."""

    def __init__(self, tenant: str, index: Callable[[], ItemIndex], monitor: Callable[[], RecallMonitor | None]) -> None:
        self._tenant = tenant
        self._index = index
        self._monitor = monitor

    def collect(self) -> Iterator[Metric]:
        """Counters begin anew with a release."""
        index, monitor = self._index(), self._monitor()
        kind = InfoMetricFamily("towerbridge_index_kind", "The search engine in use.", labels=["tenant"])
        kind.add_metric([self._tenant], {"kind": index.engine.kind})
        yield kind
        yield self._gauge("towerbridge_index_items", "Live items, with or without a vector.", len(index.slots))
        yield self._gauge(
            "towerbridge_index_unsettled",
            "Changed items that searches do not find yet as they are now.",
            max(0, index.queued - index.settled),
        )
        yield self._counter(
            "towerbridge_filter_violations",
            "Hits of the engine that were not permitted, and were held back. More than 0 is a bug: report it.",
            index.violations,
        )
        if monitor is not None:
            yield from self._recall(monitor, index.engine.kind)

    def _recall(self, monitor: RecallMonitor, kind: str) -> Iterator[Metric]:
        at_k = GaugeMetricFamily(
            "towerbridge_recall_at_k",
            "Mean share of the true k best items in answers: the last 1,000 sampled queries. Absent below 30.",
            labels=["tenant", "kind"],
        )
        recall = monitor.recall
        if recall is not None:
            at_k.add_metric([self._tenant, kind], recall)
        yield at_k
        yield self._gauge("towerbridge_recall_target", "The recall that the index is calibrated for.", monitor.target)
        yield self._gauge("towerbridge_recall_alarm", "1 while recall is below its alarm threshold.", float(monitor.alarm))
        yield self._counter("towerbridge_recall_samples", "Sampled queries that were compared.", monitor.measured)
        yield self._counter(
            "towerbridge_recall_skipped", "Sampled queries that were not compared: too many waited or changed.", monitor.skipped
        )

    def _gauge(self, name: str, text: str, value: float) -> GaugeMetricFamily:
        made = GaugeMetricFamily(name, text, labels=["tenant"])
        made.add_metric([self._tenant], value)
        return made

    def _counter(self, name: str, text: str, value: float) -> CounterMetricFamily:
        made = CounterMetricFamily(name, text, labels=["tenant"])
        made.add_metric([self._tenant], value)
        return made
