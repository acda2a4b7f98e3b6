"""A planted data set, small enough to train on in seconds: in each ring of items, each item is followed by its next."""

import csv
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch

from training.cli import main

RINGS, RING = 6, 10
SMALL = [
    "--set",
    "towers.dim=16",
    "towers.history_length=8",
    "towers.hidden=32",
    "training.epochs=15",
    "training.residual_rate=1",  # at the default, training from scratch has learnt the planted rings after three epochs
    "training.positions=256",
    "training.learning_rate=0.01",
    "training.dropout=0.1",
    "training.threads=1",  # two only wait for each other at this size
    "--quiet",
]


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    """Commands set torch's threads for their process, which is the tests' here."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def write_csv(path: Path, rows: list[dict[str, object]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def planted_events(users: int = 200, seed: int = 0) -> list[dict[str, object]]:
    random = np.random.default_rng(seed)
    rows: list[dict[str, object]] = []
    for user in range(users):
        ring, place = random.integers(RINGS), random.integers(RING)
        when = datetime(2024, 1, 1, tzinfo=UTC) + timedelta(hours=int(random.integers(5000)))
        for _ in range(int(random.integers(4, 9))):
            kind = "cart" if random.random() < 0.2 else "view"
            item = f"item-{ring}-{place}"
            rows.append({"user": f"user-{user}", "item": item, "event": kind, "time": when.isoformat()})
            place = (place + 1) % RING
            when += timedelta(minutes=int(random.integers(1, 600)))
    return rows


def planted_items() -> list[dict[str, object]]:
    return [
        {"item_id": f"item-{ring}-{place}", "title": f"ring {ring} place {place}", "categories": f"ring-{ring}|all"}
        for ring in range(RINGS)
        for place in range(RING)
    ]


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The planted data set, imported."""
    folder = tmp_path_factory.mktemp("planted")
    events = write_csv(folder / "events.csv", planted_events())
    items = write_csv(folder / "items.csv", planted_items())
    data = folder / "data"
    assert main(["import", "csv", "--events", str(events), "--items", str(items), "--out", str(data)]) == 0
    return data


@pytest.fixture(scope="session")
def fitted(planted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle trained on the planted data."""
    bundle = tmp_path_factory.mktemp("fitted") / "bundle"
    assert main(["fit", "--data", str(planted), "--out", str(bundle), "--text-encoder", "none", *SMALL]) == 0
    return bundle


def info(data: Path) -> dict[str, object]:
    """dataset.json."""
    content = json.loads((data / "dataset.json").read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content
