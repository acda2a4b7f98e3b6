"""The port that Prometheus scrapes and that orchestrators probe."""

import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from server.errors import StartupError
from server.telemetry.endpoint import Metrics
from tests.server.telemetry.scraped import get, own, read, scrape, serving


class Items(Collector):
    """Tells one figure, or fails."""

    def __init__(self, tenant: str, value: float) -> None:
        self.tenant = tenant
        self.value: float | None = value

    def collect(self) -> Iterator[Metric]:
        if self.value is None:
            raise RuntimeError("no index")
        made = GaugeMetricFamily("items", "Items.", labels=["tenant"])
        made.add_metric([self.tenant], self.value)
        yield made


def refused(url: str) -> tuple[int, str]:
    with pytest.raises(urllib.error.HTTPError) as error:
        get(url)
    with error.value:
        return error.value.code, error.value.read().decode()


def test_openmetrics_is_served_to_who_asks_for_it():
    with serving(Items("shop", 70)) as url:
        text, content_type = get(f"{url}/metrics", "application/openmetrics-text; version=1.0.0")
        assert content_type.startswith("application/openmetrics-text") and text.endswith("# EOF\n")
        assert get(f"{url}/metrics?debug=1")[1].startswith("text/plain")


def test_a_metric_of_several_tenants_is_one_with_all_of_their_samples():
    with serving(Items("one", 1), Items("two", 2)) as url:
        text, _ = get(f"{url}/metrics")
        assert text.count("# TYPE items gauge") == 1
        assert own(url) == {"items{tenant=one}": 1, "items{tenant=two}": 2}
        assert own(url) == {"items{tenant=one}": 1, "items{tenant=two}": 2}  # and they do not grow


def test_figures_can_be_added_while_it_serves():
    metrics = Metrics(Items("one", 1))
    url = f"http://127.0.0.1:{metrics.start(0)}"
    try:
        metrics.add(Items("two", 2))
        assert own(url) == {"items{tenant=one}": 1, "items{tenant=two}": 2}
    finally:
        metrics.stop()


def test_other_paths_and_unreadable_figures_are_errors_of_their_own():
    items = Items("shop", 70)
    with serving(items) as url:
        assert refused(f"{url}/")[0] == 404
        items.value = None
        assert refused(f"{url}/metrics")[0] == 500
        items.value = 71
        assert own(url) == {"items{tenant=shop}": 71}


def test_it_is_alive_while_it_runs_and_ready_when_the_server_is():
    reason: list[str | None] = ["loading"]
    with serving(ready=lambda: reason[0]) as url:
        assert get(f"{url}/livez") == ("alive\n", "text/plain; charset=utf-8")
        assert refused(f"{url}/readyz") == (503, "loading\n")
        assert scrape(url)["towerbridge_ready"] == 0
        reason[0] = None
        assert get(f"{url}/readyz")[0] == "ready\n"
        assert scrape(url)["towerbridge_ready"] == 1
        reason[0] = "draining"
        assert refused(f"{url}/readyz") == (503, "draining\n")
        assert get(f"{url}/livez")[0] == "alive\n"


def test_a_probe_by_head_hears_the_same_status_without_a_body():
    reason: list[str | None] = [None]
    with serving(ready=lambda: reason[0]) as url:
        with urllib.request.urlopen(urllib.request.Request(f"{url}/readyz", method="HEAD"), timeout=10) as answer:
            assert (answer.status, answer.headers["Content-Length"], answer.read()) == (200, "6", b"")
        reason[0] = "draining"
        with pytest.raises(urllib.error.HTTPError, match="503"):
            urllib.request.urlopen(urllib.request.Request(f"{url}/readyz", method="HEAD"), timeout=10)


def test_whoever_says_nothing_of_readiness_is_ready():
    with serving() as url:
        assert get(f"{url}/readyz")[0] == "ready\n"


def test_two_apps_in_one_process_have_figures_of_their_own():
    assert read(Items("shop", 70)) == {"items{tenant=shop}": 70}
    with serving(Items("shop", 1)) as one, serving(Items("shop", 2)) as two:
        assert (own(one), own(two)) == ({"items{tenant=shop}": 1}, {"items{tenant=shop}": 2})


def test_a_stopped_endpoint_leaves_no_thread_and_no_port_even_if_a_client_says_nothing():
    before = set(threading.enumerate())
    metrics = Metrics()
    port = metrics.start(0)
    with socket.create_connection(("127.0.0.1", port), timeout=10) as silent:
        get(f"http://127.0.0.1:{port}/metrics")
        metrics.stop()
        assert silent.recv(1) == b""
    metrics.stop()
    assert set(threading.enumerate()) == before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=10)
    assert metrics.start(port) == port
    metrics.stop()


def test_a_port_that_is_taken_is_refused_with_what_to_do():
    metrics = Metrics()
    port = metrics.start(0)
    try:
        with pytest.raises(StartupError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use; give another port"):
            Metrics().start(port)
    finally:
        metrics.stop()
