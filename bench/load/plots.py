"""Pictures of a result, as SVG that stands in the page."""

import io
from collections.abc import Iterator, Mapping
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.load.figures import decoded

_SIZE = (9.0, 3.4)
_PLACES = (0, 10, 25, 50, 75, 90, 95, 99, 99.5, 99.9, 99.95, 99.99, 99.999)
_BLUE, _RED, _GREY, _GREEN = "#2563eb", "#dc2626", "#6b7280", "#16a34a"


def pictures(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(title, SVG) of everything that the result has something to show of."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "bench.load", "font.size": 10}):
        yield "Latency by percentile", _svg(lambda axes: _percentiles(axes, result))
        yield "Latency over time", _svg(lambda axes: _over_time(axes, result))
        yield "Calls over time", _svg(lambda axes: _calls(axes, result))
        if "sweep" in result:
            yield "Sweep to the knee", _svg(lambda axes: _sweep(axes, result))
        if "pairs" in result.get("echo", {}):
            yield "Beside the echo", _svg(lambda axes: _beside(axes, result["echo"]["pairs"]))


def _svg(draw: Any) -> str:
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    draw(axes)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _percentiles(axes: Axes, result: Mapping[str, Any]) -> None:
    histogram = decoded(result["histograms"]["latency_us"])
    count = histogram.get_total_count()
    # A percentile beyond what so many calls can say is only the maximum again.
    places = [place for place in _PLACES if count and (place < 90 or count * (1 - place / 100) >= 1)]
    values = [histogram.get_value_at_percentile(place) / 1e3 for place in places]
    axes.plot([1 / (1 - place / 100) for place in places], values, marker="o", markersize=4, color=_BLUE)
    axes.set_xscale("log")
    axes.set_yscale("log")
    shown = [place for place in places if place in (0, 50, 90, 99, 99.9, 99.99, 99.999)]
    axes.set_xticks([1 / (1 - place / 100) for place in shown], [f"{place:g} %" for place in shown])
    axes.minorticks_off()
    axes.axhline(result["settings"]["p99_ms"], color=_GREY, linestyle=":", linewidth=1)
    axes.set_ylabel("ms")


def _over_time(axes: Axes, result: Mapping[str, Any]) -> None:
    windows = result["windows"]
    for name, color in (("max_ms", _GREY), ("p99_ms", _RED), ("p50_ms", _BLUE)):
        values = [float("nan") if value is None else value for value in windows[name]]
        axes.plot(windows["start_s"], values, label=name.removesuffix("_ms"), color=color, linewidth=1.2)
    _mark(axes, result)
    axes.set_yscale("log")
    axes.set_ylabel("ms")
    axes.set_xlabel("s")
    axes.legend(loc="upper right")


def _calls(axes: Axes, result: Mapping[str, Any]) -> None:
    windows = result["windows"]
    rates = {name: [count / windows["width_s"] for count in windows[name]] for name in ("ok", "shed", "failed")}
    axes.stackplot(windows["start_s"], *rates.values(), labels=list(rates), colors=(_GREEN, "#f59e0b", _RED), alpha=0.8)
    _mark(axes, result)
    axes.set_ylabel("calls/s, by when they were due")
    axes.set_xlabel("s")
    axes.legend(loc="lower right")


def _mark(axes: Axes, result: Mapping[str, Any]) -> None:
    """Where the overload or the command began and ended."""
    if "overload" in result:
        begin = result["overload"]["before"]["seconds"]
        axes.axvspan(begin, begin + result["overload"]["during"]["seconds"], color=_GREY, alpha=0.15)
    if "during" in result:
        axes.axvspan(result["during"]["began_s"], result["during"]["ended_s"], color=_GREY, alpha=0.15)


def _sweep(axes: Axes, result: Mapping[str, Any]) -> None:
    lines = [("server", result["sweep"], _BLUE)]
    if "echo" in result:
        lines.append((f"{result['echo']['kind']} echo", result["echo"]["sweep"], _GREY))
    for name, steps, color in lines:
        known = sorted((step for step in steps if step["latency_ms"]["p99"] is not None), key=lambda step: float(step["rate"]))
        axes.plot([one["rate"] for one in known], [one["latency_ms"]["p99"] for one in known], color=color, label=name)
        for marker, kind in (("o", (True, False)), ("x", (False, True)), ("1", (False, False))):
            some = [one for one in known if (one["passed"], one["past_knee"]) == kind]
            axes.plot([one["rate"] for one in some], [one["latency_ms"]["p99"] for one in some], marker, color=color)
    axes.axhline(result["settings"]["p99_ms"], color=_RED, linestyle=":", linewidth=1)
    axes.set_yscale("log")
    axes.set_xlabel("offered reads/s (x: past the knee, y: sent late)")
    axes.set_ylabel("p99, ms")
    axes.legend(loc="upper left")


def _beside(axes: Axes, pairs: list[dict[str, Any]]) -> None:
    for offset, name, color in ((-0.2, "ours", _BLUE), (0.2, "echo", _GREY)):
        values = [pair[name]["latency_ms"]["p99"] or 0.0 for pair in pairs]
        axes.bar([number + offset for number in range(1, len(pairs) + 1)], values, width=0.4, label=name, color=color)
    axes.set_xticks(range(1, len(pairs) + 1))
    axes.set_xlabel("pair")
    axes.set_ylabel("p99, ms")
    axes.legend()
