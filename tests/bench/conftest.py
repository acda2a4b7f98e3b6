"""A tiny world of bench.world, and a real server of it on loopback, for tests of bench.load."""

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bench.world.__main__ import make_world
from bench.world.ids import BUNDLE, DATA, FILE_NAME
from server.app import App
from server.config import Config


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world that nobody serves from."""
    folder = tmp_path_factory.mktemp("world") / "world"
    make_world(folder, items=60, users=100, dim=8, seed=1, history=5, until=datetime.now(UTC) - timedelta(hours=1))
    return folder


@pytest.fixture(scope="session")
def target(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of a copy of it."""
    folder = tmp_path_factory.mktemp("served") / "world"
    shutil.copytree(world, folder)
    app = App(Config(bundle=folder / BUNDLE, data=folder / DATA, listen={"port": 0, "drain_seconds": 1.0}))  # type: ignore[arg-type]
    app.start()
    yield f"127.0.0.1:{app.port}"
    app.stop()


@pytest.fixture(scope="session")
def ids(world: Path) -> Path:
    """Its list of ids."""
    return world / FILE_NAME


@pytest.fixture
def never_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy this machine is, no run is invalid for being sent late."""
    monkeypatch.setattr("bench.load.result.LATE_MS", float("inf"))
