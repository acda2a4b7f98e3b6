"""A result as text: the main table first, then what is asked beyond it."""

from typing import Any

from training.evaluation.models import OURS

HEADLINE = ("R@5", "R@10", "N@5", "N@10")
FURTHER = ("R@50", "R@100", "N@50", "N@100", "MRR")


def table(result: dict[str, Any]) -> str:
    """The printed form of a result."""
    parts = [_headline(result), _further(result), _intervals(result, "95 % intervals, filtered")]
    parts += [_sliced(by, rows) for by, rows in result["slices"].items()]
    parts += [_grouped(attribute, rows) for attribute, rows in result.get("groups", {}).items()]
    if "cold" in result:
        parts += [_cold(result["cold"]), _intervals(result["cold"], "cold items, 95 % intervals, filtered")]
    return "\n\n".join(parts)


def _headline(result: dict[str, Any]) -> str:
    head = "".join(f"{name:>9}" for name in HEADLINE)
    lines = [
        f"{result['split']} test, {result['users']:,} users, full ranking; filtered = seen items left out",
        f"{'':<16}{'filtered':^36}  {'unfiltered':^36}",
        f"{'model':<16}{head}  {head}",
    ]
    for model, kinds in result["models"].items():
        cells = ["".join(f"{kinds[kind][name]:>9.4f}" for name in HEADLINE) for kind in ("filtered", "unfiltered")]
        lines.append(f"{model:<16}{cells[0]}  {cells[1]}")
    return "\n".join(lines)


def _further(result: dict[str, Any]) -> str:
    exposed = list(next(iter(result["exposure"].values())))
    lines = [f"{'filtered':<16}" + "".join(f"{name:>9}" for name in FURTHER) + "".join(f"{name:>13}" for name in exposed)]
    for model, kinds in result["models"].items():
        cells = "".join(f"{kinds['filtered'][name]:>9.4f}" for name in FURTHER)
        shown = (result["exposure"][model][name] for name in exposed)
        lines.append(f"{model:<16}{cells}" + "".join(f"{'-' if one is None else format(one, '.4f'):>13}" for one in shown))
    return "\n".join(lines)


def _intervals(result: dict[str, Any], title: str) -> str:
    """Each model's figure with its interval, and how far ours is from it."""
    lines = [title, f"{'':<16}{'R@10':<18}{'N@10':<18}{f'{OURS} - model: R@10':<30}N@10"]
    for model, kinds in result["intervals"].items():
        own = "".join(f"{_span(kinds['filtered'][metric]):<18}" for metric in ("R@10", "N@10"))
        gaps = ""
        if model != OURS:
            rows = [result["differences"][model]["filtered"][metric] for metric in ("R@10", "N@10")]
            cells = [f"{row['difference']:+.4f} {_span(row['interval'], signed=True)}" for row in rows]
            gaps = f"{cells[0]:<30}{cells[1]}"
        lines.append(f"{model:<16}{own}{gaps}".rstrip())
    return "\n".join(lines)


def _sliced(by: str, rows: list[dict[str, Any]]) -> str:
    models = list(rows[0]["models"])
    width = max(len(by), *(len(row["slice"]) for row in rows)) + 2
    lines = [f"{by:<{width}}{'users':>8}" + "".join(f"{model:>16}" for model in models) + "   R@10, filtered"]
    for row in rows:
        cells = "".join(f"{row['models'][model]['R@10']:>16.4f}" for model in models)
        lines.append(f"{row['slice']:<{width}}{row['users']:>8,}{cells}")
    return "\n".join(lines)


def _grouped(attribute: str, rows: list[dict[str, Any]]) -> str:
    title = f"{OURS} by {attribute}, filtered"
    width = max(len(title), *(len(row["group"]) for row in rows)) + 2
    lines = [f"{title:<{width}}{'users':>8}  {'R@10':<26}{'gap to everyone':<28}{'N@10':<26}gap to everyone"]
    for row in rows:
        cells = "too few for figures"
        if "R@10" in row:
            parts = []
            for metric in ("R@10", "N@10"):
                one = row[metric]
                parts.append(f"{one['mean']:.4f} {_span(one['interval'])}".ljust(26))
                parts.append(f"{one['gap']:+.4f} {_span(one['gap_interval'], signed=True)}".ljust(28))
            cells = "".join(parts).rstrip()
        lines.append(f"{row['group']:<{width}}{row['users']:>8,}  {cells}")
    return "\n".join(lines)


def _cold(cold: dict[str, Any]) -> str:
    names = ("R@10", "R@50", "N@10", "N@50")
    lines = [f"{cold['items']:,} cold items, {cold['users']:,} users, ranked in the full catalogue; filtered"]
    lines.append(f"{'model':<16}" + "".join(f"{name:>9}" for name in names))
    for model, kinds in cold["models"].items():
        lines.append(f"{model:<16}" + "".join(f"{kinds['filtered'][name]:>9.4f}" for name in names))
    return "\n".join(lines)


def _span(bounds: list[float], *, signed: bool = False) -> str:
    low, high = (f"{value:+.4f}" if signed else f"{value:.4f}" for value in bounds)
    return f"[{low}, {high}]"
