"""What an index takes: by how much the process grows while it is built."""

import ctypes
import gc
import os
from pathlib import Path

_MEGABYTE = 1e6


def resident_mb() -> float:
    """The resident memory of this process in megabytes (10^6 bytes), after giving back what is free."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, AttributeError):
        return float("nan")  # not Linux with glibc
    return pages * os.sysconf("SC_PAGE_SIZE") / _MEGABYTE
