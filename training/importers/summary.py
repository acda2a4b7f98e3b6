"""The table that `import` prints."""

from pathlib import Path
from typing import Any

from training.importers.rejects import MOST_WRITTEN, Rejects

EXAMPLE_CHARACTERS = 120


def summary(out: Path, info: dict[str, Any], rejects: Rejects) -> str:
    """Counts, what was rejected and what was kept although it looks odd; `info` is dataset.json."""
    counts = info["counts"]
    types = ", ".join(f"{name} {count:,}" for name, count in counts["event_types"].items())
    times = f"{info['first_event'][:19]} … {info['last_event'][:19]}" if info["times"] == "real" else "an order only"
    lines = [
        f"{info['kind']} ({info['source']}) -> {out}",
        f"  events    {counts['events']:>12,}   {types}",
        f"  users     {counts['users']:>12,}   {counts['users_with_one_event']:,} with a single event",
        f"  items     {counts['items']:>12,}   {counts['items_with_events']:,} in events, "
        f"{counts['items_with_text']:,} with text",
        f"  times     {times}",
        f"  rejected  {sum(info['rejected'].values()):>12,}{_where(info, rejects)}",
    ]
    for reason, count in info["rejected"].items():
        example = rejects.examples[reason]
        file = f" of {example['file']}" if "file" in example else ""
        values = str(example["values"])[:EXAMPLE_CHARACTERS]
        lines.append(f"    {count:>10,}   {reason}, such as {example['table']} row {example['row']}{file}: {values}")
    if info["notes"]:
        lines.append("  kept, but look at")
    for note, found in info["notes"].items():
        first = ", ".join(f"{name} {value}" for name, value in found["examples"][0].items())
        lines.append(f"    {found['count']:>10,}   {note}, such as {first[:EXAMPLE_CHARACTERS]}")
    return "\n".join(lines)


def _where(info: dict[str, Any], rejects: Rejects) -> str:
    if not info["rejected"]:
        return ""
    whole = rejects.written == sum(info["rejected"].values())
    return "   see rejects.jsonl" if whole else f"   see rejects.jsonl, which has the first {MOST_WRITTEN:,} of each reason"
