"""Figures of people: what became of their events, and how soon vectors follow."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from server.journal.events import Status
from server.users.refresher import LAG_BOUNDS, Refresher
from server.users.vectors import UserVectors

_RESULTS = {
    Status.ACCEPTED: "accepted",
    Status.UNKNOWN_ITEM: "accepted",
    Status.UNKNOWN_TYPE: "accepted",
    Status.DUPLICATE: "duplicate",
    Status.NO_CONSENT: "dropped_no_consent",
    Status.ERASED: "dropped_erased",
    Status.CLASH: "rejected",
}
_REASONS = {Status.NO_CONSENT: "no_consent", Status.ERASED: "erased"}


class PeopleFigures(Collector):
    """Reads a tenant's refresher, its live release's vectors and the count of its events by what became of them."""

    def __init__(
        self,
        tenant: str,
        refresher: Refresher,
        vectors: Callable[[], UserVectors],
        events: Callable[[], Mapping[Status, int]],
    ) -> None:
        """events: how many had each status since the start; those refused before the journal are CLASH."""
        self._tenant = tenant
        self._refresher = refresher
        self._vectors = vectors
        self._events = events

    def collect(self) -> Iterator[Metric]:
        yield self._lag()
        waiting = GaugeMetricFamily(
            "towerbridge_refresh_waiting", "People whose vectors are to be computed in the background.", labels=["tenant"]
        )
        waiting.add_metric([self._tenant], self._refresher.waiting)
        yield waiting
        forgotten = CounterMetricFamily(
            "towerbridge_refresh_forgotten",
            "People who were not refreshed, since too many waited. Their vectors are made when somebody asks.",
            labels=["tenant"],
        )
        forgotten.add_metric([self._tenant], self._refresher.forgotten)
        yield forgotten
        vectors = GaugeMetricFamily("towerbridge_user_vectors", "People whose vectors are in memory.", labels=["tenant"])
        vectors.add_metric([self._tenant], len(self._vectors()))
        yield vectors
        yield from self._outcomes()

    def _lag(self) -> Metric:
        counts = list(self._refresher.lag_counts)
        bounds = [*map(str, LAG_BOUNDS), "+Inf"]
        buckets = [(bound, float(sum(counts[: place + 1]))) for place, bound in enumerate(bounds)]
        lag = HistogramMetricFamily(
            "towerbridge_event_visible_lag_seconds",
            "From commit to stored vector, of people nobody asked about meanwhile.",
            labels=["tenant"],
        )
        lag.add_metric([self._tenant], buckets, self._refresher.lag_seconds)
        return lag

    def _outcomes(self) -> Iterator[Metric]:
        results = dict.fromkeys(_RESULTS.values(), 0)
        events = dict(self._events())
        for status, count in events.items():
            results[_RESULTS[status]] += count
        total = CounterMetricFamily(
            "towerbridge_events", "Events that came in, by what became of them.", labels=["tenant", "result"]
        )
        for result, count in results.items():
            total.add_metric([self._tenant, result], count)
        yield total
        dropped = CounterMetricFamily(
            "towerbridge_events_dropped", "Events that were not kept, by reason.", labels=["tenant", "reason"]
        )
        for status, reason in _REASONS.items():
            dropped.add_metric([self._tenant, reason], events.get(status, 0))
        yield dropped
