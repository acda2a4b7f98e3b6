"""Collectors as Prometheus reads them: over HTTP, from a real endpoint."""

import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from server.telemetry.endpoint import Metrics


@contextmanager
def serving(*collectors: Collector) -> Iterator[str]:
    metrics = Metrics(*collectors)
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


def read(*collectors: Collector) -> dict[str, float]:
    """One scrape."""
    with serving(*collectors) as url:
        return scrape(url)
