"""Several processes train as one does: torchrun, gloo, two of them on this machine."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.bundle import read_bundle
from tests.training.conftest import SMALL
from tests.training.together import KINDS, trained

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]  # on any free port
PATIENCE = 240  # seconds, on a machine that does much else


@pytest.fixture(scope="module")
def together(planted: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes came to."""
    out = tmp_path_factory.mktemp("together")
    line = [*TORCHRUN, "-m", "tests.training.together", str(planted), str(out)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads((out / f"{rank}-of-2.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_give_what_one_gives_at_the_same_step_size(
    planted: Path, together: list[dict[str, Any]], kind: str
) -> None:
    alone: dict[str, Any] = trained(planted, kind)
    assert together[0][kind]["vectors"] == together[1][kind]["vectors"]  # bit by bit
    np.testing.assert_allclose(together[0][kind]["losses"], alone["losses"], rtol=1e-5)
    np.testing.assert_allclose(together[0][kind]["vectors"], alone["vectors"], atol=1e-4)
    assert together[0][kind]["metrics"] == together[1][kind]["metrics"] == pytest.approx(alone["metrics"], abs=0.02)


def test_the_processes_know_what_the_others_have(together: list[dict[str, Any]]) -> None:
    for found in together:
        assert found["gathered"] == [0, 10]
        assert found["agreed"] is True
        assert found["array"] == [[7.5] * 3] * 2


def test_no_process_goes_on_from_a_checkpoint_that_another_one_does_not_find(together: list[dict[str, Any]]) -> None:
    for found in together:
        assert found["resumed"]["whole"] == {"epoch": 2, "step": 3}
        assert found["resumed"]["removed"] is None  # by the first process, which was late
        assert "process 0: [2, 3], process 1: none" in found["resumed"]["alone"]
        assert "a folder that all machines share" in found["resumed"]["alone"]


def command(data: str, out: Path) -> list[str]:
    settings = [*SMALL[:-1], "training.epochs=8", "training.positions=128", "training.checkpoint_minutes=1e-9"]
    return ["fit", "--data", data, "--out", str(out), "--text-encoder", "none", "--threads", "1", *settings]


def test_processes_that_were_killed_go_on_together_and_one_of_them_speaks_and_writes(planted: Path, tmp_path: Path) -> None:
    line = [*TORCHRUN, "-m", "training", *command(str(planted), tmp_path / "bundle")]
    killed = [*TORCHRUN, "-m", "tests.training.killed", "SIGKILL", "12", *command(str(planted), tmp_path / "bundle")]
    first = subprocess.run(killed, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert first.returncode != 0 and "epoch   1" in first.stderr
    assert (tmp_path / "bundle.checkpoint" / "state.pt").is_file() and not (tmp_path / "bundle").exists()
    done = subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("goes on from a checkpoint: epoch") == done.stderr.count("epoch   8") == 1
    assert done.stdout.count("release") == 1
    assert read_bundle(tmp_path / "bundle").manifest.offline_metrics["validation/filtered/N@10"] > 0.5
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_process_that_fails_ends_all_with_one_line_of_its_own(planted: Path, tmp_path: Path) -> None:
    own = " ".join([sys.executable, "-m", "training", *command("$DATA", tmp_path / "bundle")])
    script = f"if [ $RANK = 1 ]; then DATA={tmp_path / 'nowhere'}; else DATA={planted}; fi; exec {own}"
    done = subprocess.run(
        [*TORCHRUN, "--no-python", "sh", "-c", script], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if "nowhere" in line and "DATA=" not in line]
    assert len(said) == 1 and "events.parquet is missing" in said[0]
    assert "another one ended" not in done.stderr
    assert not (tmp_path / "bundle").exists()


def test_what_is_wrong_for_all_processes_is_said_once(planted: Path, tmp_path: Path) -> None:
    line = [*TORCHRUN, "-m", "training", *command(str(planted), tmp_path / "bundle"), "training.epoch=3"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode != 0
    assert done.stderr.count("training.epoch: there is no such setting") == 1
