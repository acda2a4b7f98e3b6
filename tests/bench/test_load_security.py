"""`python -m bench.load` on servers that let in only some: TLS, client certificates, and keys, which nothing shows."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest

from bench.load.__main__ import main
from bench.load.channel import KEY_VARIABLE, Reach
from bench.load.mix import InputError
from bench.load.options import parse
from bench.load.result import command_line
from tests.bench.load_server import answering, load, same
from tests.server.security.certificates import Pair, authority, signed

pytestmark = pytest.mark.usefixtures("never_late")
SECRET = "tbk_a-secret"
PLAIN = ("--rate", "20", "--recall-queries", "2")


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def pairs(ca: Pair, tmp_path_factory: pytest.TempPathFactory) -> tuple[Pair, Pair]:
    """A server's and a client's."""
    folder = tmp_path_factory.mktemp("pairs")
    return signed(folder, "server", ca), signed(folder, "client", ca)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that cannot be reached is not waited for."""
    monkeypatch.setattr("bench.load.server._DEADLINE_S", 0.5)


def credentials(server: Pair, ca: Pair | None = None) -> grpc.ServerCredentials:
    """ca: clients must have a certificate of it."""
    certificate, key = server.pem
    root = ca.pem[0] if ca is not None else None
    return grpc.ssl_server_credentials([(key, certificate)], root, require_client_auth=ca is not None)


def keys_in(seen: list[Mapping[str, Any]]) -> set[str | None]:
    return {one.get("authorization") for one in seen}


def test_a_key_from_the_environment_goes_with_every_call_over_tls(
    ca: Pair, pairs: tuple[Pair, Pair], ids: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(KEY_VARIABLE, SECRET)
    seen: list[Mapping[str, Any]] = []
    with answering(same("item-1"), credentials(pairs[0]), seen) as target:
        status, result = load(target, ids, tmp_path, *PLAIN, "--ca", str(ca.certificate))
    assert status == 0 and result["codes"].keys() == {"OK"} and result["recall_samples"] == 2
    assert keys_in(seen) == {f"Bearer {SECRET}"} and len(seen) > result["calls"]
    assert result["settings"]["tls"] is True and result["settings"]["with_key"] is True


def test_a_client_with_a_certificate_is_let_in_and_its_key_is_in_neither_result_nor_report(
    ca: Pair, pairs: tuple[Pair, Pair], ids: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    server, client = pairs
    secured = ("--ca", str(ca.certificate), "--cert", str(client.certificate), "--client-key", str(client.key))
    monkeypatch.setattr(sys, "argv", ["bench.load", *PLAIN, *secured, "--key", SECRET])
    monkeypatch.setenv(KEY_VARIABLE, "another")  # the option counts
    seen: list[Mapping[str, Any]] = []
    with answering(same("item-1"), credentials(server, ca), seen) as target:
        status, result = load(target, ids, tmp_path, *PLAIN, *secured, "--key", SECRET)
    assert status == 0 and result["codes"].keys() == {"OK"} and keys_in(seen) == {f"Bearer {SECRET}"}
    assert "--key …" in result["command"]
    for name in ("r.json", "r.html"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert SECRET not in text and "another" not in text and client.key.read_text().splitlines()[1] not in text


@pytest.mark.usefixtures("impatient")
def test_without_a_certificate_that_is_asked_for_and_with_another_root_a_target_is_out_of_reach(
    ca: Pair, pairs: tuple[Pair, Pair], ids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    stranger = authority(tmp_path, "stranger").certificate
    files = ["--json", str(tmp_path / "r.json"), "--html", str(tmp_path / "r.html")]
    for server, root in ((credentials(pairs[0], ca), ca.certificate), (credentials(pairs[0]), stranger)):
        with answering(same("item-1"), server) as target:
            assert main(["--target", target, "--ids", str(ids), *files, "--rate", "5", "--ca", str(root)]) == 2
        error = capsys.readouterr().err
        assert "cannot be reached" in error and "a certificate that --ca vouches for" in error and error.count("\n") == 1
    assert not (tmp_path / "r.json").exists() and not (tmp_path / "r.html").exists()


def test_a_key_is_shown_by_no_text_that_names_the_target():
    assert SECRET not in repr(Reach("x:1", key=SECRET))


@pytest.mark.parametrize("given", [["--key", SECRET], [f"--key={SECRET}"]])
def test_the_command_is_shown_without_the_key(given: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["bench.load", *given, "--rate", "5"])
    assert SECRET not in command_line() and command_line().endswith(" --rate 5")


@pytest.mark.parametrize("given", [["--ke", SECRET], [f"--k={SECRET}"]])
def test_an_option_cut_short_is_refused_since_its_key_would_be_in_the_result(given: list[str]):
    with pytest.raises(InputError, match="unrecognized arguments: --k"):
        parse(["--target", "x:1", "--ids", "ids.json", "--json", "r.json", "--html", "r.html", "--rate", "5", *given])
