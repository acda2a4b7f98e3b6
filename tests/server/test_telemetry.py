"""What Prometheus reads, over HTTP."""

import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from index.items import ItemIndex
from index.recall import RecallMonitor
from server.errors import StartupError
from server.telemetry.endpoint import Metrics
from server.telemetry.index import IndexFigures
from tests.index.engines import ENGINES, unit_rows


@contextmanager
def serving(*collectors: Collector) -> Iterator[str]:
    metrics = Metrics(*collectors)
    port = metrics.start(0)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        metrics.stop()


def get(url: str, accept: str = "") -> tuple[str, str]:
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


@pytest.fixture
def index() -> ItemIndex:
    index = ENGINES["exact"](8, 64)
    slots = np.array([index.slots.insert(f"item-{number}") for number in range(70)])
    index.set_vectors(slots, unit_rows(70, 1, 8))
    return index


def test_a_scrape_says_what_the_live_objects_say(index: ItemIndex):
    monitor = RecallMonitor(index, target=0.95, threshold=0.9, share=1.0)
    index.watchers.append(monitor)
    with serving(IndexFigures(lambda: index, lambda: monitor)) as url:
        assert scrape(url) == {
            "towerbridge_index_kind_info{kind=exact}": 1,
            "towerbridge_index_items": 70,
            "towerbridge_index_unsettled": 0,
            "towerbridge_filter_violations_total": 0,
            "towerbridge_recall_target": 0.95,
            "towerbridge_recall_alarm": 0,
            "towerbridge_recall_samples_total": 0,
            "towerbridge_recall_skipped_total": 0,
        }
        for query in torch.from_numpy(unit_rows(30, 2, 8)):
            index.search(query[None], [5])
            while monitor.step():
                pass
        index.slots.remove("item-1")
        index.queued, index.violations, monitor.alarm = index.queued + 3, 2, True
        later = scrape(url)
    assert later["towerbridge_recall_at_k{kind=exact}"] == 1.0
    assert later["towerbridge_recall_samples_total"] == 30
    assert later["towerbridge_recall_alarm"] == 1
    assert later["towerbridge_index_items"] == 69
    assert later["towerbridge_index_unsettled"] == 3
    assert later["towerbridge_filter_violations_total"] == 2


def test_without_a_monitor_nothing_is_said_of_recall(index: ItemIndex):
    with serving(IndexFigures(lambda: index, lambda: None)) as url:
        assert not [name for name in scrape(url) if "recall" in name]


def test_the_release_that_is_live_at_the_scrape_is_read(index: ItemIndex):
    live = [index]
    with serving(IndexFigures(lambda: live[0], lambda: None)) as url:
        assert scrape(url)["towerbridge_index_items"] == 70
        live[0] = ENGINES["faiss-ivf"](8, 64)
        assert scrape(url)["towerbridge_index_kind_info{kind=faiss-ivf}"] == 1


def test_openmetrics_is_served_to_who_asks_for_it(index: ItemIndex):
    with serving(IndexFigures(lambda: index, lambda: None)) as url:
        text, content_type = get(f"{url}/metrics", "application/openmetrics-text; version=1.0.0")
        assert content_type.startswith("application/openmetrics-text") and text.endswith("# EOF\n")
        assert get(f"{url}/metrics?debug=1")[1].startswith("text/plain")


def test_other_paths_and_unreadable_figures_are_errors_of_their_own():
    class Broken(Collector):
        broken = False

        def collect(self) -> Iterator[None]:
            if self.broken:
                raise RuntimeError("no index")
            yield from ()

    collector = Broken()
    with serving(collector) as url:
        collector.broken = True
        for path, code in (("/", 404), ("/metrics", 500)):
            with pytest.raises(urllib.error.HTTPError) as refused:
                get(url + path)
            assert refused.value.code == code
            refused.value.close()
        collector.broken = False
        assert get(f"{url}/metrics")[0] == ""


def test_two_apps_in_one_process_have_figures_of_their_own(index: ItemIndex):
    other = ENGINES["exact"](8, 64)
    with serving(IndexFigures(lambda: index, lambda: None)) as one, serving(IndexFigures(lambda: other, lambda: None)) as two:
        assert (scrape(one)["towerbridge_index_items"], scrape(two)["towerbridge_index_items"]) == (70, 0)


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
