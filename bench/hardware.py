"""What a figure was measured on."""

import os
import platform
from pathlib import Path


def hardware() -> dict[str, str | int | None]:
    """The machine, for the results' JSON: processor, cores, and Python's version."""
    return {"cpu": _cpu(), "cores": os.cpu_count(), "python": platform.python_version()}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
