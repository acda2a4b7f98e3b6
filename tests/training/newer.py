"""What came after the planted data: a seventh ring of items, new people on it, and known people who go on."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.training.conftest import RING, RINGS, planted_items

NEW_RING = RINGS
START = datetime(2024, 9, 1, tzinfo=UTC)
FASTER = ["warm_start.positions=64"]  # there are few events, so steps must be small

Row = dict[str, object]


def newer_events(start: datetime = START, people: int = 60, seed: int = 1) -> list[Row]:
    """`people` new people walk along the new ring, 40 known ones there or along an old one. Some events are purchases."""
    random = np.random.default_rng(seed)
    rows: list[Row] = []
    for person in range(people + 40):
        known = person >= people
        ring = int(random.integers(RINGS)) if known and person % 2 else NEW_RING
        place, when = int(random.integers(RING)), start + timedelta(minutes=int(random.integers(600)))
        for _ in range(4 if known else int(random.integers(4, 9))):
            user = f"user-{person - people}" if known else f"fresh-{person}"
            kind = "purchase" if person % 5 == 0 else "view"
            rows.append({"user": user, "item": f"item-{ring}-{place}", "event": kind, "time": when.isoformat()})
            place, when = (place + 1) % RING, when + timedelta(minutes=int(random.integers(1, 60)))
    return rows


def newer_items() -> list[Row]:
    """The planted items and the new ring's, with a category of their own."""
    fresh = [f"item-{NEW_RING}-{place}" for place in range(RING)]
    return planted_items() + [{"item_id": item, "title": "", "categories": "ring-new|all"} for item in fresh]


def write_parquet(folder: Path, events: list[Row], items: list[Row]) -> tuple[Path, Path]:
    """Both tables as parquet, as `python -m server.journal export` would write them -> their paths."""
    listed = [{**row, "categories": str(row["categories"]).split("|")} for row in items]
    pq.write_table(pa.Table.from_pylist(events), folder / "events.parquet")
    pq.write_table(pa.Table.from_pylist(listed), folder / "items.parquet")
    return folder / "events.parquet", folder / "items.parquet"
