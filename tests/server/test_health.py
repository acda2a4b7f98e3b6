"""python -m server.health: what a probe learns, by its exit status."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from server import release
from tests.server.security.certificates import Pair, authority, signed

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    folder = tmp_path_factory.mktemp("certificates")
    root = authority(folder)
    return {"ca": root, "server": signed(folder, "server", root), "client": signed(folder, "client", root)}


@pytest.fixture(scope="module")
def ports(pairs: dict[str, Pair]) -> Iterator[dict[str, str]]:
    """A port in plain text, one with TLS, and one that asks for the client's certificate; of the same health service."""
    server = grpc.server(ThreadPoolExecutor(2))
    servicer = health.HealthServicer()
    servicer.set("", SERVING)
    servicer.set("some.Service", NOT_SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    certificate, key = pairs["server"].pem
    mutual = grpc.ssl_server_credentials([(key, certificate)], pairs["ca"].pem[0], require_client_auth=True)
    found = {
        "plain": server.add_insecure_port("127.0.0.1:0"),
        "tls": server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, certificate)])),
        "mutual": server.add_secure_port("127.0.0.1:0", mutual),
    }
    server.start()
    yield {name: f"127.0.0.1:{port}" for name, port in found.items()}
    server.stop(None).wait()


def probe(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "server.health", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_a_server_that_serves_is_healthy(ports: dict[str, str]):
    done = probe("--target", ports["plain"])
    assert (done.returncode, done.stdout, done.stderr) == (0, "SERVING\n", "")


def test_a_service_that_does_not_serve_is_not(ports: dict[str, str]):
    done = probe("--target", ports["plain"], "--service", "some.Service")
    assert (done.returncode, done.stderr) == (1, "NOT_SERVING\n")


def test_a_service_that_is_not_there_is_not(ports: dict[str, str]):
    done = probe("--target", ports["plain"], "--service", "no.Service")
    assert done.returncode == 1
    assert "NOT_FOUND" in done.stderr


def test_where_nothing_listens_the_probe_ends_and_says_so():
    done = probe("--target", "127.0.0.1:1", "--timeout", "1")
    assert done.returncode == 1
    assert "127.0.0.1:1 does not answer" in done.stderr and "is the server there?" in done.stderr


def test_without_tls_to_a_server_that_has_it_the_commands_name_what_to_give(
    ports: dict[str, str], capsys: pytest.CaptureFixture[str]
):
    done = probe("--target", ports["tls"])
    assert done.returncode == 1 and "If it has TLS, give --ca" in done.stderr
    assert release.main(["list", "--target", ports["tls"], "--timeout", "20"]) == 1
    assert "If it has TLS, give --ca" in capsys.readouterr().err


@pytest.mark.parametrize("trusted", ["ca", "server"])
def test_over_tls_the_root_or_the_very_certificate_is_trusted(ports: dict[str, str], pairs: dict[str, Pair], trusted: str):
    done = probe("--target", ports["tls"], "--ca", pairs[trusted].certificate, "--server-name", "localhost")
    assert (done.returncode, done.stdout) == (0, "SERVING\n"), done.stderr


def test_another_root_or_name_is_not_trusted(ports: dict[str, str], pairs: dict[str, Pair]):
    for ca, name in (("client", "localhost"), ("ca", "elsewhere.example.com")):
        done = probe("--target", ports["tls"], "--ca", pairs[ca].certificate, "--server-name", name)
        assert done.returncode == 1, done.stdout
        assert f"{pairs[ca].certificate} its certificate's root, and the name it is called by" in done.stderr


def test_where_clients_need_a_certificate_the_probe_has_one(ports: dict[str, str], pairs: dict[str, Pair]):
    roots = ("--target", ports["mutual"], "--ca", pairs["ca"].certificate)
    assert probe(*roots).returncode == 1
    own = ("--certificate", pairs["client"].certificate, "--key", pairs["client"].key)
    assert probe(*roots, *own).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--server-name", "x"), "needs --ca"),
        (("--ca", "missing.pem"), "cannot read missing.pem"),
        (("--ca", "missing.pem", "--key", "x"), "go together"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments: tuple[str, ...], says: str, tmp_path: Path):
    done = probe(*arguments)
    assert done.returncode == 2
    assert says in done.stderr
