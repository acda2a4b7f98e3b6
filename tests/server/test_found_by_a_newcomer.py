"""What a newcomer tripped over; each failed before it was mended."""

import socket
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from server.config_sources import load_config
from server.errors import StartupError
from tests.server.conftest import Served
from tests.server.test_restart import start


@pytest.mark.parametrize(
    "data", [b"\x0a\x04\x0a\x02\xff\xfe\x10\x03", b"\xff\xff"], ids=["an id that is not UTF-8", "no message"]
)
def test_a_broken_message_is_its_senders_fault(shared: Served, data: bytes, caplog: pytest.LogCaptureFixture):
    with grpc.insecure_channel(f"127.0.0.1:{shared.app.port}") as channel:
        call = channel.unary_unary("/towerbridge.v1.RecommendationService/Recommend")
        with pytest.raises(grpc.RpcError) as refused:
            call(data, timeout=10)
    assert isinstance(refused.value, grpc.Call)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "Traceback" not in caplog.text


def test_a_port_in_use_is_found_before_anything_is_written(bundle_path: Path, tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartupError, match=f"cannot listen on 127.0.0.1:{port}"):
            start(bundle_path, tmp_path / "data", listen={"port": port})
    assert not (tmp_path / "data").exists()


def test_every_problem_of_a_configuration_is_named_at_once(tmp_path: Path):
    (tmp_path / "c.yaml").write_text("bundel: x\nlisten: {prot: 5}\n", encoding="utf-8")
    with pytest.raises(StartupError) as refused:
        load_config(tmp_path / "c.yaml", {})
    message = str(refused.value)
    assert "bundel: no such setting" in message and "listen.prot: no such setting" in message
    assert "bundle: is needed; give --bundle DIR" in message and "data: is needed" in message
    assert message.index("bundel") < message.index("bundle: is needed")


def test_an_empty_environment_variable_is_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TOWERBRIDGE__DATA", "")
    done = subprocess.run([sys.executable, "-m", "server.journal", "verify"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.splitlines()[-1].partition("error: ")[2]) == (
        2,
        "the following arguments are required: --data",
    )
