"""A tiny world of bench.world, a real server of it, and what clients need that are not ours."""

import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pytest

from bench.world.__main__ import make_world
from server.security.key_file import create
from server.security.roles import Role
from tests.independent.serving import PATIENCE_S, serving
from tests.server.security.certificates import authority, signed

NODE = Path(__file__).parent / "node"


class Guarded(NamedTuple):
    """A server with TLS that needs keys. root: PEM, who signed its certificate; stranger: who did not."""

    target: str
    root: Path
    stranger: Path
    keys: dict[Role, str]
    both: str


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world that nobody serves from."""
    folder = tmp_path_factory.mktemp("world") / "world"
    make_world(folder, items=60, users=100, dim=8, seed=1, history=5, until=datetime.now(UTC) - timedelta(hours=1))
    return folder


@pytest.fixture(scope="session")
def target(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that anybody may call."""
    with serving(world, tmp_path_factory.mktemp("served")) as found:
        yield found


@pytest.fixture(scope="session")
def narrow(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that takes one stream of events at a time, and refuses a second one."""
    with serving(world, tmp_path_factory.mktemp("narrow"), overload={"max_ingests": 1}) as found:
        yield found


@pytest.fixture(scope="session")
def guarded(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """The same with TLS and keys."""
    folder = tmp_path_factory.mktemp("guarded")
    root, stranger = authority(folder, "root"), authority(folder, "stranger")
    pair = signed(folder, "server", root)
    file = folder / "keys.json"
    keys = {role: create(file, "default", role.value, [role])[0] for role in (Role.READ, Role.INGEST)}
    both, _ = create(file, "default", "both", [Role.READ, Role.INGEST])
    security = {"keys_file": file, "tls_certificate": pair.certificate, "tls_key": pair.key}
    with serving(world, folder, security=security) as found:
        yield Guarded(found.replace("127.0.0.1", "localhost"), root.certificate, stranger.certificate, keys, both)


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with our Node client and the packages of its lock file, from an empty folder of packages."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("needs Node: install Debian's nodejs and npm")
    folder = tmp_path_factory.mktemp("node")
    for name in ("package.json", "package-lock.json", "client.mjs"):
        shutil.copy(NODE / name, folder / name)
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier", "--prefer-offline"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder
