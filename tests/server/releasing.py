"""Servers with more than one bundle, for tests of releases."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import towerbridge
from towerbridge import v1

from server.app import App
from server.config import Config
from server.releases.preparing import prepare
from tests.server.conftest import PRESUMED, Clock, Served
from tests.tiny import write_tiny_bundle

PATIENCE_S = 60.0
LIVE, PREVIOUS = v1.ReleaseState.RELEASE_STATE_LIVE, v1.ReleaseState.RELEASE_STATE_PREVIOUS
LOADED, LOADING = v1.ReleaseState.RELEASE_STATE_LOADED, v1.ReleaseState.RELEASE_STATE_LOADING
FAILED = v1.ReleaseState.RELEASE_STATE_FAILED


def write_bundles(folder: Path, names: str = "abc", **options: Any) -> dict[str, str]:
    """Bundles of the same 50 items and other towers, by name: their release ids."""
    return {name: write_tiny_bundle(folder / name, n_items=50, dim=8, seed=seed, **options) for seed, name in enumerate(names)}


@contextmanager
def serving(bundle: Path, data: Path, *, aside: bool = False, **sections: Any) -> Iterator[Served]:
    """aside: bundles are prepared in a process of its own, as elsewhere; else in this one, which has everything imported."""
    clock = Clock()
    sections.setdefault("consent", PRESUMED)
    config = Config(bundle=bundle, data=data, listen={"port": 0, "drain_seconds": 1.0}, **sections)  # type: ignore[arg-type]
    app = App(config, clock_us=clock)
    if not aside:
        app.tenant.control.prepare = lambda order, progress, stopping: prepare(order, progress)
    app.start()
    served = Served(app, towerbridge.Client(f"127.0.0.1:{app.port}", timeout_s=PATIENCE_S), clock)
    try:
        yield served
    finally:
        served.stop()


def states(client: towerbridge.Client) -> dict[str, int]:
    """What each held release is."""
    return {release.release_id: release.state for release in client.list_releases().releases}


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)
