"""The report: one page that needs nothing else."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from bench.load.plots import pictures

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #111827; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.verdict { font-size: 1.15rem; padding: .8rem 1rem; border-radius: .4rem; background: #dcfce7; }
.verdict.invalid { background: #fee2e2; }
table { border-collapse: collapse; margin: .5rem 0; } td, th { padding: .25rem .8rem; border-bottom: 1px solid #e5e7eb; }
th { text-align: left; } td.number { text-align: right; font-variant-numeric: tabular-nums; }
svg { max-width: 100%; height: auto; } code, pre { background: #f3f4f6; padding: .1rem .3rem; overflow-x: auto; }
.note { color: #4b5563; }
"""
_PLACES = ("p50", "p90", "p99", "p99_9", "max")
_LATENCY = ("p50", "p90", "p99", "p99.9", "max")
_LABELS = dict(zip(_PLACES, _LATENCY, strict=True))


def page(result: Mapping[str, Any]) -> str:
    """HTML of a result."""
    kind = "verdict" if result["valid"] else "verdict invalid"
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Load test</title>',
        f"<style>{_STYLE}</style></head><body>",
        f'<h1>Load test of {escape(str(result["settings"]["target"]))}</h1><p class="{kind}">{escape(result["verdict"])}</p>',
        _summary(result),
    ]
    parts += [f"<h2>{escape(title)}</h2>{svg}" for title, svg in pictures(result)]
    parts += [
        _methods(result),
        _codes(result),
        _echo(result),
        _sweep(result),
        _stages(result),
        _releases(result),
        _merged(result),
    ]
    parts += [_about(result), "</body></html>\n"]
    return "\n".join(part for part in parts if part)


def _summary(result: Mapping[str, Any]) -> str:
    latency, lag, late = (result[name] for name in ("latency_ms", "freshness_lag_ms", "send_lateness_ms"))
    rows = [
        ("Offered, answered", f"{result['offered_rps']:g} and {result['achieved_rps']:g} calls/s over {result['seconds']:g} s"),
        ("Latency of reads, ms", " · ".join(f"{label} {_n(latency[name])}" for name, label in _LABELS.items())),
        ("Shed, failed", f"{result['shed']} and {result['failed']} of {result['calls']} calls"),
        (f"Recall@{result['k']}", f"{_n(result['recall_at_k'], 4)} against exact search, of {result['recall_samples']} people"),
        ("Freshness lag, ms", f"p50 {_n(lag['p50'])} · p99 {_n(lag['p99'])}, {result['freshness']['samples']} samples; "
                              f"{result['freshness']['answers_behind']} answers lacked the event"),
        ("Send lateness, ms", f"p99 {_n(late['p99'])} · max {_n(late['max'])}"),
        ("Client", f"{result['processes']} process(es), {result['client_cpu']:g} of a core"),
        ("Knee, reads/s", _n(result["knee_rps"])),
    ]  # fmt: skip
    server = result["freshness"]["server_ms"]
    if server is not None:
        rows.append(("Freshness lag by the server's metric, ms", f"p50 ≤ {_n(server['p50'])} · p99 ≤ {_n(server['p99'])}"))
    note = (
        "Latencies are counted from the time when a call was due, so waiting in this client counts too; they are of calls "
        "that were answered OK. Freshness: from an event's acknowledgement to the first answer that shows it."
    )
    return _table(("", ""), rows) + f'<p class="note">{note}</p>'


def _methods(result: Mapping[str, Any]) -> str:
    rows = [
        (name, row["offered_rps"], row["achieved_rps"], *(row["latency_ms"][place] for place in _PLACES))
        for name, row in result["methods"].items()
    ]
    return "<h2>By kind of call</h2>" + _table(("", "offered/s", "OK/s", *(f"{one}, ms" for one in _LATENCY)), rows)


def _codes(result: Mapping[str, Any]) -> str:
    return "<h2>Codes</h2>" + _table(("", "calls"), result["codes"].items())


def _echo(result: Mapping[str, Any]) -> str:
    echo = result.get("echo")
    if echo is None:
        return ""
    head = f"<h2>Beside a bare echo ({escape(echo['kind'])})</h2>"
    if "pairs" not in echo:
        knees = [(kind, knee) for kind, knee in echo["knees_rps"].items()]
        text = f"<p>Knee over the better echo's: <b>{_n(echo['knee_ratio'], 3)}</b></p>"
        return head + text + _table(("echo", "knee, reads/s"), knees)
    rows = []
    for number, pair in enumerate(echo["pairs"], start=1):
        latencies = [pair[name]["latency_ms"][place] for name in ("ours", "echo") for place in ("p50", "p99")]
        rows.append((number, *latencies, pair["ratio"]["p50"], pair["ratio"]["p99"]))
    rows.append(("median", "", "", "", "", echo["median_ratio"]["p50"], echo["median_ratio"]["p99"]))
    return head + _table(("pair", "ours p50", "ours p99", "echo p50", "echo p99", "ratio p50", "ratio p99"), rows)


def _sweep(result: Mapping[str, Any]) -> str:
    if "sweep" not in result:
        return ""
    rows = [
        (step["rate"], step["achieved_rps"], step["latency_ms"]["p50"], step["latency_ms"]["p99"], step["shed"], step["failed"],
         step["send_lateness_ms"]["p99"], "yes" if step["passed"] else step["why"])
        for step in sorted(result["sweep"], key=lambda one: float(one["rate"]))
    ]  # fmt: skip
    return "<h2>Steps of the sweep</h2>" + _table(
        ("reads/s", "OK/s, all", "p50, ms", "p99, ms", "shed", "failed", "lateness p99, ms", "good"), rows
    )


def _stages(result: Mapping[str, Any]) -> str:
    parts = ""
    for name in ("overload", "during"):
        found = result.get(name)
        if found is None:
            continue
        rows = [
            (stage, one["seconds"], one["offered_rps"], one["achieved_rps"], one["goodput_rps"], one["latency_ms"]["p50"],
             one["latency_ms"]["p99"], one["latency_ms"]["max"], one["shed"], one["failed"],
             ", ".join(f"{code} {count}" for code, count in one["codes"].items()))
            for stage, one in ((stage, found[stage]) for stage in ("before", "during", "after"))
        ]  # fmt: skip
        title = f"Overload by {found['factor']:g}" if name == "overload" else "With a command in the middle"
        said = (
            f"Back within twice the p99 of before after {_n(found['recovery_s'])} s."
            if name == "overload"
            else f"{found['command']} left with status {found['status']}; p99 during/before: {_n(found['ratio'])}"
        )
        heads = ("", "s", "offered/s", "OK/s", "reads OK/s", "p50, ms", "p99, ms", "max, ms", "shed", "failed", "codes")
        parts += f"<h2>{title}</h2><p>{escape(said)}</p>" + _table(heads, rows)
    return parts


def _releases(result: Mapping[str, Any]) -> str:
    found = result["releases"]
    if found is None:
        return ""
    said = f"{found['mixed']} of {found['checked']} answers held an item that their release cannot return."
    return f"<h2>Releases</h2><p>{escape(said)}</p>" + _table(("release", "answers"), found["answers"].items())


def _merged(result: Mapping[str, Any]) -> str:
    if "merged" not in result:
        return ""
    rows = [(one["file"], one["began_at"], one["offered_rps"], one["latency_ms"]["p99"]) for one in result["merged"]]
    return "<h2>Hosts</h2>" + _table(("result", "began at", "offered/s", "p99, ms"), rows)


def _about(result: Mapping[str, Any]) -> str:
    machines = result["hardware"] if isinstance(result["hardware"], list) else [result["hardware"]]
    rows = [("Server", ", ".join(f"{name} {value}" for name, value in result["server"].items()))]
    rows += [("Client's machine", ", ".join(f"{name} {value}" for name, value in one.items())) for one in machines]
    return f"<h2>What ran</h2>{_table(('', ''), rows)}<pre>{escape(result['command'])}</pre>"


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    top = "".join(f"<th>{escape(head)}</th>" for head in heads) if any(heads) else ""
    body = "".join(f"<tr>{''.join(_cell(value) for value in row)}</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>" if top else f"<table>{body}</table>"


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return f'<td class="number">{_n(value)}</td>'
    return f"<td>{escape(str(value))}</td>"


def _n(value: float | None, digits: int = 2) -> str:
    return "not measured" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"
