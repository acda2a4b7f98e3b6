"""The model card in a bundle (Mitchell et al. 2019, arXiv 1810.03993): what it is, from what, how good, and its limits.

`fit` writes what it knows; `evaluate --card` writes it again with the test.
"""

import json
from collections.abc import Iterable
from typing import Any

from index.bundle import Manifest
from training.evaluation.slices import FEWEST
from training.evaluation.tables import table

SPLITS = {
    "leave-one-out": "Of each user with three different items the last is the test's target and the second last that of "
    "validation. Neither was trained on, nor what came after them.",
    "temporal": "Trained on what was before {validation_from}; validated on each user's first new item from then on, "
    "tested on the first new one from {test_from}.",
    "all": "Trained on everything, for production: there is no test. {validation_users:,} users' last new items, and what "
    "followed them, were kept for validation and not trained on.",
}
SILENT = "The bundle does not say."
PENDING = "Not evaluated yet: `python -m training evaluate --data DATA --bundle BUNDLE --card` writes the test here."


def card(manifest: Manifest, release_id: str, result: dict[str, Any] | None = None) -> str:
    """Markdown. `result` is what `evaluate` gave; without it the card says that the test is still to come."""
    training = manifest.training
    sections = {
        "Data": _data(training),
        "Split": _split(training),
        "Settings": _settings(training),
        "Validation at the fit": _validation(manifest),
        "Test": [PENDING] if result is None else _test(result),
        "Limits": _limits(manifest, result),
    }
    parts = [f"# Release {release_id}", *_what(manifest)]
    for title, lines in sections.items():
        parts += [f"## {title}", *lines]
    return "\n\n".join(parts) + "\n"


def _what(manifest: Manifest) -> list[str]:
    encoder = "text by the encoder in this bundle" if manifest.text.encoder else "no text"
    times = "the time between events" if manifest.time_features else "their order, not their times"
    return [
        "A pair of towers of Towerbridge. The user tower turns a person's last "
        f"{manifest.history_length} events into a vector of length 1 in {manifest.dim} dimensions, the item tower turns "
        "items into vectors of the same space; the candidates are the items with the greatest inner product. It is meant "
        "for ranking the catalogue it was trained on for people with at least one event, and new items by their content.",
        _list(
            [
                f"Written {manifest.created_at.isoformat()}",
                f"Events: {', '.join(manifest.event_types) or 'none'}, with {times}",
                f"Items: {encoder}, at most {manifest.category_slots} categories each, and a residual learnt from behaviour",
            ]
        ),
    ]


def _data(training: dict[str, Any]) -> list[str]:
    data = _mapping(training.get("dataset"))
    if not data:
        return [SILENT]
    counts = ", ".join(f"{value:,} {name}" for name, value in _mapping(data.get("counts")).items() if isinstance(value, int))
    rows = [("Kind", data.get("kind")), ("Source", data.get("source")), ("Counts", counts or None)]
    rows += [
        ("Times", data.get("times")),
        ("Last event", data.get("last_event")),
        ("sha256 of the events", data.get("events_sha256")),
    ]
    return [_list(f"{name}: {_plain(value)}" for name, value in rows if value is not None)]


def _split(training: dict[str, Any]) -> list[str]:
    account = _mapping(training.get("split"))
    kind = account.get("kind")
    if not isinstance(kind, str) or kind not in SPLITS:
        return [SILENT]
    names = ("training_events", "validation_users", "test_users")
    try:
        lines = [SPLITS[kind].format(**account)]
        if account["cold_items"]:
            lines.append(
                f"{account['cold_items']:,} items were cold: no event on them was trained on or counted as popularity, and "
                "their vectors come from content alone."
            )
        return [*lines, _list(f"{name.replace('_', ' ').capitalize()}: {account[name]:,}" for name in names)]
    except (KeyError, ValueError, TypeError):  # a bundle of one's own
        return [f"The bundle does not say more than that it was {kind}."]


def _settings(training: dict[str, Any]) -> list[str]:
    if "config" not in training:
        return [SILENT]
    versions = ", ".join(f"{name} {value}" for name, value in _mapping(training.get("versions")).items())
    epochs = f"Best epoch {training.get('best_epoch')} of {training.get('epochs')}, {training.get('seconds')} s; {versions}."
    return [epochs, f"```json\n{json.dumps(training['config'], indent=2, ensure_ascii=False)}\n```"]


def _validation(manifest: Manifest) -> list[str]:
    metrics = [f"{name}: {value:.4f}" for name, value in manifest.offline_metrics.items()]
    return [_list(metrics) if metrics else "None: nobody's item was held out for it."]


def _test(result: dict[str, Any]) -> list[str]:
    how = "Figures and intervals are explained in Towerbridge's docs/evaluation.md."
    if not result["same_events"]:
        how += " The events are not those of the fit: the weights may have seen some of the targets."
    return [how, f"```text\n{table(result)}\n```"]


def _limits(manifest: Manifest, result: dict[str, Any] | None) -> list[str]:
    lines = [
        "Offline figures say how often what a person did next is found in a list, not what they would have taken had it "
        "been shown: the events were themselves shaped by what was shown before.",
        "Candidates are ranked without the rules of the service (availability, exclusions, what was accepted).",
        "A person without an event has no vector; the service answers with popular items.",
    ]
    if not manifest.time_features:
        lines.append("Times are not used: a history of yesterday and one of last year are alike.")
    if result is None or "groups" not in result:
        lines.append("Whether it serves groups of people alike was not looked at: evaluate with --profiles.")
    else:
        lines.append(
            f"Groups of fewer than {FEWEST} people are not shown on their own; that a gap's interval holds 0 does not mean "
            "that there is none."
        )
    if result is None or "cold" not in result:
        lines.append(
            "How well content alone places new items was not measured: train with split.cold_items, evaluate with --cold."
        )
    lines += [] if result is None else _weaknesses(result)
    return [_list(lines)]


def _weaknesses(result: dict[str, Any]) -> list[str]:
    """Baselines that are not clearly worse."""
    lines = []
    for part, title in ((result, "the test"), (result.get("cold"), "cold items")):
        for model, kinds in (part or {}).get("differences", {}).items():
            level = [metric for metric in ("R@10", "N@10") if kinds["filtered"][metric]["interval"][0] <= 0]
            if level:
                lines.append(
                    f"Not clearly better than {model} on {title}, by {' and '.join(level)} (the interval holds 0 or less)."
                )
    return lines


def _mapping(value: object) -> dict[str, Any]:
    """What a bundle of one's own says of its training may be of any form."""
    return value if isinstance(value, dict) else {}


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
