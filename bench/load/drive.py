"""The processes of a load, from start to result."""

import json
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from bench.load.job import RECORDS, Job, Load

_START_IN_S = 0.3
_TICK_S = 0.5


class LoadError(Exception):
    """A process of the load failed; its message is above. One line."""


@dataclass(frozen=True)
class Command:
    """A command that ran during a load. Times in seconds from the load's start."""

    line: str
    began: float
    ended: float
    status: int
    output: str


@dataclass(frozen=True)
class Measured:
    """What came of a load."""

    load: Load
    records: NDArray[Any]  # (n,) RECORDS, of all processes, the warm-up left out
    processes: int
    began_at: float  # seconds since 1970
    cpu: Sequence[float]  # of each process, share of one core
    lags_s: Sequence[float]
    behind: int
    probe_failures: int
    releases: dict[str, Any] | None
    command: Command | None = field(default=None)


def drive(load: Load, processes: int, what: str, during: str | None = None) -> Measured:
    """Runs a load. during: a shell command that is run when a third of it is over. Raises LoadError."""
    run = uuid.uuid4().hex[:16]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"records-{part}" for part in range(processes)]
        jobs = [Job(load, part, processes, run, str(file)) for part, file in enumerate(files)]
        started = [_start(job) for job in jobs]
        try:
            for process in started:
                _expect_ready(process)
            begin = time.monotonic() + _START_IN_S
            began_at = time.time() + _START_IN_S
            for process in started:
                _say(process, f"{begin}\n")
            command = _wait(load, begin, what, during)
            outputs = [_result(process) for process in started]
        finally:
            for process in started:
                process.kill()
                process.communicate()
        records = np.concatenate([np.fromfile(file, dtype=RECORDS) for file in files])
    return _measured(load, records, processes, began_at, outputs, command)


def _measured(
    load: Load, records: NDArray[Any], processes: int, began_at: float, outputs: list[dict[str, Any]], command: Command | None
) -> Measured:
    return Measured(
        load=load,
        records=records[(records["due"] >= load.warm_up_s) & (records["due"] < load.seconds)],
        processes=processes,
        began_at=began_at,
        cpu=[one["cpu_s"] / max(one["wall_s"], 1e-9) for one in outputs],
        lags_s=[lag for one in outputs for lag in one["lags_s"]],
        behind=sum(one["behind"] for one in outputs),
        probe_failures=sum(one["probe_failures"] for one in outputs),
        releases=_added([one["releases"] for one in outputs if one["releases"]]),
        command=command,
    )


def _start(job: Job) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bench.load.worker"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    _say(process, job.to_json() + "\n")
    return process


def _say(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(text)
        process.stdin.flush()
    except BrokenPipeError:
        raise LoadError("a process of the load ended early; its message is above") from None


def _expect_ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    if process.stdout.readline().strip() != "ready":
        raise LoadError("a process of the load could not start or connect; its message is above")


def _result(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, _ = process.communicate()
    if process.returncode:
        raise LoadError(f"a process of the load left with status {process.returncode}; its message is above")
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


def _wait(load: Load, begin: float, what: str, during: str | None) -> Command | None:
    """Until the last call is due, with a progress bar; what came of the command."""
    found: list[Command] = []
    thread = None
    if during is not None:
        at = begin + load.warm_up_s + (load.seconds - load.warm_up_s) / 3
        thread = threading.Thread(target=lambda: found.append(_run(during, begin, at)))
        thread.start()
    shown = f"{{desc}} {{percentage:3.0f}}% |{{bar}}| {{n:.0f}}/{load.seconds:.0f} s"
    with tqdm(total=round(load.seconds), desc=what, bar_format=shown, disable=None, leave=False) as bar:
        while (left := begin + load.seconds - time.monotonic()) > 0:
            time.sleep(min(left, _TICK_S))
            bar.update(min(load.seconds, time.monotonic() - begin) - bar.n)
    if thread is not None:
        thread.join()
    return found[0] if found else None


def _run(line: str, begin: float, at: float) -> Command:
    time.sleep(max(0.0, at - time.monotonic()))
    began = time.monotonic()
    done = subprocess.run(line, shell=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return Command(line, began - begin, time.monotonic() - begin, done.returncode, done.stdout[-4000:])


def _added(found: list[dict[str, Any]]) -> dict[str, Any] | None:
    if not found:
        return None
    answers: dict[str, int] = {}
    for one in found:
        for release_id, count in one["answers"].items():
            answers[release_id] = answers.get(release_id, 0) + count
    return {
        "answers": answers,
        "checked": sum(one["checked"] for one in found),
        "mixed": sum(one["mixed"] for one in found),
        "examples": [example for one in found for example in one["examples"]][:5],
    }
