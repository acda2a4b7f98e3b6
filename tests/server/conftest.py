"""Real servers on loopback, over tiny bundles."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import towerbridge
from numpy.typing import NDArray

from index.bundle import Bundle, read_bundle
from server.app import App
from server.config import Config
from tests.tiny import write_tiny_bundle

NOW_US = 1_800_000_000_000_000
DAY_US = 86_400_000_000
PRESUMED = {"personalisation": "opt_out", "training": "opt_out"}  # for tests that are not about consent


@dataclass
class Served:
    """A running server and a client of it."""

    app: App
    client: towerbridge.Client
    clock: "Clock"

    def stop(self) -> None:
        self.client.close()
        self.app.stop()


class Clock:
    """The server's clock, moved by hand."""

    def __init__(self) -> None:
        self.now_us = NOW_US

    def __call__(self) -> int:
        return self.now_us


Serve = Callable[..., Served]


@pytest.fixture(scope="session")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "plain"
    write_tiny_bundle(path, n_items=50, dim=8)
    return path


@pytest.fixture(scope="session")
def bundle(bundle_path: Path) -> Bundle:
    return read_bundle(bundle_path)


@pytest.fixture(scope="session")
def text_bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "text"
    write_tiny_bundle(path, n_items=50, dim=8, text=True)
    return path


@pytest.fixture
def serve(bundle_path: Path, tmp_path: Path) -> Iterator[Serve]:
    """Starts servers; those still running at the end are stopped."""
    running: list[Served] = []

    def start(*, bundle: Path = bundle_path, data: Path = tmp_path / "data", **sections: Any) -> Served:
        clock = Clock()
        sections.setdefault("consent", PRESUMED)
        sections["listen"] = {"port": 0, "drain_seconds": 1.0, **sections.get("listen", {})}
        app = App(Config(bundle=bundle, data=data, **sections), clock_us=clock)
        app.start()
        served = Served(app, towerbridge.Client(f"127.0.0.1:{app.port}", timeout_s=20.0), clock)
        running.append(served)
        return served

    def stop_all() -> None:
        for served in running:
            served.stop()

    start.stop = lambda served: (running.remove(served), served.stop())  # type: ignore[attr-defined]
    yield start
    stop_all()


@pytest.fixture(scope="module")
def shared(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server for the tests of a module that leave each other alone by using ids of their own."""
    clock = Clock()
    data = tmp_path_factory.mktemp("shared")
    listen = {"port": 0, "drain_seconds": 1.0}
    app = App(Config(bundle=bundle_path, data=data, listen=listen, consent=PRESUMED), clock_us=clock)  # type: ignore[arg-type]
    app.start()
    served = Served(app, towerbridge.Client(f"127.0.0.1:{app.port}", timeout_s=20.0), clock)
    yield served
    served.stop()


def offline_vector(bundle: Bundle, events: list[tuple[str, str, int]]) -> NDArray[np.float32]:
    """What the bundle's user tower makes of (item, type, time in microseconds) events in the order of arrival: (D,) float32."""
    manifest = bundle.manifest
    assert manifest.history_length is not None
    row = {item_id: place for place, item_id in enumerate(bundle.item_ids)}
    ordered = sorted(events, key=lambda event: event[2])  # stable: ties stay in the order of arrival
    counted = [event for event in ordered if event[0] in row and event[1] in manifest.event_types]
    counted = counted[-manifest.history_length :]
    newest = counted[-1][2]
    [vector] = bundle.encode_users(
        np.stack([bundle.item_vectors[row[item_id]] for item_id, _, _ in counted])[None],
        np.array([[manifest.event_types[name] for _, name, _ in counted]]),
        np.array([[(newest - time_us) / 1e6 for _, _, time_us in counted]], dtype=np.float32),
        np.array([len(counted)]),
    )
    return vector
