"""Figures of the process: memory and its limit, processor time, files, threads, and pauses of the garbage collector."""

import gc
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from server.telemetry.histogram import Histogram, family

_GENERATIONS = 3
# Seconds. A collection of the youngest takes microseconds; a full one over a million objects 50 ms.
_PAUSES = (1e-5, 1e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0)
_TASKS = Path("/proc/self/task")
_PROC = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")


class ProcessFigures(Collector):
    """Reads the process when it is asked. Times the garbage collector from construction to `close`: it stops every thread."""

    def __init__(self) -> None:
        self._standard = ProcessCollector(registry=None)  # process_*, as all of Prometheus's clients name them
        self._pauses = [Histogram(_PAUSES) for _ in range(_GENERATIONS)]
        self._began = 0.0
        gc.callbacks.append(self._collecting)

    def close(self) -> None:
        """Times nothing any more."""
        if self._collecting in gc.callbacks:
            gc.callbacks.remove(self._collecting)

    def collect(self) -> Iterator[Metric]:
        yield from self._standard.collect()
        yield GaugeMetricFamily(
            "towerbridge_memory_limit_bytes",
            "What the process may have: the control group's limit, or the machine's memory if that is less.",
            memory_limit(),
        )
        yield GaugeMetricFamily("towerbridge_threads", "Threads of the process.", _threads())
        yield family(
            "towerbridge_gc_pause_seconds",
            "Collections of Python's garbage collector, during which nothing else runs, by generation.",
            ["generation"],
            (([str(generation)], histogram) for generation, histogram in enumerate(self._pauses)),
        )

    def _collecting(self, phase: str, info: dict[str, int]) -> None:
        # Collections do not overlap, whichever thread has one: so one instant is enough.
        if phase == "start":
            self._began = time.perf_counter()
        else:
            self._pauses[info["generation"]].observe(time.perf_counter() - self._began)


def _threads() -> int:
    """Python's and those of libraries; Python's alone where the system does not tell."""
    try:
        return sum(1 for _ in _TASKS.iterdir())
    except OSError:
        return threading.active_count()


def memory_limit(proc: Path = _PROC, groups: Path = _CGROUPS) -> int:
    """Bytes that this process may have: the least of its control groups' limits (version 2 or 1) and the machine's memory.

    proc: lists the process's groups. groups: where they are mounted.
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    try:
        lines = proc.read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            limits += _limits_of(groups, path, "memory.max")
        elif "memory" in controllers.split(","):
            limits += _limits_of(groups / "memory", path, "memory.limit_in_bytes")
    return min(limits)


def _limits_of(root: Path, path: str, file: str) -> Iterator[int]:
    """The limits of a group and of all that it lies in. In a container the group's own path may be missing, the root not."""
    folder = root / path.lstrip("/")
    for one in (folder, *folder.parents):
        if one.is_relative_to(root) and (one / file).is_file():
            text = (one / file).read_text().strip()
            if text.isdigit():  # not "max"
                yield int(text)
