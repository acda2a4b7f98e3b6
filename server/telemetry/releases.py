"""Which releases a tenant's server holds."""

from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector


class ReleaseFigures(Collector):
    """Reads pairs of a release's id and its state ("live", "previous", "loaded", "loading", "failed") at every scrape."""

    def __init__(self, tenant: str, releases: Callable[[], Iterable[tuple[str, str]]]) -> None:
        self._tenant = tenant
        self._releases = releases

    def collect(self) -> Iterator[Metric]:
        info = GaugeMetricFamily(
            "towerbridge_release_info",
            "1 for each release that is held, by what it is.",
            labels=["tenant", "release_id", "state"],
        )
        for release_id, state in dict.fromkeys(self._releases()):  # of two loads that failed nobody may know the id
            info.add_metric([self._tenant, release_id, state], 1)
        yield info
