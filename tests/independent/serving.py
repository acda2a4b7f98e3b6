"""A real server of a tiny world on loopback, for clients that are not ours."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.world.ids import BUNDLE, DATA
from server.app import App
from server.config import Config

ROOT = Path(__file__).parents[2]
PROTOS = ROOT / "protos"
PATIENCE_S = 120


@contextmanager
def serving(world: Path, folder: Path, **sections: Any) -> Iterator[str]:
    """A server of a copy of the world, below `folder`; its target. sections: those of the configuration."""
    copy = folder / "world"
    shutil.copytree(world, copy)
    settings = {"listen": {"port": 0, "drain_seconds": 1.0}, **sections}
    app = App(Config(bundle=copy / BUNDLE, data=copy / DATA, **settings))
    app.start()
    try:
        yield f"127.0.0.1:{app.port}"
    finally:
        app.stop()
