"""How a server is reached: plain text, TLS, waiting for it."""

import asyncio
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
import pytest
import towerbridge
from towerbridge._channel import is_loopback

LOOPBACK = [
    "localhost:50051",
    "LOCALHOST:50051",
    "localhost",
    "127.0.0.1:50051",
    "127.9.9.9:1",
    "[::1]:50051",
    "[::1]",
    "unix:/run/towerbridge.sock",
    "unix:///run/towerbridge.sock",
    "unix-abstract:towerbridge",
    "dns:///localhost:50051",
    "dns:localhost:50051",
    "ipv4:127.0.0.1:1,127.0.0.2:1",
    "ipv6:[::1]:50051",
]
ELSEWHERE = [
    "towerbridge.example:50051",
    "localhost.example:50051",
    "127.0.0.1.example:50051",
    "10.0.0.7:50051",
    "128.0.0.1:50051",
    "0.0.0.0:50051",
    "[2001:db8::1]:50051",
    "[::1].example:50051",
    "dns://names.example/localhost:50051",
    "dns:///towerbridge.example:50051",
    "ipv4:127.0.0.1:1,10.0.0.7:1",
    "localhost:///towerbridge.example",
    "xds:///localhost",
    "",
]


@pytest.mark.parametrize("target", LOOPBACK)
def test_plain_text_is_the_default_on_this_machine(target: str) -> None:
    assert is_loopback(target)
    towerbridge.Client(target).close()


@pytest.mark.parametrize("target", ELSEWHERE)
def test_plain_text_to_another_machine_is_refused(target: str) -> None:
    assert not is_loopback(target)
    with pytest.raises(ValueError, match=r"is not this machine.*tls=True.*insecure=True"):
        towerbridge.Client(target)


def test_plain_text_to_another_machine_is_refused_by_the_async_client() -> None:
    async def make() -> None:
        towerbridge.AsyncClient("10.0.0.7:50051")

    with pytest.raises(ValueError, match="is not this machine"):
        asyncio.run(make())


def test_plain_text_to_another_machine_can_be_asked_for() -> None:
    towerbridge.Client("towerbridge.example:50051", insecure=True).close()


def test_tls_and_plain_text_at_once_are_refused() -> None:
    with pytest.raises(ValueError, match="contradict each other"):
        towerbridge.Client("towerbridge.example:50051", tls=True, insecure=True)


def test_a_path_is_not_taken_for_certificates() -> None:
    with pytest.raises(TypeError, match="tls must be a bool, root certificates as PEM bytes"):
        towerbridge.Client("localhost:50051", tls="ca.pem")  # type: ignore[arg-type]


@pytest.mark.parametrize("max_attempts", [0, 6])
def test_a_number_of_attempts_that_grpc_would_not_make_is_refused(max_attempts: int) -> None:
    with pytest.raises(ValueError, match="max_attempts must be 1 to 5"):
        towerbridge.Client("localhost:50051", max_attempts=max_attempts)


@pytest.mark.parametrize("api_key", ["", "two words", "line\n", "schlüssel"])
def test_an_api_key_that_cannot_be_sent_is_refused(api_key: str) -> None:
    with pytest.raises(ValueError, match="api_key must be printable ASCII without spaces") as caught:
        towerbridge.Client("localhost:50051", api_key=api_key)
    assert not api_key or api_key not in str(caught.value)


def test_channel_arguments_of_the_caller_win() -> None:
    client = towerbridge.Client("localhost:50051", options=[("grpc.keepalive_time_ms", 600_000)])
    client.close()
    assert dict(client._settings.options)["grpc.keepalive_time_ms"] == 600_000


def test_pings_are_rarer_than_the_five_minutes_that_servers_insist_on() -> None:
    client = towerbridge.Client("localhost:50051")
    client.close()
    options = dict(client._settings.options)
    assert int(options["grpc.keepalive_time_ms"]) > 300_000
    assert options["grpc.keepalive_permit_without_calls"] == 0


def test_a_proxy_in_the_environment_does_not_get_local_calls(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with towerbridge.Client(server.target) as client:
        assert client.get_release().dim == 4


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """(key, certificate) in PEM for localhost, made by openssl."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    key, pem = folder / "key.pem", folder / "cert.pem"
    form = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(pem)]
    subprocess.run([openssl, "req", "-x509", *form, *names, *files], check=True, capture_output=True)
    return key.read_bytes(), pem.read_bytes()


def test_a_server_with_tls_is_known_by_its_root_certificate(
    certificate: tuple[bytes, bytes], start_server: Callable[..., Any]
) -> None:
    server = start_server(credentials=grpc.ssl_server_credentials([certificate]))
    with towerbridge.Client(server.target, tls=certificate[1], timeout_s=5, api_key="k") as client:
        assert client.get_release().dim == 4

    async def call() -> Any:
        credentials = grpc.ssl_channel_credentials(certificate[1])
        async with towerbridge.AsyncClient(server.target, tls=credentials, timeout_s=5) as client:
            return await client.get_release()

    assert asyncio.run(call()).dim == 4


def test_a_server_with_an_unknown_certificate_is_not_talked_to(
    certificate: tuple[bytes, bytes], start_server: Callable[..., Any]
) -> None:
    server = start_server(credentials=grpc.ssl_server_credentials([certificate]))
    with towerbridge.Client(server.target, tls=True) as client, pytest.raises(towerbridge.Unavailable):
        client.get_release()
    assert not server.script.calls


def test_a_server_that_starts_later_is_waited_for(start_server: Callable[..., Any]) -> None:
    # Bound and not listening: the port is refused, and nobody else gets it before the server does.
    with socket.socket() as reservation:
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reservation.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{reservation.getsockname()[1]}"
        timer = threading.Timer(0.3, start_server, [target])
        timer.start()
        with towerbridge.Client(target) as client:
            assert client.wait_until_ready(10).release_id == "0123456789abcdef"
        timer.join()


def test_a_server_that_is_not_ready_yet_is_waited_for(server: Any) -> None:
    server.script.fail(grpc.StatusCode.UNAVAILABLE, "warming up", times=4)

    async def call() -> Any:
        async with towerbridge.AsyncClient(server.target) as client:
            return await client.wait_until_ready(10)

    assert asyncio.run(call()).dim == 4


def test_a_server_that_never_comes_ends_the_wait() -> None:
    with towerbridge.Client("127.0.0.1:9") as client, pytest.raises(towerbridge.DeadlineExceeded) as caught:
        started = time.monotonic()
        client.wait_until_ready(0.3)
    assert time.monotonic() - started < 2.0
    assert caught.value.message.startswith("127.0.0.1:9 was not ready within 0.3 s; the last answer was ")


def test_an_answer_that_waiting_cannot_change_ends_the_wait(client: Any, script: Any) -> None:
    script.fail(grpc.StatusCode.UNAUTHENTICATED, "no API key")
    with pytest.raises(towerbridge.Unauthenticated):
        client.wait_until_ready(10)
    assert len(script.calls) == 1
