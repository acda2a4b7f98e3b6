"""Collectors as Prometheus reads them: over HTTP, from a real endpoint."""

import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from server.telemetry.endpoint import Metrics


@contextmanager
def serving(*collectors: Collector, ready: Callable[[], str | None] = lambda: None) -> Iterator[str]:
    metrics = Metrics(*collectors, ready=ready)
    port = metrics.start(0)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        metrics.stop()


def get(url: str, accept: str = "") -> tuple[str, str]:
    """Body and content type."""
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": accept}), timeout=10) as reply:
        return reply.read().decode(), reply.headers["Content-Type"]


def scrape(url: str) -> dict[str, float]:
    """Values by name and labels, as Prometheus understands them."""
    text, _ = get(f"{url}/metrics")
    families = text_string_to_metric_families(text)
    return {
        sample.name + "".join(f"{{{k}={v}}}" for k, v in sample.labels.items()): sample.value
        for family in families
        for sample in family.samples
    }


def own(url: str) -> dict[str, float]:
    """What the collectors tell, without what every endpoint tells of its process."""
    about_process = (
        "process_",
        "towerbridge_gc_",
        "towerbridge_gpu_",
        "towerbridge_memory_",
        "towerbridge_ready",
        "towerbridge_threads",
    )
    return {name: value for name, value in scrape(url).items() if not name.startswith(about_process)}


def read(*collectors: Collector) -> dict[str, float]:
    """What the collectors tell in one scrape."""
    with serving(*collectors) as url:
        return own(url)
