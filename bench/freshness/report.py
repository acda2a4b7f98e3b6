"""A result as tables for people, and as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def tables(result: Mapping[str, Any]) -> str:
    """What is printed."""
    parts = [_policies(result), _strata(result), _fallback(result["fallback"])]
    parts += [_items(entry) for entry in result.get("items", [])]
    if "through_service" in result:
        parts.append(_service(result["through_service"]))
    return "\n\n".join(parts)


def _policies(result: Mapping[str, Any]) -> str:
    lines = [
        f"{result['targets']:,} targets of {result['users']:,} users; {result['excluded_share']:.1%} of the first interactions "
        "after the cut are left out: their items were not known before",
        f"{'vector':<12}{'R@10':>8}{'95 %':>18}{'N@10':>8}{'user R@10':>11}{'minus event, 95 %':>30}"
        f"{'behind':>9}{'no history':>12}",
    ]
    for row in result["policies"]:
        behind = f"{row['behind']:>9.1%}{row['without_history']:>12.1%}" if "behind" in row else ""
        lines.append(
            f"{row['policy']:<12}{row['R@10']:>8.4f}{_range(row):>18}{row['N@10']:>8.4f}{row['user_macro']['R@10']:>11.4f}"
            f"{_difference(row['minus_event']):>30}{behind}"
        )
    return "\n".join(lines)


def _strata(result: Mapping[str, Any]) -> str:
    names = [row["policy"] for row in result["policies"]]
    lines = [f"{'R@10 by pause':<18}{'targets':>9}" + "".join(f"{name:>12}" for name in names)]
    for row in result["strata"]:
        cells = ("-" if row["R@10"][name] is None else f"{row['R@10'][name]:.4f}" for name in names)
        lines.append(f"{row['gap']:<18}{row['targets']:>9,}" + "".join(f"{cell:>12}" for cell in cells))
    return "\n".join(lines)


def _fallback(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [f"{'vector':<12}{'popularity if its newest event is older than':>46}{'R@10':>8}{'replaced':>10}"]
    for row in rows:
        limit = f"{row['older_than_s']:,} s"
        lines.append(f"{row['policy']:<12}{limit:>46}{row['R@10']:>8.4f}{row['replaced_share']:>10.1%}")
    return "\n".join(lines)


def _items(entry: Mapping[str, Any]) -> str:
    lines = [
        f"{entry['new_items']:,} items came up after the cut, {entry['placed_items']:,} placed by {entry['placed_by']}",
        f"{'visible after':<14}{'visible':>8}{'new R@10':>10}{'95 %':>18}{'N@10':>8}"
        f"{'known R@10':>12}{'all R@10':>10}{'95 %':>18}",
    ]
    for new, known, both in zip(entry["new"], entry["known"], entry["all"], strict=True):
        lines.append(
            f"{new['policy']:<14}{new['visible']:>8.1%}{new['R@10']:>10.4f}{_range(new):>18}{new['N@10']:>8.4f}"
            f"{known['R@10']:>12.4f}{both['R@10']:>10.4f}{_range(both):>18}"
        )
    return "\n".join(lines)


def _service(found: Mapping[str, Any]) -> str:
    lines = ["through the service, beside the same offline"]
    for row in found["policies"]:
        largest = "infinite" if row["largest_difference"] is None else f"{row['largest_difference']:.1e}"
        left_out = f"  not asked, too many items held back {row['not_asked']:,}" if row["not_asked"] else ""
        lines.append(
            f"{row['policy']}: compared {row['compared']:,}  same {row['same']:,}  ties {row['ties']:,}  "
            f"different {row['different']:,}  all ten scores the same {row['same_scores']:,}  "
            f"largest difference of a score {largest}  {row['seconds']:,.0f} s{left_out}"
        )
    return "\n".join([*lines, "passed" if found["passed"] else "NOT the same"])


def _range(row: Mapping[str, float]) -> str:
    return f"{row['low']:.4f} … {row['high']:.4f}"


def _difference(row: Mapping[str, float]) -> str:
    return f"{row['R@10']:+.4f} ({row['low']:+.4f} … {row['high']:+.4f})"


def plot(result: Mapping[str, Any], file: Path) -> None:
    """R@10 of each policy with its interval, and popularity as a line; the file's ending says which format."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    items = result.get("items", [])
    figure = Figure(figsize=(9.0 if items else 6.0, 3.6), layout="constrained")
    panels = figure.subplots(1, 1 + bool(items), squeeze=False)[0]
    rows = [row for row in result["policies"] if row["policy"] != "popularity"]
    _bars(panels[0], [("vector", rows, "#2563eb")])
    panels[0].axhline(result["policies"][-1]["R@10"], color="#6b7280", linestyle=":", label="popularity")
    panels[0].set_title("known items, by how late the user's vector is")
    panels[0].legend()
    if items:
        colours = ("#16a34a", "#d97706")
        _bars(panels[1], [(entry["placed_by"], entry["new"], colour) for entry, colour in zip(items, colours, strict=False)])
        panels[1].set_title("new items, by when they can be found")
        panels[1].legend(title="placed by")
    figure.savefig(file)


def _bars(axes: Any, series: Sequence[tuple[str, Sequence[Mapping[str, Any]], str]]) -> None:
    width = 0.8 / len(series)
    for number, (label, rows, colour) in enumerate(series):
        places = [place + (number - (len(series) - 1) / 2) * width for place in range(len(rows))]
        values = [row["R@10"] for row in rows]
        around = [[row["R@10"] - row["low"] for row in rows], [row["high"] - row["R@10"] for row in rows]]
        axes.bar(places, values, width=width, yerr=around, color=colour, capsize=3, label=label)
        axes.set_xticks(range(len(rows)), [row["policy"] for row in rows])
    axes.set_ylabel("R@10")
    axes.grid(axis="y", alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
