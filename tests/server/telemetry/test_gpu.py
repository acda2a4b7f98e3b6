"""Figures of GPUs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from server.telemetry.gpu import GpuFigures
from tests.server.telemetry.scraped import scrape, serving

GIB = 1 << 30


def in_a_process(folder: Path) -> dict[str, float]:
    """GPU figures of a process that finds the driver's library in `folder`."""
    code = (
        "import json\nfrom tests.server.telemetry.scraped import scrape, serving\n"
        "with serving() as url: print(json.dumps(scrape(url)))"
    )
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    figures: dict[str, float] = json.loads(done.stdout)
    return {name: value for name, value in figures.items() if "_gpu_" in name}


def test_without_a_driver_there_are_no_figures_and_no_error(tmp_path: Path):
    (tmp_path / "libnvidia-ml.so.1").write_text("not a library")
    assert in_a_process(tmp_path) == {}


def test_every_gpu_is_told_and_what_one_does_not_tell_is_left_out(tmp_path: Path):
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("g++")
    if compiler is None:
        pytest.skip("needs a C compiler, to make a driver's library")
    source = Path(__file__).with_name("nvml.c")
    library = tmp_path / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-x", "c", "-shared", "-fPIC", "-o", library, source], check=True, timeout=120)
    assert in_a_process(tmp_path) == {
        "towerbridge_gpu_utilisation_ratio{gpu=0}": 0.37,
        "towerbridge_gpu_memory_used_bytes{gpu=0}": 3 * GIB,
        "towerbridge_gpu_memory_used_bytes{gpu=1}": 4 * GIB,
        "towerbridge_gpu_memory_total_bytes{gpu=0}": 80 * GIB,
        "towerbridge_gpu_memory_total_bytes{gpu=1}": 80 * GIB,
    }


def test_closing_twice_is_as_closing_once():
    figures = GpuFigures()
    figures.close()
    figures.close()
    assert all(not metric.samples for metric in figures.collect())


@pytest.mark.gpu
def test_a_real_gpu_is_told():
    import torch

    held = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    with serving() as url:
        figures = scrape(url)
    used = {name: value for name, value in figures.items() if name.startswith("towerbridge_gpu_memory_used_bytes")}
    assert used and max(used.values()) >= held.numel()
    for name, value in used.items():
        assert value < figures[name.replace("used", "total")]
