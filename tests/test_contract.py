"""The contract: linted, compatible with the last released one, and in step with the committed stubs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RELEASED = ROOT / "tests" / "contract" / "towerbridge.v1.binpb"


def buf(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = shutil.which("buf", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if command is None:
        pytest.skip("buf is not installed; make setup installs it")
    return subprocess.run([command, *arguments], cwd=cwd, capture_output=True, text=True, check=False, timeout=120)


def test_the_contract_is_lint_clean():
    done = buf("lint")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_contract_breaks_no_released_client():
    done = buf("breaking", "--against", str(RELEASED))
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_breaking_change_would_be_seen(tmp_path: Path):
    shutil.copytree(ROOT / "protos", tmp_path / "protos")
    shutil.copy(ROOT / "buf.yaml", tmp_path)
    file = tmp_path / "protos" / "towerbridge" / "v1" / "event.proto"
    file.write_text(file.read_text().replace("string item_id = 4;", "string item_id = 44;"), encoding="utf-8")
    done = buf("breaking", "--against", str(RELEASED), cwd=tmp_path)
    assert done.returncode != 0 and "item_id" in done.stdout


def test_the_committed_stubs_are_those_of_the_protos(tmp_path: Path):
    pytest.importorskip("grpc_tools", reason="grpcio-tools makes the stubs; make setup installs it")
    environment = {**os.environ, "PYTHON": sys.executable}
    subprocess.run(
        [str(ROOT / "protos" / "generate.sh"), str(tmp_path)], check=True, capture_output=True, env=environment, timeout=120
    )
    fresh, committed = tmp_path / "towerbridge" / "v1", ROOT / "client" / "towerbridge" / "v1"
    names = {path.name for path in fresh.iterdir()}
    assert names == {path.name for path in committed.glob("*_pb2*") if path.is_file()}
    for name in names:
        assert (committed / name).read_bytes() == (fresh / name).read_bytes(), f"{name} is stale: run make protos"
