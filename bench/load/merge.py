"""Several results as one: of hosts that sent at the same time, or of runs one after the other."""

import json
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hdrh.codec import HdrCookieException, HdrLengthException  # type: ignore[import-untyped]

from bench.load.figures import decoded, encoded, histogram, latency_ms
from bench.load.mix import InputError
from bench.load.verdict import verdict

_NEEDED = (
    *("offered_rps", "achieved_rps", "latency_ms", "codes", "calls", "shed", "failed", "seconds", "recall_at_k", "k"),
    *("freshness", "client_cpu", "client_cpu_most", "processes", "valid", "invalid_because", "hardware", "settings"),
    *("methods", "releases", "windows", "began_at", "histograms"),
)
_HISTOGRAMS = ("latency_us", "send_lateness_us", "freshness_lag_us")
_SUMS = ("calls", "shed", "failed", "processes")


def merge(paths: Sequence[Path]) -> dict[str, Any]:
    """The results of hosts that sent at the same time: rates are added. Raises InputError.

    Latencies come from the hosts' histograms, not from their percentiles, which cannot be added. A window's p99 and maximum are
    the largest of any host.
    """
    found = [_read(path) for path in paths]
    if len({json.dumps(one, sort_keys=True) for one in found}) < len(found):
        raise InputError("one result is there twice; its calls would count twice")
    if len({(one["settings"]["limit"], one["settings"]["p99_ms"]) for one in found}) > 1:
        raise InputError("the results differ in --limit or --p99-ms; merge runs of the same load")
    result = added(found)
    for name in ("offered_rps", "achieved_rps", "client_cpu"):
        result[name] = round(sum(one[name] for one in found), 3)
    for kind, row in result["methods"].items():
        for name in ("offered_rps", "achieved_rps"):
            row[name] = round(sum(one["methods"][kind][name] for one in found if kind in one["methods"]), 2)
    result |= {
        "seconds": max(one["seconds"] for one in found),
        "hardware": [one["hardware"] for one in found],
        "windows": _windows([one["windows"] for one in found]),
        "merged": [
            {
                "file": path.name,
                "began_at": one["began_at"],
                **{name: one[name] for name in ("offered_rps", "latency_ms", "valid")},
            }
            for path, one in zip(paths, found, strict=True)
        ],
    }
    for name in ("sweep", "echo", "overload", "during"):
        result.pop(name, None)
    return result | {"verdict": verdict(result, found[0]["settings"]["p99_ms"])}


def added(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Calls, codes and histograms of all; rates are means, as of runs one after the other. The windows are the first one's."""
    first = found[0]
    histograms = {name: _sum([one["histograms"][name] for one in found]) for name in _HISTOGRAMS}
    by_kind = {
        name: _sum([one["histograms"]["methods_us"][name] for one in found if name in one["methods"]])
        for name in sorted({name for one in found for name in one["methods"]})
    }
    late, lag = latency_ms(histograms["send_lateness_us"]), latency_ms(histograms["freshness_lag_us"])
    codes: Counter[str] = Counter()
    for one in found:
        codes.update(one["codes"])
    reasons = [why for one in found for why in one["invalid_because"]]
    samples = [(one["recall_at_k"], one.get("recall_samples", 0)) for one in found if one["recall_at_k"] is not None]
    asked = sum(count for _, count in samples)
    return first | {
        **{name: sum(one[name] for one in found) for name in _SUMS},
        "offered_rps": round(sum(one["offered_rps"] for one in found) / len(found), 2),
        "achieved_rps": round(sum(one["achieved_rps"] for one in found) / len(found), 2),
        "latency_ms": latency_ms(histograms["latency_us"]),
        "codes": dict(codes),
        "recall_at_k": sum(value * count for value, count in samples) / asked if asked else None,
        "recall_samples": asked,
        "freshness_lag_ms": {"p50": lag["p50"], "p99": lag["p99"]},
        "freshness": _freshness([one["freshness"] for one in found]),
        "send_lateness_ms": {name: late[name] for name in ("p99", "p50", "max")},
        "client_cpu": max(one["client_cpu"] for one in found),
        "client_cpu_most": max(one["client_cpu_most"] for one in found),
        "knee_rps": None,
        "valid": all(one["valid"] for one in found),
        "invalid_because": reasons,
        "methods": {
            name: _method([one["methods"][name] for one in found if name in one["methods"]], by_kind[name]) for name in by_kind
        },
        "releases": _releases([one["releases"] for one in found if one["releases"]]),
        "histograms": {name: encoded(one) for name, one in histograms.items()}
        | {"methods_us": {name: encoded(one) for name, one in by_kind.items()}},
    }


def _sum(texts: Sequence[str]) -> Any:
    total = histogram(())
    for text in texts:
        total.add(decoded(text))
    return total


def _freshness(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    names = ("samples", "answers_behind", "probes_failed")
    return {name: sum(one[name] for one in found) for name in names} | {"server_ms": found[0]["server_ms"]}


def _method(found: Sequence[dict[str, Any]], latencies: Any) -> dict[str, Any]:
    """One kind of call in all results; rates as those of a result."""
    codes: Counter[str] = Counter()
    for one in found:
        codes.update(one["codes"])
    rates = {name: round(sum(one[name] for one in found) / len(found), 2) for name in ("offered_rps", "achieved_rps")}
    return rates | {"latency_ms": latency_ms(latencies), "codes": dict(codes)}


def _releases(found: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    if not found:
        return None
    answers: Counter[str] = Counter()
    for one in found:
        answers.update(one["answers"])
    sums = {name: sum(one[name] for one in found) for name in ("checked", "mixed")}
    return {"answers": dict(answers), **sums, "examples": [text for one in found for text in one["examples"]][:5]}


def _windows(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """By seconds since each host's own start; hosts that started apart are laid over each other."""
    longest = max(found, key=lambda one: len(one["start_s"]))
    if any(one["width_s"] != longest["width_s"] for one in found):
        return longest
    merged = {name: list(values) if isinstance(values, list) else values for name, values in longest.items()}
    for one in found:
        if one is longest:
            continue
        for place in range(len(one["start_s"])):
            for name in ("calls", "ok", "shed", "failed"):
                merged[name][place] += one[name][place]
            for name in ("p50_ms", "p99_ms", "max_ms"):
                values = [value for value in (merged[name][place], one[name][place]) if value is not None]
                merged[name][place] = max(values, default=None)
    return merged


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not JSON"
        raise InputError(f"{path} cannot be read: {reason}") from None
    missing = [name for name in _NEEDED if not isinstance(found, dict) or name not in found]
    if missing:
        raise InputError(f"{path} is no result of bench.load: it lacks {missing[0]}")
    result: dict[str, Any] = found
    _check_histograms(result, path)
    return result


def _check_histograms(found: Mapping[str, Any], path: Path) -> None:
    """Whether all are there, and readable: percentiles, which older versions wrote instead, cannot be added up."""
    texts = found["histograms"]
    for name in (*_HISTOGRAMS, "methods_us"):
        if name not in texts:
            raise InputError(f"{path} lacks histograms.{name}: an older version wrote it; measure again with this one")
    if missing := found["methods"].keys() - texts["methods_us"].keys():
        raise InputError(f"{path} lacks the histogram of {min(missing)}; measure again")
    try:
        for text in (*(texts[name] for name in _HISTOGRAMS), *texts["methods_us"].values()):
            decoded(text)
    except (ValueError, zlib.error, HdrCookieException, HdrLengthException):
        raise InputError(f"{path} has a damaged histogram; measure again") from None
