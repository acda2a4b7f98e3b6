"""The GPU's check runs from end to end without one, so that it still works where there is one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.gpu_check import RATES, ROOT, SIZES
from bench.gpu_measure import BATCHES, ENGINES, bound_seconds


def test_the_tiny_check_on_a_cpu_writes_a_whole_report(tmp_path: Path):
    command = [sys.executable, "-m", "bench.gpu_check", "--device", "cpu", "--size", "tiny", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "check.json").read_text(encoding="utf-8"))
    assert report["device"].startswith("CPU, ")
    assert report["tests"]["ran"] and report["tests"]["failed"] == 0
    assert report["tests"].get("passed", 0) + report["tests"].get("skipped", 0) > 0
    engines = report["engines"]
    indexes = sum(1 if size.filtered else len(ENGINES) for size in SIZES["tiny"])
    assert len(engines) == indexes * len(BATCHES) * len(RATES)
    assert {one["wanted_upserts_per_s"] for one in engines} == set(RATES)
    for one in engines:
        assert 0 < one["p50_ms"] <= one["p99_ms"] <= one["with_writes_p99_ms"]
        assert one["ratio"] == pytest.approx(one["p50_ms"] / one["bound_ms"])
        assert one["stale"] == 0
    table = (tmp_path / "check.md").read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith(("| exact", "| faiss-gpu")) for line in table) == len(engines)


def test_the_bound_is_the_formula():
    fused = bound_seconds(rows=10**7, columns=64, dtype_bytes=2, batch=1, bandwidth=2.68e12, passes=0, t0=1e-4)
    assert fused == pytest.approx(1e-4 + 1.28e9 / 2.68e12)
    five = bound_seconds(rows=10**7, columns=64, dtype_bytes=2, batch=16, bandwidth=2.68e12, passes=5, t0=0)
    assert five == pytest.approx((1.28e9 + 5 * 16 * 1e7 * 4) / 2.68e12)
