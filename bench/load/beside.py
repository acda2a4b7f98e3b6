"""The same load on a bare gRPC echo of the same message sizes: what gRPC in Python costs here, with nothing behind it."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from typing import Any

from bench.load.channel import Reach
from bench.load.drive import LoadError
from bench.load.job import Load

ECHOES = ("aio", "sync")
"""asyncio with uvloop; a pool of threads: the two servers that gRPC has for Python."""


@contextmanager
def echo_server(kind: str, sizes: Mapping[str, int]) -> Iterator[Reach]:
    """An echo in a process of its own."""
    command = [sys.executable, "-m", "bench.echo", str(max(sizes.values(), default=0))]
    command += [f"--method={name}={size}" for name, size in sizes.items()]
    if kind == "sync":
        command.append("--sync")
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline() if process.stdout is not None else ""
        if not line.strip().isdecimal():
            raise LoadError("the echo did not start; its message is above")
        yield Reach(f"127.0.0.1:{int(line)}")
    finally:
        process.communicate()


def on_echo(load: Load, reach: Reach) -> Load:
    """The same load for an echo. It has no keys, no TLS and no releases."""
    return replace(load, reach=reach, is_echo=True, releases=None)


def ratios(ours: Mapping[str, Any], echo: Mapping[str, Any]) -> dict[str, float | None]:
    """Ours over the echo's."""
    pairs = {name: (ours["latency_ms"][name], echo["latency_ms"][name]) for name in ("p50", "p99")}
    return {name: round(a / b, 3) if a and b else None for name, (a, b) in pairs.items()}


def median_ratio(found: list[dict[str, Any]], name: str) -> float | None:
    values = [pair["ratio"][name] for pair in found if pair["ratio"][name] is not None]
    return round(median(values), 3) if values else None
