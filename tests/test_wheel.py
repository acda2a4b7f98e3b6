"""What users install: the client and nothing else."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    pytest.importorskip("hatchling", reason="hatchling builds the wheel; make setup installs it")
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    [path] = out.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_only_the_client(wheel: zipfile.ZipFile):
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"towerbridge"}


def test_the_wheel_holds_the_whole_client(wheel: zipfile.ZipFile):
    source = ROOT / "client" / "towerbridge"
    wanted = {
        f"towerbridge/{path.relative_to(source).as_posix()}"
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert wanted <= set(wheel.namelist())
    assert {"towerbridge/py.typed", "towerbridge/v1/event_pb2.pyi"} <= wanted


def test_the_wheel_needs_only_grpc_and_protobuf(wheel: zipfile.ZipFile):
    [metadata] = [name for name in wheel.namelist() if name.endswith("METADATA")]
    lines = wheel.read(metadata).decode().splitlines()
    required = [
        line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist") and "extra" not in line
    ]
    assert sorted(line.split(">")[0] for line in required) == ["grpcio", "protobuf"]
    assert "License-Expression: Apache-2.0" in lines
