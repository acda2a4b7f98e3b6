"""A result as one HTML page that needs nothing else: the plots, then the tables."""

import base64
import html
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from training.evaluation.models import OURS
from training.evaluation.tables import table

DECILES = "popularity decile of the target"


def write_page(path: Path, result: dict[str, Any]) -> None:
    """Writes the page; raises OSError where that cannot be."""
    title = f"{result['split']} test of release {result['release_id']}, {result['users']:,} users"
    plots = [_plot(_models, result, "models"), _plot(_deciles, result["slices"][DECILES], DECILES)]
    for attribute, rows in result.get("groups", {}).items():
        drawn = [row for row in rows if "R@10" in row]
        plots += [_plot(_groups, drawn, attribute)] if drawn else []
    plots += [_plot(_models, result["cold"], "cold items")] if "cold" in result else []
    body = "\n".join(f'<p><img alt="plot" src="data:image/png;base64,{plot}"></p>' for plot in plots)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>\n'
        f"<h1>{html.escape(title)}</h1>\n{body}\n<pre>{html.escape(table(result))}</pre>\n</html>\n",
        encoding="utf-8",
    )


def _plot(draw: Callable[[Any, Any, str], None], figures: Any, title: str) -> str:
    """A PNG in base64 of what `draw` puts on the axes it is given."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.5), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)  # never a window, whatever the user's matplotlib is set to
    axes = figure.add_subplot()
    draw(axes, figures, title)
    axes.set_axisbelow(True)
    target = io.BytesIO()
    figure.savefig(target, format="png")
    return base64.b64encode(target.getvalue()).decode()


def _models(axes: Any, result: dict[str, Any], title: str) -> None:
    means = {name: kinds["filtered"]["R@10"] for name, kinds in result["models"].items()}
    bounds = [kinds["filtered"]["R@10"] for kinds in result["intervals"].values()]
    _bars(axes, list(means), list(means.values()), bounds)
    axes.set_title(f"{title}: R@10 filtered, with 95 % intervals", parse_math=False)


def _groups(axes: Any, rows: list[dict[str, Any]], attribute: str) -> None:
    means, bounds = [row["R@10"]["mean"] for row in rows], [row["R@10"]["interval"] for row in rows]
    _bars(axes, [f"{row['group']} ({row['users']:,})" for row in rows], means, bounds)
    axes.set_title(f"{OURS} by {attribute}, R@10 filtered, with 95 % intervals", parse_math=False)


def _bars(axes: Any, names: list[str], means: list[float], bounds: list[list[float]]) -> None:
    below = [max(mean - low, 0.0) for mean, (low, _) in zip(means, bounds, strict=True)]
    above = [max(high - mean, 0.0) for mean, (_, high) in zip(means, bounds, strict=True)]
    axes.barh(range(len(names)), means, xerr=[below, above], color="tab:blue", ecolor="black", capsize=3)
    axes.set_yticks(range(len(names)), names, parse_math=False)  # a group may be called $10_$
    axes.invert_yaxis()
    axes.figure.set_figheight(max(3.5, 0.3 * len(names) + 1))
    axes.grid(axis="x", alpha=0.3)


def _deciles(axes: Any, rows: list[dict[str, Any]], title: str) -> None:
    for model in rows[0]["models"]:
        heights = [row["models"][model]["R@10"] for row in rows]
        axes.plot(range(len(rows)), heights, marker="o", linewidth=2 if model == OURS else 1, label=model)
    names = [f"{short(row['slice'])}\n{row['users']:,}" for row in rows]
    axes.set_xticks(range(len(rows)), names)
    axes.set_title(f"R@10 filtered by {title}; below it how many people")
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)


def short(name: str) -> str:
    """A decile without its events, for below an axis."""
    return name.split(" (")[0].replace(" the ", "\nthe ")
