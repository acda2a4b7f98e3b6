"""The results as a table and as a picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def table(results: Mapping[str, Any]) -> str:
    """What a person reads: engines, then writes and filters, a row each."""
    lines = [
        "",
        f"{'engine':18} {'recall':>7} {'build_s':>8} {'MB':>7}   p50 / p99 ms at batch 1{'':9}16{'':16}64{'':8}"
        f"{'upserts/s':>11} {'removes/s':>10}",
    ]
    for engine in results["engines"]:
        batches = " ".join(f"{row['p50_ms']:8.3f} /{row['p99_ms']:8.3f}" for row in engine["batch"].values())
        lines.append(
            f"{engine['engine']:18} {engine['recall']:7.4f} {engine['build_s']:8.1f} {engine['memory_mb']:7.0f}   {batches} "
            f"{_number(engine['upserts_per_s']):>11} {_number(engine['removes_per_s']):>10}"
            + ("" if engine["reached"] else f"  (does not reach {results['settings']['recall']})")
        )
    lines += _writes(results) + _filters(results) + _stages(results["topk"]) + _streaming(results.get("streaming", ()))
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _writes(results: Mapping[str, Any]) -> list[str]:
    lines = ["", "searches under writes (open loop)   upserts/s   p50 ms    p99 ms   p99 / idle    probed  missed"]
    for engine in results["engines"]:
        rows = engine["under_writes"] or []
        for row in rows:
            ratio = row["p99_ms"] / rows[0]["p99_ms"]
            lines.append(
                f"  {engine['engine']:18} {row['rate']:>10,}/s {row['upserts_per_s']:>11,.0f} {row['p50_ms']:8.3f} "
                f"{row['p99_ms']:9.3f} {ratio:12.2f} {row['probed']:>9,} {row['missed']:>7,}"
            )
    return lines


def _filters(results: Mapping[str, Any]) -> list[str]:
    lines = ["", "filters                 pass %   p50 ms    p99 ms   p50 / unfiltered   recall  complete"]
    for engine in results["engines"]:
        for row in engine["filters"] or []:
            ratio = row["p50_ms"] / row["unfiltered_p50_ms"]
            lines.append(
                f"  {engine['engine']:18} {100 * row['pass']:9.1f} {row['p50_ms']:8.3f} {row['p99_ms']:9.3f} {ratio:18.2f} "
                f"{row['recall']:8.4f}  {'yes' if row['complete'] else 'NO'}"
            )
    return lines


def _stages(topk: Mapping[str, float]) -> list[str]:
    return [
        "",
        f"exact, batch {topk['batch']}: top-k {topk['topk_speedup_from_memory']:.1f} x faster than torch.topk "
        f"({topk['tile_topk_ms']:.2f} and {topk['torch_topk_ms']:.2f} ms); search {topk['search_over_matmul']:.2f} x the "
        f"matmul alone ({topk['search_ms']:.2f} and {topk['matmul_ms']:.2f} ms), with ids {topk['facade_over_matmul']:.2f} x",
    ]


def _streaming(rows: Any) -> list[str]:
    lines = ["", "streaming: recall (p50 ms) at checkpoints"] if rows else []
    for row in rows:
        points = "  ".join(f"{point['recall']:.4f} ({point['p50_ms']:.3f})" for point in row["checkpoints"])
        lines.append(f"  {row['engine']:18} {points}{'  (stopped)' if row['stopped'] else ''}")
    return lines


def plot(results: Mapping[str, Any], path: Path) -> None:
    """Recall against the p50 of a lone search: a curve an engine; the marked point is what the table has."""
    settings = results["settings"]
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for engine in results["engines"]:
        points = sorted(engine["curve"], key=lambda point: point["recall"])
        [line] = axes.plot(
            [point["recall"] for point in points], [point["p50_ms"] for point in points], marker=".", label=engine["engine"]
        )
        axes.plot(engine["recall"], engine["batch"]["1"]["p50_ms"], marker="o", markersize=9, color=line.get_color())
    axes.axvline(settings["recall"], color="grey", linewidth=0.8, linestyle=":")
    axes.set_yscale("log")
    axes.set_xlabel(f"recall@{settings['k']}")
    axes.set_ylabel("p50 of one search, ms")
    axes.set_title(f"{settings['items']:,} x {settings['dim']}, {settings['threads']} thread, {results['hardware']['cpu']}")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
