"""What a person reads first: one line on what a run showed, or why it shows nothing."""

from collections.abc import Mapping
from typing import Any

ERRORS_ALLOWED = 0.001  # share of calls, of a run that passes
ANSWERED_AT_LEAST = 0.97  # share of calls


def passes(found: Mapping[str, Any], p99_ms: float) -> str | None:
    """Why a run is past the knee; None if it is not."""
    calls, ok = found["calls"], found["codes"].get("OK", 0)
    p99 = found["latency_ms"]["p99"]
    if p99 is None:
        return "no call was answered"
    if p99 > p99_ms:
        return f"p99 {p99:g} ms"
    if calls - ok >= ERRORS_ALLOWED * calls:
        return f"{calls - ok} of {calls} calls were not answered"
    if found["achieved_rps"] < ANSWERED_AT_LEAST * found["offered_rps"]:
        return f"only {found['achieved_rps']} of {found['offered_rps']} a second were answered"
    return None


def verdict(found: Mapping[str, Any], p99_ms: float) -> str:
    """Of a sweep, the knee comes before the question of whether all of it can be trusted."""
    if "sweep" in found:
        return _of_sweep(found, p99_ms) + _mixed(found)
    if not found["valid"]:
        return f"INVALID: {'; '.join(found['invalid_because'])}." + _mixed(found)
    if "overload" in found:
        return _of_overload(found["overload"]) + _mixed(found)
    why = passes(found, p99_ms)
    state = f"within {p99_ms:g} ms" if why is None else f"not good: {why}"
    latency, bad = found["latency_ms"], found["calls"] - found["codes"].get("OK", 0)
    return (
        f"{found['offered_rps']:g} calls/s for {found['seconds']:g} s: "
        f"p50 {_ms(latency['p50'])}, p99 {_ms(latency['p99'])}{_recall(found)}; "
        f"{bad} of {found['calls']} calls not answered ({found['shed']} shed); {state}."
        + _of_command(found.get("during"))
        + _mixed(found)
    )


def _of_sweep(found: Mapping[str, Any], p99_ms: float) -> str:
    knee, steps = found["knee_rps"], found["sweep"]
    if knee is not None and found["valid"]:
        said = f"The largest Poisson rate with p99 ≤ {p99_ms:g} ms is {knee:g} reads/s{_recall(found)}."
    elif knee is not None:
        said = f"The knee is at least {knee:g} reads/s (p99 ≤ {p99_ms:g} ms){_recall(found)}: {_reasons(found)}."
    elif found["valid"]:
        least = min((step for step in steps if step["past_knee"]), key=lambda step: float(step["rate"]))
        said = f"No rate was good: {least['rate']:g} reads/s, the smallest tried, was not answered well ({least['why']})."
    else:
        said = f"INVALID: no rate was good; {_reasons(found)}."
    echo = found.get("echo")
    if echo is None:
        return said
    if echo["knee_rps"] is None:
        return f"{said} No rate was good on the echo."
    least, most = ("at least ", "at most ") if echo["client_was_the_limit"] else ("", "")
    ratio = "" if echo["knee_ratio"] is None else f", of which ours is {most}{echo['knee_ratio']:.2f}"
    return f"{said} The {echo['kind']} echo's is {least}{echo['knee_rps']:g}{ratio}."


def _of_overload(found: Mapping[str, Any]) -> str:
    share, back = found["goodput_share"], found["recovery_s"]
    return (
        f"At {found['factor']:g} times {found['base_rps']:g} reads/s: {found['goodput_rps']:g} a second were answered "
        f"({share:.0%} of the rate before), p99 of those {_ms(found['p99_ms'])}, {found['shed']} calls shed; "
        + (f"back to normal {back:g} s after." if back is not None else "not back to normal before the end.")
    )


def _of_command(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    p99 = found["p99_ms"]
    ratio = "" if found["ratio"] is None else f" (during/before {found['ratio']:g})"
    return f" p99 before, during and after the command: {', '.join(_ms(p99[name]) for name in p99)}{ratio}."


def _mixed(found: Mapping[str, Any]) -> str:
    releases = found["releases"]
    return "" if releases is None else f" {releases['mixed']} of {releases['checked']} answers mix releases."


def _recall(found: Mapping[str, Any]) -> str:
    if found["recall_at_k"] is not None:
        return f" and recall@{found['k']} {found['recall_at_k']:.3f}"
    if found.get("settings", {}).get("recall_queries"):  # fast, since nothing was searched
        return " (NO RECALL: no answer came from a person's vector; are the people of --ids known, and did they agree?)"
    return ""


def _reasons(found: Mapping[str, Any]) -> str:
    return "; ".join(found["invalid_because"])


def _ms(value: float | None) -> str:
    return "not measured" if value is None else f"{value:g} ms"
