"""Figures of the index, as Prometheus reads them."""

import numpy as np
import pytest
import torch

from index.items import ItemIndex
from index.recall import RecallMonitor
from server.telemetry.index import IndexFigures
from tests.index.engines import ENGINES, unit_rows
from tests.server.telemetry.scraped import own, serving


@pytest.fixture
def index() -> ItemIndex:
    index = ENGINES["exact"](8, 64)
    slots = np.array([index.slots.insert(f"item-{number}") for number in range(70)])
    index.set_vectors(slots, unit_rows(70, 1, 8))
    return index


def test_a_scrape_says_what_the_live_objects_say(index: ItemIndex):
    monitor = RecallMonitor(index, target=0.95, threshold=0.9, share=1.0)
    index.watchers.append(monitor)
    with serving(IndexFigures("shop", lambda: index, lambda: monitor)) as url:
        assert own(url) == {
            "towerbridge_index_kind_info{kind=exact}{tenant=shop}": 1,
            "towerbridge_index_items{tenant=shop}": 70,
            "towerbridge_index_unsettled{tenant=shop}": 0,
            "towerbridge_filter_violations_total{tenant=shop}": 0,
            "towerbridge_recall_target{tenant=shop}": 0.95,
            "towerbridge_recall_alarm{tenant=shop}": 0,
            "towerbridge_recall_samples_total{tenant=shop}": 0,
            "towerbridge_recall_skipped_total{tenant=shop}": 0,
        }
        for query in torch.from_numpy(unit_rows(30, 2, 8)):
            index.search(query[None], [5])
            while monitor.step():
                pass
        index.slots.remove("item-1")
        index.queued, index.violations, monitor.alarm = index.queued + 3, 2, True
        later = own(url)
    assert later["towerbridge_recall_at_k{kind=exact}{tenant=shop}"] == 1.0
    assert later["towerbridge_recall_samples_total{tenant=shop}"] == 30
    assert later["towerbridge_recall_alarm{tenant=shop}"] == 1
    assert later["towerbridge_index_items{tenant=shop}"] == 69
    assert later["towerbridge_index_unsettled{tenant=shop}"] == 3
    assert later["towerbridge_filter_violations_total{tenant=shop}"] == 2


def test_without_a_monitor_nothing_is_said_of_recall(index: ItemIndex):
    with serving(IndexFigures("shop", lambda: index, lambda: None)) as url:
        assert not [name for name in own(url) if "recall" in name]


def test_the_release_that_is_live_at_the_scrape_is_read(index: ItemIndex):
    live = [index]
    with serving(IndexFigures("shop", lambda: live[0], lambda: None)) as url:
        assert own(url)["towerbridge_index_items{tenant=shop}"] == 70
        live[0] = ENGINES["ivf"](8, 64)
        assert own(url)["towerbridge_index_kind_info{kind=ivf}{tenant=shop}"] == 1
