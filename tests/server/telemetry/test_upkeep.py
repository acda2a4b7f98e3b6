"""What an operator must see to in time, as a server with TLS tells it."""

import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from server.app import App
from server.config import Config
from server.journal.backup import back_up, newest_backup
from server.telemetry.upkeep import UpkeepFigures
from tests.server.security.certificates import authority, signed
from tests.server.telemetry.scraped import scrape, serving

EXPIRY = "towerbridge_tls_certificate_expiry_timestamp_seconds"
BACKUP = "towerbridge_backup_timestamp_seconds{tenant=default}"


def test_the_end_of_the_certificate_the_age_of_backups_and_the_disk_are_told(bundle_path: Path, tmp_path: Path):
    pair, data = signed(tmp_path, "server", authority(tmp_path)), tmp_path / "data"
    sections = {
        "security": {"tls_certificate": pair.certificate, "tls_key": pair.key},
        "engine": {"compile": False},
        "listen": {"port": 0},
        "metrics": {"port": 0},
    }
    before = datetime.now(UTC).timestamp()
    app = App(Config(bundle=bundle_path, data=data, **sections))  # type: ignore[arg-type]
    try:
        app.start()
        first = scrape(f"http://127.0.0.1:{app.metrics_port}")
        made = back_up(data / "default").path
        second = scrape(f"http://127.0.0.1:{app.metrics_port}")
    finally:
        app.stop()
    assert first[EXPIRY] - before == pytest.approx(30 * 86_400, abs=60)
    assert f"TLS with a certificate until {datetime.fromtimestamp(first[EXPIRY], UTC):%Y-%m-%d}" in app.report()[0]
    assert BACKUP not in first
    assert before < second[BACKUP] < datetime.now(UTC).timestamp() and newest_backup(data / "default") is not None
    assert 0 < second["towerbridge_data_disk_free_bytes"] <= second["towerbridge_data_disk_total_bytes"]
    assert second["towerbridge_data_disk_total_bytes"] == shutil.disk_usage(made).total


def test_a_backup_is_as_old_as_its_name_says_whatever_was_done_to_it_since(tmp_path: Path):
    backups = tmp_path / "backups"
    backups.mkdir()
    assert newest_backup(tmp_path) is None
    for name in ("journal-20260101T080000000000Z.sqlite", "journal-20260102T080000250000Z.sqlite", "journal-of-mine.sqlite"):
        (backups / name).touch()
    os.utime(backups / "journal-20260101T080000000000Z.sqlite", (2e9, 2e9))
    assert newest_backup(tmp_path) == datetime(2026, 1, 2, 8, 0, 0, 250_000, tzinfo=UTC)


def test_without_the_data_directory_the_other_figures_are_told(tmp_path: Path):
    with serving(UpkeepFigures(None, tmp_path / "gone", {"default": tmp_path / "gone" / "default"})) as url:
        figures = scrape(url)
    assert figures["towerbridge_ready"] == 1
    assert not [name for name in figures if name.startswith(("towerbridge_data_disk", "towerbridge_backup"))]
