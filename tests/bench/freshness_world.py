"""People who walk along a circle of items, four at a time: who knows where they are now finds the next, who is late not."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from index.bundle import BundleSpec, write_bundle
from tests.tiny import CATEGORIES, EVENT_TYPES, TinyItemTower, tiny_towers
from training.data.dataset import EVENT_SCHEMA, publish_dataset

ITEMS, NEW_ITEMS, DIM = 300, 12, 8
STEP = 4
START_US = 1_700_000_000_000_000
GAPS_S = (5, 40, 300, 1500, 9000)


@dataclass(frozen=True)
class World:
    """A data set, and a bundle as if trained before its cut."""

    data: Path
    bundle: Path


def write_events(path: Path, rows: list[tuple[str, str, str, int]], items: pa.Table) -> Path:
    """A canonical data set of (user, item, type, microseconds) in any order."""
    drafts = path / "drafts"
    drafts.mkdir(parents=True)
    columns = list(zip(*sorted(rows, key=lambda row: (row[0].encode(), row[3])), strict=True))
    times = pa.array(columns[3], pa.int64()).cast(EVENT_SCHEMA.field("occurred_at").type)
    table = pa.table([*(pa.array(column, pa.string()) for column in columns[:3]), times], schema=EVENT_SCHEMA)
    pq.write_table(table, drafts / "events.parquet")
    pq.write_table(items, drafts / "items.parquet")
    (drafts / "rejects.jsonl").touch()
    publish_dataset(path, drafts, {"kind": "planted", "source": "walks", "times": "real", "counts": {}, "rejected": {}})
    return path


def items_table(ids: list[str], categories: list[list[str]] | None = None) -> pa.Table:
    kinds = pa.array(categories if categories is not None else [[] for _ in ids], pa.list_(pa.string()))
    return pa.table({"item_id": ids, "text": ["" for _ in ids], "categories": kinds})


def make_world(folder: Path) -> World:
    """Users walk for a day or two each, one after another; only those who come late meet the new items, some of them red."""
    ids = [f"item-{number}" for number in range(ITEMS)] + [f"new-{number}" for number in range(NEW_ITEMS)]
    categories = [[] for _ in range(ITEMS)] + [["red"] if number % 2 else [] for number in range(NEW_ITEMS)]
    rows = walks(np.random.default_rng(5))
    data = write_events(folder / "data", rows, items_table(ids, categories))
    return World(data, write_circle(folder / "bundle"))


def walks(random: np.random.Generator) -> list[tuple[str, str, str, int]]:
    rows = []
    for user in range(80):
        at, now_s = int(random.integers(ITEMS)), user * 40_000 + float(random.random())
        for step in range(28):
            kind = str(random.choice(["view", "cart"], p=[0.8, 0.2]))
            item = f"new-{int(random.integers(NEW_ITEMS))}" if user >= 66 and step % 8 == 7 else f"item-{at}"
            rows.append((f"user-{user:02}", item, kind, START_US + int(now_s * 1e6)))
            gap = float(random.choice(GAPS_S)) * float(random.uniform(0.6, 1.4))
            now_s += gap
            at = (at + STEP) % ITEMS if gap < 7000 else int(random.integers(ITEMS))
        rows.append((f"user-{user:02}", f"item-{at}", "wish", START_US + int(now_s * 1e6)))  # a type that no bundle knows
    return rows


def write_circle(path: Path) -> Path:
    """Known items only, in circle order; the tower is the tiny one, a mean of the history in which the newest weighs most."""
    angle = 2 * np.pi * np.arange(ITEMS)[:, None] * np.array([1, 3, 7, 15]) / ITEMS
    vectors = (np.concatenate([np.cos(angle), np.sin(angle)], axis=1) / 2).astype(np.float32)  # (N, 8) unit rows
    tower = TinyItemTower(DIM, 0, 0).eval()
    content = torch.zeros(ITEMS, 0), torch.zeros(ITEMS, 3, dtype=torch.int64)
    residuals = (vectors - tower.unknown.detach().numpy()).astype(np.float32)
    with torch.inference_mode():
        vectors = tower(*content, torch.from_numpy(residuals)).numpy()
    towers = tiny_towers(DIM, 10, 0, 0)
    ids = [f"item-{number}" for number in range(ITEMS)]
    popularity = pa.array(np.random.default_rng(1).integers(1, 9, ITEMS).astype(np.float64))
    spec = BundleSpec(
        dim=DIM, history_length=10, event_types=dict(EVENT_TYPES), time_features=True, category_slots=3, training={"seed": 0}
    )
    write_bundle(
        path,
        spec,
        items=items_table(ids).append_column("popularity", popularity),
        item_vectors=vectors,
        item_residuals=residuals,
        categories=CATEGORIES,
        user_tower=towers.user_tower,
        item_tower=towers.item_tower,
        golden_user=towers.golden_user,
        golden_item=towers.golden_item,
    )
    return path


def iso(time_us: int) -> str:
    return datetime.fromtimestamp(time_us / 1e6, UTC).isoformat()
