"""TLS and mTLS on loopback, from files that change while the server runs."""

import asyncio
import os
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from server.app import App
from server.config import Config, Listen, Security
from server.errors import StartupError
from server.security.tls import open_certificates
from tests.server.security.certificates import Pair, authority, signed

START_S = 60.0
Start = Callable[..., int]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two authorities, ours and another, and what they signed."""
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("ours", "other"):
        root = authority(folder, f"{name}-ca")
        for kind in ("server", "client"):
            signed(folder, f"{name}-{kind}", root)
    return folder


def pair(made: Path, name: str) -> Pair:
    return Pair(made / f"{name}.pem", made / f"{name}.key")


@pytest.fixture
def settings(made: Path, tmp_path: Path) -> Security:
    """Files of one server alone, which a test may change."""
    put(made, tmp_path, "ours-server")
    return Security(tls_certificate=tmp_path / "tls.pem", tls_key=tmp_path / "tls.key")


def put(made: Path, folder: Path, name: str) -> None:
    """Puts a certificate and its key in place, each by a rename."""
    for suffix in ("pem", "key"):
        aside = shutil.copy(made / f"{name}.{suffix}", folder / f"new.{suffix}")
        Path(aside).replace(folder / f"tls.{suffix}")


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts small servers that answer health checks, on an event loop as the real one does."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def bind(security: Security, **clock: Callable[[], datetime]) -> tuple[grpc.aio.Server, int]:
        server = grpc.aio.server()
        certificates = open_certificates(security, **clock)
        assert certificates is not None
        port = server.add_secure_port("127.0.0.1:0", certificates.credentials())
        health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
        await server.start()
        return server, port

    with ExitStack() as stack:

        def run(security: Security, **clock: Callable[[], datetime]) -> int:
            server, port = asyncio.run_coroutine_threadsafe(bind(security, **clock), loop).result(START_S)
            stack.callback(lambda: asyncio.run_coroutine_threadsafe(server.stop(None), loop).result(START_S))
            return port

        yield run
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def check(port: int, root: Path, client: Pair | None = None) -> health_pb2.HealthCheckResponse:
    """One call over a new connection. Raises grpc.RpcError if there is none to be had."""
    chain, key = client.pem if client is not None else (None, None)
    credentials = grpc.ssl_channel_credentials(root.read_bytes(), key, chain)
    with channel(port, credentials) as connected:
        return health_pb2_grpc.HealthStub(connected).Check(health_pb2.HealthCheckRequest(), timeout=START_S)


def channel(port: int, credentials: grpc.ChannelCredentials | None) -> grpc.Channel:
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]  # a connection of its own
    if credentials is None:
        return grpc.insecure_channel(f"127.0.0.1:{port}", options)
    return grpc.secure_channel(f"127.0.0.1:{port}", credentials, options)


def serves(port: int, root: Path, client: Pair | None = None) -> bool:
    try:
        check(port, root, client)
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]
        return False
    return True


def test_a_client_that_trusts_the_root_is_served(start: Start, settings: Security, made: Path):
    assert serves(start(settings), made / "ours-ca.pem")


def test_a_client_with_another_root_or_without_tls_is_not(start: Start, settings: Security, made: Path):
    port = start(settings)
    assert not serves(port, made / "other-ca.pem")
    with channel(port, None) as plain, pytest.raises(grpc.RpcError) as refused:
        health_pb2_grpc.HealthStub(plain).Check(health_pb2.HealthCheckRequest(), timeout=START_S)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")  # the old versions are what is tried
def test_only_tls_1_2_and_1_3_are_spoken(start: Start, settings: Security, made: Path):
    port = start(settings)
    spoken = []
    for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = ssl.create_default_context(cafile=str(made / "ours-ca.pem"))
        context.set_ciphers("ALL:@SECLEVEL=0")  # so that the client would speak the old ones
        context.set_alpn_protocols(["h2"])
        context.minimum_version = context.maximum_version = version
        with socket.create_connection(("127.0.0.1", port), timeout=START_S) as raw:
            try:
                with context.wrap_socket(raw, server_hostname="127.0.0.1") as wrapped:
                    spoken.append(wrapped.version())
            except (ssl.SSLError, ConnectionError):
                pass
    assert spoken == ["TLSv1.2", "TLSv1.3"]


def test_with_client_ca_a_client_needs_a_certificate_from_there(start: Start, settings: Security, made: Path):
    root = made / "ours-ca.pem"
    port = start(settings.model_copy(update={"client_ca": root}))
    assert serves(port, root, pair(made, "ours-client"))
    assert not serves(port, root)
    assert not serves(port, root, pair(made, "other-client"))


def test_new_connections_see_a_changed_certificate_and_open_ones_go_on(
    start: Start, settings: Security, made: Path, tmp_path: Path
):
    port = start(settings)
    old, new = made / "ours-ca.pem", made / "other-ca.pem"
    with channel(port, grpc.ssl_channel_credentials(old.read_bytes())) as connected:
        stub = health_pb2_grpc.HealthStub(connected)
        stub.Check(health_pb2.HealthCheckRequest(), timeout=START_S)
        put(made, tmp_path, "other-server")
        assert serves(port, new) and not serves(port, old)
        stub.Check(health_pb2.HealthCheckRequest(), timeout=START_S)
    put(made, tmp_path, "ours-server")
    assert serves(port, old) and not serves(port, new)


def test_clients_roots_change_too(start: Start, settings: Security, made: Path, tmp_path: Path):
    root, trusted = made / "ours-ca.pem", tmp_path / "clients.pem"
    shutil.copy(made / "ours-ca.pem", trusted)
    port = start(settings.model_copy(update={"client_ca": trusted}))
    ours, other = pair(made, "ours-client"), pair(made, "other-client")
    assert serves(port, root, ours) and not serves(port, root, other)
    with trusted.open("ab") as file:  # both, while clients move
        file.write((made / "other-ca.pem").read_bytes())
    assert serves(port, root, ours) and serves(port, root, other)
    shutil.copy(made / "other-ca.pem", trusted)
    assert not serves(port, root, ours) and serves(port, root, other)


def test_broken_new_files_are_logged_once_and_the_old_ones_stay(
    start: Start, settings: Security, made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    port, root = start(settings), made / "ours-ca.pem"
    certificate = tmp_path / "tls.pem"
    for broken in (b"", b"not a certificate", (made / "other-server.pem").read_bytes(), None):
        caplog.clear()
        if broken is None:
            certificate.unlink()
        else:
            certificate.write_bytes(broken)
        assert serves(port, root) and serves(port, root)
        [record] = caplog.records
        assert "goes on with the certificate that it had" in record.message
    put(made, tmp_path, "other-server")
    assert serves(port, made / "other-ca.pem")


def test_without_a_certificate_there_is_no_tls():
    assert open_certificates(Security()) is None


@pytest.mark.parametrize(
    ("certificate", "key", "says"),
    [
        ("missing", "ours-server.key", "cannot read .*missing: No such file.*security.tls_certificate"),
        ("ours-server.pem", "missing", "cannot read .*missing: No such file.*security.tls_key"),
        ("ours-server.pem", "other-server.key", "is not the private key of"),
        ("ours-server.key", "ours-server.pem", "must hold a certificate.*PEM"),
        ("ours-server.pem", "encrypted.key", "is encrypted.*openssl pkey"),
        ("folder", "ours-server.key", "Is a directory"),
    ],
)
def test_files_that_cannot_be_used_keep_the_server_from_starting(made: Path, certificate: str, key: str, says: str):
    (made / "folder").mkdir(exist_ok=True)
    command = [
        "openssl",
        "pkey",
        "-in",
        made / "ours-server.key",
        "-aes256",
        "-passout",
        "pass:secret",
        "-out",
        made / "encrypted.key",
    ]
    subprocess.run(command, check=True)
    with pytest.raises(StartupError, match=says) as raised:
        open_certificates(Security(tls_certificate=made / certificate, tls_key=made / key))
    assert "\n" not in str(raised.value)


def test_a_certificate_outside_of_its_time_keeps_the_server_from_starting(settings: Security):
    now = datetime.now(UTC)
    assert open_certificates(settings, clock=lambda: now + timedelta(days=29)) is not None
    with pytest.raises(StartupError, match=r"tls\.pem expired at \d{4}-\d\d-\d\d .* put a renewed one in its place"):
        open_certificates(settings, clock=lambda: now + timedelta(days=31))
    with pytest.raises(StartupError, match=r"tls\.pem is valid from \d{4}-\d\d-\d\d .* set the clock"):
        open_certificates(settings, clock=lambda: now - timedelta(days=1))


def test_an_expired_new_certificate_is_logged_and_the_old_one_stays(
    start: Start, settings: Security, made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    now = datetime.now(UTC)
    port = start(settings, clock=lambda: now)
    now += timedelta(days=31)
    put(made, tmp_path, "other-server")
    assert serves(port, made / "ours-ca.pem") and not serves(port, made / "other-ca.pem")
    [record] = caplog.records
    assert "expired at" in record.message and "goes on with the certificate that it had" in record.message


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o400, False), (0o644, True), (0o604, True), (0o620, True)])
def test_a_private_key_that_others_can_use_is_named_with_the_remedy(
    settings: Security, caplog: pytest.LogCaptureFixture, mode: int, warned: bool
):
    assert settings.tls_key is not None
    settings.tls_key.chmod(mode)
    open_certificates(settings)
    assert [f"run chmod 600 {settings.tls_key}" in record.message for record in caplog.records] == [True] * warned


@pytest.mark.parametrize("days", [30, 20_000, 40_000])  # from 2050 on years have four digits there
def test_the_end_of_a_certificate_is_what_openssl_says(tmp_path: Path, days: int):
    pair = authority(tmp_path, "long", days=days)
    certificates = open_certificates(Security(tls_certificate=pair.certificate, tls_key=pair.key))
    said = subprocess.run(["openssl", "x509", "-noout", "-enddate", "-in", pair.certificate], capture_output=True, check=True)
    ends = ssl.cert_time_to_seconds(said.stdout.decode().strip().removeprefix("notAfter="))
    assert certificates is not None and certificates.valid_until.timestamp() == ends


def test_a_certificate_that_grpc_does_not_take_is_not_blamed_on_the_port_alone(made: Path, tmp_path: Path):
    root = pair(made, "ours-ca")  # which may sign certificates, and nothing else
    security = Security(tls_certificate=root.certificate, tls_key=root.key)
    config = Config(bundle=tmp_path / "bundle", data=tmp_path / "data", listen=Listen(port=0), security=security)
    with pytest.raises(StartupError, match=r"cannot listen on .*its keyUsage, where it has one, needs digitalSignature"):
        App(config)


@pytest.mark.parametrize("roots", ["missing", "ours-client.key", os.devnull])
def test_clients_roots_that_cannot_be_used_keep_the_server_from_starting(settings: Security, made: Path, roots: str):
    with pytest.raises(StartupError, match="client_ca"):
        open_certificates(settings.model_copy(update={"client_ca": made / roots}))
