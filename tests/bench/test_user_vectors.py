"""User vectors for bench.index are those that the bundle's own tower makes."""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench import user_vectors
from index.bundle import read_bundle
from tests.server.conftest import offline_vector
from tests.tiny import write_tiny_bundle


def test_vectors_are_written_for_every_user_of_whom_anything_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_tiny_bundle(tmp_path / "bundle", n_items=20)
    start = datetime(2026, 1, 1, tzinfo=UTC)
    rows = [
        ("ann", "item-1", "view", start),
        ("ann", "item-2", "purchase", start + timedelta(hours=1)),
        ("ben", "no such item", "view", start),
    ]
    names = ("user_id", "item_id", "event_type", "occurred_at")
    columns = {name: [row[place] for row in rows] for place, name in enumerate(names)}
    pq.write_table(pa.table(columns), tmp_path / "events.parquet")
    arguments = ["--bundle", str(tmp_path / "bundle"), "--events", str(tmp_path / "events.parquet"), "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["bench.user_vectors", *arguments])
    assert user_vectors.main() == 0
    bundle = read_bundle(tmp_path / "bundle")
    first_us = int(start.timestamp() * 1e6)
    expected = offline_vector(bundle, [("item-1", "view", first_us), ("item-2", "purchase", first_us + 3_600_000_000)])
    np.testing.assert_allclose(np.load(tmp_path / "users.npy"), expected[None], atol=1e-6)
    assert np.load(tmp_path / "items.npy").shape == bundle.item_vectors.shape


def test_what_cannot_be_read_is_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["x", "--bundle", str(tmp_path), "--events", "none", "--out", str(tmp_path)])
    assert user_vectors.main() == 2
    assert capsys.readouterr().err.count("\n") == 1
