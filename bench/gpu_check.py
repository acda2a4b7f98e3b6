"""`python -m bench.gpu_check`: what a GPU is needed for, in one run: the gpu tests, searches under writes, a report.

Search is compared with the least time that the device's memory allows: t0 + (N·d·s + p·B·N·4) / BW, with p = 0, see
`bench.gpu_measure.bound_seconds`; BW is measured in the same run by copies inside the device's memory. The report is
check.json and check.md in --out. `--device cpu --size tiny` runs the same code in seconds on any machine.
"""

import argparse
import json
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bench.gpu_measure import Measured, Size, copy_bandwidth, measure_all
from bench.hardware import hardware
from index.choice import installed_faiss

ROOT = Path(__file__).parents[1]
SIZES = {
    # The last is that of LinkedIn's LiNR, arXiv 2407.13218: one A100, an attribute filter, 4.8 ms on average.
    "full": [
        *(Size(items, dim) for items in (1_000_000, 10_000_000) for dim in (64, 128)),
        Size(15_500_000, 128, filtered=True),
    ],
    "tiny": [Size(20_000, 16), Size(20_000, 16, filtered=True)],
}
RATES = (0, 1_000, 10_000)
SECONDS = {"full": 3.0, "tiny": 0.05}
COPY_BYTES = {"full": 1024**3, "tiny": 16 * 1024**2}


def main() -> None:
    arguments = _arguments()
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("torch sees no CUDA device; install the driver and the gpu extra, or run with DEVICE=cpu SIZE=tiny")
    torch.set_num_threads(1)
    tests = run_tests() if arguments.tests else {"ran": False}
    bandwidth = copy_bandwidth(arguments.device, COPY_BYTES[arguments.size])
    print(f"copies: {bandwidth / 1e9:.1f} GB/s", flush=True)
    measured = measure_all(
        SIZES[arguments.size],
        RATES,
        seconds=arguments.seconds or SECONDS[arguments.size],
        device=arguments.device,
        bandwidth=bandwidth,
        told=lambda one: print(_line(one), flush=True),
    )
    report = {
        "device": device_name(arguments.device),
        "size": arguments.size,
        "hardware": hardware(),
        "versions": {"torch": torch.__version__, "cuda": torch.version.cuda, "faiss": installed_faiss().version},
        "tests": tests,
        "copy_gb_per_s": bandwidth / 1e9,
        "engines": [asdict(one) for one in measured],
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "check.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (arguments.out / "check.md").write_text(markdown(report, measured), encoding="utf-8")
    print(f"written to {arguments.out}")
    stale = sum(one.stale for one in measured)
    if tests.get("failed") or stale:
        sys.exit(f"{tests.get('failed', 0)} tests failed, {stale} written vectors were not found")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_check", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--device", default="cuda:0", help="cuda:N or cpu (default: %(default)s)")
    parser.add_argument("--size", choices=sorted(SIZES), default="full", help="default: %(default)s")
    parser.add_argument("--seconds", type=float, help="of each measurement (default: 3, or 0.05 if tiny)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "gpu", help="folder of the report (default: docs/gpu)")
    parser.add_argument("--no-tests", dest="tests", action="store_false", help="leave out the tests that are marked gpu")
    return parser.parse_args()


def device_name(device: str) -> str:
    """What the figures belong to."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else f"CPU, {hardware()['cpu']}"


def run_tests() -> dict[str, Any]:
    """Runs the tests that are marked gpu; counts by outcome."""
    # Only the files that have such tests: to collect the others takes longer than to run these.
    files = [str(file) for file in sorted((ROOT / "tests").rglob("test_*.py")) if "pytest.mark.gpu" in file.read_text("utf-8")]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout, end="", flush=True)
    counts = {word: int(count) for count, word in re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout)}
    counts["failed"] = counts.get("failed", 0) + counts.pop("error", 0)
    if done.returncode and not counts["failed"]:
        counts["failed"] = 1  # pytest itself did not get through
    return {"ran": True, **counts}


def _line(one: Measured) -> str:
    return (
        f"{one.engine:9} {one.items:>10,} x {one.dim:<4} {'a tenth' if one.filtered else 'all':7} batch {one.batch:<3} "
        f"{one.upserts_per_s:>8,.0f} upserts/s  "
        f"p50 {one.p50_ms:8.3f} ms  p99 {one.p99_ms:8.3f} ms  {one.ratio:6.1f} x the bound"
    )


def markdown(report: dict[str, Any], measured: list[Measured]) -> str:
    """The report for people."""
    tests = report["tests"]
    counted = ", ".join(f"{tests[word]} {word}" for word in ("passed", "failed", "skipped") if word in tests) or "not run"
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items() if version)
    head = f"""# GPU check

Written by `python -m bench.gpu_check`. Device: {report["device"]}. {versions}. Tests marked gpu: {counted}.

Copies inside the device's memory: {report["copy_gb_per_s"]:.0f} GB/s (read and written counted each). The bound is
t0 + N·d·s / BW: every row is read once, at that bandwidth. "exact" is our own scan, "faiss-gpu" FAISS's brute force.
Rows are float16, k is 100; a latency ends when the hits are on the host. "With writes" adds the writes that were due before
a search in the same thread. Written vectors that the search after them missed: {sum(one.stale for one in measured)}.

| engine | items | dim | filter lets pass | batch | upserts/s | p50 ms | p99 ms | p99 with writes | bound ms | p50 / bound |
|---|---|---|---|---|---|---|---|---|---|---|
"""
    rows = [
        f"| {one.engine} | {one.items:,} | {one.dim} | {'a tenth' if one.filtered else 'all'} | {one.batch} "
        f"| {one.upserts_per_s:,.0f} | {one.p50_ms:.3f} | {one.p99_ms:.3f} | {one.with_writes_p99_ms:.3f} "
        f"| {one.bound_ms:.3f} | {one.ratio:.1f} |"
        for one in measured
    ]
    return head + "\n".join(rows) + "\n"


if __name__ == "__main__":
    main()
