"""Dashboard, alert rules and the guide, beside what a live server says."""

import json
import re
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import towerbridge
import yaml
from prometheus_client.parser import text_string_to_metric_families

from server.journal.backup import back_up
from tests.server.conftest import Served
from tests.server.releasing import serving, wait_until
from tests.server.telemetry.scraped import get

ROOT = Path(__file__).parents[3]
PROMETHEUS = ROOT / "docker" / "prometheus"
ALERTS = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text(encoding="utf-8"))["groups"][0]["rules"]
DASHBOARD = json.loads((ROOT / "docker" / "grafana" / "dashboards" / "towerbridge.json").read_text(encoding="utf-8"))
# A name that Prometheus makes up itself, and what only a machine with a GPU, or a server with TLS, has.
ELSEWHERE = {
    "up",
    "towerbridge_tls_certificate_expiry_timestamp_seconds",
    "towerbridge_gpu_utilisation_ratio",
    "towerbridge_gpu_memory_used_bytes",
    "towerbridge_gpu_memory_total_bytes",
}
_NAME = re.compile(r"\b(?:up|(?:towerbridge|grpc_server|process)_[a-z0-9_]+)\b")


def promtool(*arguments: object, text: str = "") -> subprocess.CompletedProcess[str]:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not there: apt-get install prometheus")
    command = ["promtool", *map(str, arguments)]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=60)


def expressions() -> list[str]:
    """Everything that the dashboard and the alerts ask for."""
    panels = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
    notes = [one["expr"] for one in DASHBOARD["annotations"]["list"]]
    queries = [*panels, *notes, *(rule["expr"] for rule in ALERTS)]
    return [one.replace("$tenant", ".*").replace("$__rate_interval", "1m") for one in queries]


@pytest.fixture(scope="module")
def served(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that has answered some calls."""
    with serving(bundle_path, tmp_path_factory.mktemp("figures"), metrics={"port": 0}, index={"sampled_share": 1.0}) as one:
        client = one.client
        client.record_events([towerbridge.event("view", f"item-{n}", user_id="ann") for n in range(5)])
        for _ in range(40):
            client.recommend(user_id="ann", limit=5)
        with pytest.raises(towerbridge.InvalidArgument):
            client.recommend(user_id="ann", limit=0)
        limit = one.app.tenant.limits.reads
        limit.in_flight += 1000
        with pytest.raises(towerbridge.ResourceExhausted):
            client.get_release()
        limit.in_flight -= 1000
        wait_until(lambda: one.app.tenant.live.live_index.recall.recall is not None)
        back_up(one.app.tenant.folder)
        yield one


def scraped(served: Served) -> tuple[str, dict[str, Any]]:
    """The scrape, and the families in it by name."""
    text, _ = get(f"http://127.0.0.1:{served.app.metrics_port}/metrics")
    return text, {family.name: family for family in text_string_to_metric_families(text)}


def test_promtool_finds_nothing_wrong_with_configuration_and_rules():
    for arguments in (("check", "config", PROMETHEUS / "prometheus.yml"), ("test", "rules", PROMETHEUS / "alerts_test.yml")):
        done = promtool(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_says_how_urgent_it_is_and_what_to_do():
    for rule in ALERTS:
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"] and len(rule["annotations"]["runbook"]) > 40


def test_promtool_finds_nothing_wrong_with_a_live_scrape(served: Served):
    done = promtool("check", "metrics", text=scraped(served)[0])
    assert done.returncode == 0, done.stdout + done.stderr


def test_dashboard_and_alerts_ask_only_for_what_a_live_server_tells(served: Served):
    _, families = scraped(served)
    told = {sample.name for family in families.values() for sample in family.samples}
    asked = {name for query in expressions() for name in _NAME.findall(re.sub(r'"[^"]*"', '""', query))}
    assert len(asked) > 25
    assert asked - told - ELSEWHERE == set()


def test_the_guide_has_every_metric_and_its_labels_and_no_other(served: Served):
    rows = re.findall(
        r"^\| `(\w+)` \| (\w+) \|([^|]*)\|", (ROOT / "docs" / "observability.md").read_text("utf-8"), re.MULTILINE
    )
    guide = {name: {one.strip() for one in labels.split(",") if one.strip()} for name, _, labels in rows}
    _, families = scraped(served)
    live: dict[str, set[str]] = {}
    for family in families.values():
        if family.name.startswith("process_"):
            continue
        ends = {"counter": "_total", "info": "_info"}.get(family.type, "")
        name = family.name if family.name.endswith(ends) else family.name + ends
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        live[name] = labels
    gpu = {name for name in guide if "_gpu_" in name}
    assert set(guide) == set(live) | gpu
    for name, labels in live.items():
        if name not in gpu and labels:
            assert guide[name] == labels, name


def test_a_real_prometheus_understands_every_expression_and_finds_data(served: Served, tmp_path: Path):
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not there: apt-get install prometheus")
    settings = (PROMETHEUS / "prometheus.yml").read_text("utf-8").replace("server:9464", f"127.0.0.1:{served.app.metrics_port}")
    (tmp_path / "prometheus.yml").write_text(settings.replace("10s", "1s"), encoding="utf-8")
    shutil.copy(PROMETHEUS / "alerts.yml", tmp_path)
    port = _free_port()
    flags = [f"--web.listen-address=127.0.0.1:{port}", f"--storage.tsdb.path={tmp_path / 'tsdb'}"]
    process = subprocess.Popen(
        ["prometheus", f"--config.file={tmp_path / 'prometheus.yml'}", *flags],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: _value(port, "sum(towerbridge_index_items)") == 50.0)
        wait_until(lambda: bool(_ask(port, 'rate(grpc_server_handled_total{grpc_method="Recommend"}[1m])')))
        for query in expressions():
            _ask(port, query)  # raises if it is not understood
        assert _value(port, "sum(towerbridge_release_info)") == 1.0
        groups = json.loads(_read(f"http://127.0.0.1:{port}/api/v1/rules"))["data"]["groups"]
        rules = {rule["name"]: rule for group in groups for rule in group["rules"]}
        assert set(rules) == {rule["alert"] for rule in ALERTS}
        wait_until(lambda: all(rule["health"] == "ok" for rule in _rules(port)))
    finally:
        process.terminate()
        process.wait(30)


def _rules(port: int) -> list[dict[str, Any]]:
    groups = json.loads(_read(f"http://127.0.0.1:{port}/api/v1/rules"))["data"]["groups"]
    return [rule for group in groups for rule in group["rules"]]


def _ask(port: int, query: str) -> list[Any]:
    body = json.loads(_read(f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': query})}"))
    result: list[Any] = body["data"]["result"]
    return result


def _value(port: int, query: str) -> float | None:
    try:
        result = _ask(port, query)
    except OSError:
        return None  # it is not up yet
    return float(result[0]["value"][1]) if result else None


def _read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as reply:
        body: str = reply.read().decode()
        return body


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
