"""A result: the figures of a run, and whether they can be trusted."""

import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import psutil

from bench.hardware import hardware
from bench.load.drive import Measured
from bench.load.figures import (
    LATE_MS,
    answered,
    by_kind,
    calls_of,
    encoded,
    histogram,
    histograms_by_kind,
    latency_ms,
    lateness,
    main_kinds,
    outcome,
    windows,
)
from bench.load.job import UNSENT
from bench.load.options import Options

_PACKAGES = ("grpcio", "protobuf", "numpy", "hdrhistogram", "uvloop")
_HIDDEN = ("reach", "key")


def result_of(measured: Measured) -> dict[str, Any]:
    """The figures of one run; what was not measured is None."""
    load = measured.load
    seconds = load.seconds - load.warm_up_s
    records = measured.records
    late, lags = lateness(records), histogram(measured.lags_s)
    lateness_ms, lag_ms = latency_ms(late), latency_ms(lags)
    reasons = _invalid(lateness_ms["p99"], int((records["code"] == UNSENT).sum()), len(calls_of(records)))
    return outcome(records, seconds) | {
        "recall_at_k": None,
        "freshness_lag_ms": {"p50": lag_ms["p50"], "p99": lag_ms["p99"]},
        "send_lateness_ms": {"p99": lateness_ms["p99"], "p50": lateness_ms["p50"], "max": lateness_ms["max"]},
        "client_cpu": round(sum(measured.cpu), 3),
        "knee_rps": None,
        "valid": not reasons,
        "invalid_because": reasons,
        "hardware": machine(),
        "k": load.limit,
        "freshness": {
            "samples": lags.get_total_count(),
            "answers_behind": measured.behind,
            "probes_failed": measured.probe_failures,
            "server_ms": None,
        },
        "methods": by_kind(records, seconds),
        "releases": measured.releases,
        "processes": measured.processes,
        "client_cpu_most": round(max(measured.cpu), 3),
        "began_at": datetime.fromtimestamp(measured.began_at, UTC).isoformat(timespec="milliseconds"),
        "windows": windows(records, load.warm_up_s, load.seconds),
        "histograms": {
            "latency_us": encoded(histogram(answered(records, main_kinds(records)))),
            "send_lateness_us": encoded(late),
            "freshness_lag_us": encoded(lags),
            "methods_us": {name: encoded(one) for name, one in histograms_by_kind(records).items()},
        },
    }


def machine() -> dict[str, Any]:
    """The machine and the versions that sent the load."""
    return hardware() | {
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "load_average": [round(one, 2) for one in os.getloadavg()],
        "system": platform.platform(),
        "versions": {name: version(name) for name in _PACKAGES},
    }


def settings_of(options: Options) -> dict[str, Any]:
    """What was asked for, without keys."""
    values = {name: value for name, value in vars(options).items() if name not in _HIDDEN}
    plain = {name: str(value) if hasattr(value, "parts") else value for name, value in values.items()}
    return plain | {"target": options.reach.target, "tls": options.reach.tls, "with_key": options.reach.key is not None}


def _invalid(late_ms: float | None, unsent: int, calls: int) -> list[str]:
    """Why the figures say more about the client than about the server."""
    reasons = []
    if not calls:
        reasons.append("no call was due; give a longer --duration or a higher rate")
    if late_ms is not None and late_ms > LATE_MS:
        reasons.append(
            f"calls were sent late (p99 {late_ms:g} ms, allowed {LATE_MS:g}): this client was short of processor time; "
            "give it more cores or --processes, or send from another host"
        )
    if unsent:
        reasons.append(f"{unsent} calls were not sent, since too many were in flight; give a shorter --deadline-ms")
    return reasons


def command_line() -> str:
    """The arguments as they were given, keys left out."""
    shown, hide = [], False
    for word in sys.argv[1:]:
        shown.append("…" if hide else "--key=…" if word.startswith("--key=") else word)
        hide = word == "--key"
    return "python -m bench.load " + " ".join(shown)
