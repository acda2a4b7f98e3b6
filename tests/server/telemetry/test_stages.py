"""Figures of what happens inside a call."""

from server.telemetry.stages import StageFigures, StagesOfTenants
from tests.server.telemetry.scraped import read


def test_every_stage_of_every_tenant_is_told():
    tenants = {"one": StageFigures(), "two": StageFigures()}
    for place, name in enumerate(StageFigures.__slots__):
        getattr(tenants["one"], name).observe(place + 1)
    seen = read(StagesOfTenants(tenants))
    metrics = {
        "batch_size": "towerbridge_batch_size",
        "encode": "towerbridge_encode_seconds",
        "fsync": "towerbridge_journal_fsync_seconds",
        "queue": "towerbridge_queue_seconds",
        "rules": "towerbridge_rules_seconds",
        "search": "towerbridge_search_seconds",
    }
    for place, name in enumerate(StageFigures.__slots__):
        assert seen[f"{metrics[name]}_sum{{tenant=one}}"] == place + 1
        assert seen[f"{metrics[name]}_count{{tenant=two}}"] == 0


def test_a_tenant_that_comes_later_is_read_too():
    tenants: dict[str, StageFigures] = {}
    collector = StagesOfTenants(tenants)
    assert "towerbridge_queue_seconds_count{tenant=late}" not in read(collector)
    tenants["late"] = StageFigures()
    assert read(collector)["towerbridge_queue_seconds_count{tenant=late}"] == 0
