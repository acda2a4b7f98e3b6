"""Whether there is memory for one more release, before any of it is taken."""

from pathlib import Path
from typing import NamedTuple

import psutil

from index.gpu.memory import TOWER_BYTES
from server.errors import ResourceExhausted

MIB = 1024**2
_PROCESS_BYTES = 700 * MIB
"""Allowed for the process that prepares a release, without items. An allowance, not a measurement."""
_PERSON_BYTES = 160  # of a person's vector, without its components: numbers, and places in tables
_GROUP = Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60


class Sizes(NamedTuple):
    """What decides how much memory a release needs."""

    items: int
    bundle_items: int
    people: int  # whose vectors are kept
    dim: int
    row_bytes: int  # of a component: 4 or 2
    has_lists: bool
    rows_on_host: bool


def check_memory(sizes: Sizes, available: int) -> None:
    """Raises ResourceExhausted, with every part, if they are more than the bytes that are available."""
    dim, items = sizes.dim, sizes.items
    parts = {
        "item vectors": items * (dim * sizes.row_bytes + 5) if sizes.rows_on_host else 0,
        # float16 codes and ids in vectors that grow by doubling, and a node of the hash table; and a copy while they are built
        "inverted lists": items * (2 * (2 * dim + 8) + 48 + 2 * dim) if sizes.has_lists else 0,
        "the bundle's vectors and residuals": sizes.bundle_items * 2 * 4 * dim,
        "people's vectors": sizes.people * (4 * dim + _PERSON_BYTES),
        "towers": TOWER_BYTES,
        "the process that prepares it": _PROCESS_BYTES + sizes.bundle_items * 2 * 4 * dim + items * (2 * 4 * dim + 1_000),
    }
    needed = sum(parts.values())
    if needed > available:
        listed = ", ".join(f"{name} {_mib(size)}" for name, size in parts.items() if size)
        raise ResourceExhausted(
            f"another release needs {_mib(needed)} and {_mib(available)} are free: {listed}; "
            "keep fewer releases (releases.keep), keep rows as float16 (index.rows), or give the server more memory"
        )


def available_bytes() -> int:
    """Bytes that can be had now: of the machine, or of what this process's control group allows."""
    return min(psutil.virtual_memory().available, _left_in_group())


def _left_in_group() -> int:
    """What a container may still take (cgroup v2)."""
    try:
        limit = (_GROUP / "memory.max").read_text().strip()
        used = int((_GROUP / "memory.current").read_text())
        kept = dict(line.split() for line in (_GROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return _UNLIMITED
    # Cached files are counted as used and given back when they are needed.
    return _UNLIMITED if limit == "max" else int(limit) - used + int(kept.get("inactive_file", 0))


def _mib(size: int) -> str:
    return f"{size / MIB:,.0f} MiB"
