"""What a server lets other machines do, and TLS from the certificate's file to towerbridge.Client."""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import towerbridge

from server.security.roles import Role
from tests.server.security.certificates import Pair, authority, signed
from tests.server.security.keyring import eventually
from tests.server.security.secured import CALL_S, Secured, secured


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root, a second one, and a server's certificate and a client's of each."""
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("ours", "new"):
        root = authority(folder, f"{name}-ca")
        for kind in ("server", "client"):
            signed(folder, f"{name}-{kind}", root)
    return folder


def put(made: Path, folder: Path, name: str) -> dict[str, Path]:
    """Puts a certificate and its key in place, each by a rename; the settings that name them."""
    files = {}
    for setting, suffix in {"tls_certificate": "pem", "tls_key": "key"}.items():
        aside = Path(shutil.copy(made / f"{name}.{suffix}", folder / f"new.{suffix}"))
        files[setting] = aside.replace(folder / f"tls.{suffix}")
    return files


def roots(made: Path, name: str = "ours") -> bytes:
    return (made / f"{name}-ca.pem").read_bytes()


@pytest.fixture
def server(bundle_path: Path, tmp_path: Path, made: Path) -> Iterator[Secured]:
    with secured(bundle_path, tmp_path, security=put(made, tmp_path, "ours-server")) as running:
        yield running


def client(server: Secured, tls: bytes | grpc.ChannelCredentials, role: Role = Role.READ) -> towerbridge.Client:
    key = server.keys["default", role]
    return towerbridge.Client(f"localhost:{server.app.port}", tls=tls, api_key=key, timeout_s=CALL_S)


def serves(server: Secured, tls: bytes | grpc.ChannelCredentials) -> bool:
    """Whether a new connection is served. Connections are not shared: each client has other credentials."""
    with client(server, tls) as connected:
        try:
            connected.get_release()
        except (towerbridge.Unavailable, towerbridge.DeadlineExceeded):
            return False
    return True


def test_the_client_is_served_over_tls_with_its_key(server: Secured, made: Path):
    with client(server, roots(made), Role.INGEST) as ingest, client(server, roots(made)) as read:
        ingest.record_events([towerbridge.event("view", "item-5", user_id="ann")])
        assert list(read.get_user(user_id="ann").item_ids) == ["item-5"]
        with pytest.raises(towerbridge.PermissionDenied):
            read.record_events([towerbridge.event("view", "item-5", user_id="ann")])
    with (
        towerbridge.Client(f"localhost:{server.app.port}", tls=roots(made), timeout_s=CALL_S) as keyless,
        pytest.raises(towerbridge.Unauthenticated),
    ):
        keyless.get_release()


def test_the_async_client_is_too(server: Secured, made: Path):
    async def call() -> str:
        key = server.keys["default", Role.READ]
        target = f"localhost:{server.app.port}"
        async with towerbridge.AsyncClient(target, tls=roots(made), api_key=key, timeout_s=CALL_S) as connected:
            return (await connected.get_release()).release_id

    assert asyncio.run(call()) == server.app.tenant.live.release_id


def test_a_client_with_another_root_or_without_tls_is_not_served(server: Secured, made: Path):
    assert not serves(server, roots(made, "new"))
    key = server.keys["default", Role.READ]
    with (
        towerbridge.Client(f"localhost:{server.app.port}", api_key=key, timeout_s=CALL_S) as plain,
        pytest.raises(towerbridge.Unavailable),
    ):
        plain.get_release()


def test_with_client_ca_a_certificate_is_needed_besides_the_key(bundle_path: Path, tmp_path: Path, made: Path):
    security = put(made, tmp_path, "ours-server") | {"client_ca": made / "ours-ca.pem"}
    with secured(bundle_path, tmp_path, security=security) as server:
        for name, is_served in {"ours-client": True, "new-client": False}.items():
            chain, key = Pair(made / f"{name}.pem", made / f"{name}.key").pem
            assert serves(server, grpc.ssl_channel_credentials(roots(made), key, chain)) is is_served
        assert not serves(server, roots(made))


def test_certificates_are_replaced_while_the_server_serves(server: Secured, made: Path, tmp_path: Path):
    with client(server, roots(made)) as open_before:
        assert open_before.get_release()
        put(made, tmp_path, "new-server")
        eventually(lambda: serves(server, roots(made, "new")))
        assert not serves(server, roots(made) + b"\n"), "a new connection sees the new certificate"
        assert open_before.get_release(), "one that is open goes on"


def start(bundle: Path, data: Path, **settings: object) -> subprocess.CompletedProcess[str]:
    """python -m server, which is expected to end by itself."""
    sections = {f"TOWERBRIDGE__{name.upper()}": str(value) for name, value in settings.items()}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TOWERBRIDGE__")} | sections
    command = [sys.executable, "-m", "server", "--bundle", bundle, "--data", data]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_without_tls_or_keys_the_server_does_not_listen_to_other_machines(bundle_path: Path, tmp_path: Path, made: Path):
    tls = {f"security__{name}": path for name, path in put(made, tmp_path, "ours-server").items()}
    for settings, remedy in (({}, "in plain text and by anybody"), (tls, "by anybody: set security.keys_file")):
        done = start(bundle_path, tmp_path / "data", listen__host="0.0.0.0", listen__port=0, **settings)
        assert done.returncode == 2 and done.stdout == "", done.stderr
        assert done.stderr.startswith("error: listen.host '0.0.0.0' can be reached from other machines")
        assert remedy in done.stderr and done.stderr.count("\n") == 1
        assert not (tmp_path / "data").exists(), "nothing was made"
