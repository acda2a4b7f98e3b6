"""What is written is what is read, all of it or nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import index.bundle.writer
from index.bundle import (
    BundleError,
    BundleInvalidError,
    Watermark,
    check_bundle,
    read_bundle,
    write_bundle,
)
from tests.index.bundle.parts import BARE, SPEC, bare_parts, tower_parts
from tests.tiny import CATEGORIES, EVENT_TYPES, tiny_items, write_tiny_bundle


def beside(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.parent.iterdir())


def test_a_bundle_is_read_as_it_was_written(tmp_path: Path) -> None:
    watermark = Watermark(epoch="e1", position=7)
    spec = replace(SPEC, watermark=watermark, offline_metrics={"recall": 0.25}, training={"seed": 3, "config": {"a": []}})
    parts = tower_parts()
    release = write_bundle(tmp_path / "b", spec, **parts)
    bundle = read_bundle(tmp_path / "b")
    assert bundle.release_id == release and len(release) == 16
    assert bundle.manifest.watermark == watermark
    assert bundle.manifest.offline_metrics == {"recall": 0.25}
    assert bundle.manifest.training == {"seed": 3, "config": {"a": []}}
    assert bundle.manifest.event_types == EVENT_TYPES
    assert bundle.manifest.created_at.utcoffset() is not None
    assert bundle.item_ids == [f"item-{i}" for i in range(6)]
    assert bundle.items.equals(parts["items"])
    np.testing.assert_array_equal(bundle.item_vectors, parts["item_vectors"])
    np.testing.assert_array_equal(bundle.item_residuals, parts["item_residuals"])
    assert bundle.categories == CATEGORIES
    assert bundle.text_encoder is None


def test_reading_without_verification_gives_the_same(bundle: Path) -> None:
    quick, whole = read_bundle(bundle, verify=False), read_bundle(bundle)
    assert quick.release_id == whole.release_id and quick.item_ids == whole.item_ids
    np.testing.assert_array_equal(quick.item_vectors, whole.item_vectors)


def test_a_bundle_encodes_its_own_items_and_users(bundle: Path) -> None:
    read = read_bundle(bundle)
    values = read.items.column("categories").to_pylist()
    codes = np.array([read.category_codes(row) for row in values], dtype=np.int64)
    assert read.item_residuals is not None
    vectors = read.encode_items(np.zeros((50, 0), dtype=np.float32), codes, read.item_residuals)
    np.testing.assert_allclose(vectors, read.item_vectors, atol=1e-6)
    user = read.encode_users(
        read.item_vectors[None, :3],
        np.array([[1, 3, 1]], dtype=np.int64),
        np.array([[60.0, 30.0, 0.0]], dtype=np.float32),
        np.array([3], dtype=np.int64),
    )
    assert user.shape == (1, 8) and user.dtype == np.float32
    assert abs(float(np.linalg.norm(user)) - 1) < 1e-5
    assert int(np.argmax(read.item_vectors[:3] @ user[0])) == 1, "the purchase weighs most"


def test_encoding_no_rows_gives_no_rows(bundle: Path) -> None:
    read = read_bundle(bundle)
    none = np.zeros((0, 4), dtype=np.int64)
    users = read.encode_users(np.zeros((0, 4, 8), np.float32), none, none.astype(np.float32), none[:, 0])
    items = read.encode_items(np.zeros((0, 0), np.float32), none[:, :3], np.zeros((0, 8), np.float32))
    assert users.shape == items.shape == (0, 8)


@pytest.mark.parametrize(("width", "length"), [(11, 1), (4, 0), (4, 5), (0, 1)])
def test_a_history_that_the_tower_was_not_made_for_is_refused(bundle: Path, width: int, length: int) -> None:
    read = read_bundle(bundle, verify=False)
    types = np.ones((1, width), dtype=np.int64)
    with pytest.raises(ValueError, match="length"):
        read.encode_users(
            np.zeros((1, width, 8), np.float32), types, types.astype(np.float32), np.array([length], dtype=np.int64)
        )


def test_category_codes_drop_the_unknown_and_fill_with_zeros(bundle: Path) -> None:
    read = read_bundle(bundle, verify=False)
    assert read.category_codes([]) == [0, 0, 0]
    assert read.category_codes(["unheard of", "red"]) == [CATEGORIES["red"], 0, 0]
    assert read.category_codes(["red", "green", "blue", "black"]) == [1, 2, 3]


def test_a_bundle_of_your_own_vectors_needs_no_towers(tmp_path: Path) -> None:
    write_bundle(tmp_path / "b", BARE, **bare_parts())
    read = read_bundle(tmp_path / "b")
    assert read.user_tower is None and read.item_tower is None and read.item_residuals is None
    with pytest.raises(ValueError, match="no user tower"):
        read.encode_users(*(np.zeros((1, 1)),) * 4)
    with pytest.raises(ValueError, match="no item tower"):
        read.encode_items(*(np.zeros((1, 1)),) * 3)


def test_an_item_tower_may_come_without_a_user_tower(tmp_path: Path) -> None:
    parts = {**tower_parts(), "user_tower": None, "golden_user": None}
    write_bundle(tmp_path / "b", replace(SPEC, history_length=None), **parts)
    assert read_bundle(tmp_path / "b").user_tower is None


def test_the_report_lists_every_check(bundle: Path) -> None:
    report = check_bundle(bundle)
    names = [name for name, _ in report.checks]
    assert {"manifest", "files", "items.parquet", "golden users", "golden items", "re-encoding"} <= set(names)
    assert report.release_id in str(report) and "ok  golden users" in str(report)


def test_strings_of_pandas_and_polars_are_stored_as_the_formats_own(tmp_path: Path) -> None:
    items = tiny_items(3)
    items = items.set_column(0, "item_id", items.column("item_id").cast(pa.large_string()))
    items = items.set_column(1, "text", items.column("text").dictionary_encode())
    items = items.append_column("seen", pa.array([0, 1_000, 2_000], pa.timestamp("ns", tz="UTC")))
    items = items.set_column(3, "popularity", pa.array([3, 2, 1]))
    write_bundle(tmp_path / "b", BARE, **{**bare_parts(), "items": items})
    schema = read_bundle(tmp_path / "b").items.schema
    assert schema.field("item_id").type == schema.field("text").type == pa.string()
    assert schema.field("popularity").type == pa.float64()
    assert schema.field("seen").type == pa.timestamp("us", tz="UTC")


def test_the_same_parts_give_the_same_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_bundle(tmp_path / name, SPEC, **tower_parts())
    one, two = (json.loads((tmp_path / name / "manifest.json").read_text())["files"] for name in ("one", "two"))
    assert one == two


def test_writing_leaves_the_callers_programs_as_they_were(tmp_path: Path) -> None:
    parts = tower_parts()
    write_bundle(tmp_path / "b", SPEC, **parts)
    assert parts["user_tower"].example_inputs is not None


def test_an_older_bundle_is_replaced_and_nothing_is_left_beside(tmp_path: Path) -> None:
    out = tmp_path / "b"
    older = write_bundle(out, BARE, **bare_parts(3))
    newer = write_bundle(out, BARE, **bare_parts(4))
    assert older != newer and read_bundle(out).release_id == newer
    assert beside(out) == ["b"]


@pytest.mark.parametrize("kind", ["file", "directory", "empty", "foreign manifest", "link"])
def test_what_is_not_a_bundle_is_never_replaced(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "b"
    if kind == "file":
        out.write_text("mine")
    elif kind == "link":
        write_bundle(tmp_path / "elsewhere" / "b", BARE, **bare_parts())
        out.symlink_to(tmp_path / "elsewhere" / "b")
    else:
        out.mkdir()
        if kind == "directory":
            (out / "mine").write_text("mine")
        if kind == "foreign manifest":
            (out / "manifest.json").write_text('{"format": "mine"}')
    with pytest.raises(BundleInvalidError, match="not a bundle"):
        write_bundle(out, BARE, **bare_parts())
    assert set(beside(out)) <= {"b", "elsewhere"} and out.exists()


@pytest.mark.parametrize("older", [True, False])
def test_a_failed_write_leaves_everything_as_it_was(tmp_path: Path, older: bool) -> None:
    out = tmp_path / "b"
    release = write_bundle(out, BARE, **bare_parts()) if older else None
    wrong = {**bare_parts(), "item_vectors": np.full((3, 4), np.nan, dtype=np.float32)}
    with pytest.raises(BundleInvalidError) as caught:
        write_bundle(out, BARE, **wrong)
    assert str(caught.value).startswith(f"{out}: item_vectors.safetensors: ")
    assert beside(out) == (["b"] if older else [])
    if older:
        assert read_bundle(out).release_id == release


@pytest.mark.parametrize("step", ["sync_tree", "file_entries", "report_as", "sync_directory"])
def test_a_crash_at_any_step_leaves_no_half_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    out = tmp_path / "b"
    release = write_bundle(out, BARE, **bare_parts(3))

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(index.bundle.writer, step, fail)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(out, BARE, **bare_parts(4))
    survivors = read_bundle(out)
    assert survivors.release_id == release or len(survivors.item_ids) == 4
    assert beside(out) == ["b"]


@pytest.mark.parametrize(
    "change",
    [
        {"dim": 0},
        {"dim": 5},
        {"text_template": "nothing"},
        {"history_length": 5},
        {"event_types": {"view": 0}},
        {"training": {"a": object()}},
        {"offline_metrics": {"recall": float("nan")}},
        {"category_slots": 0},
    ],
)
def test_a_wrong_spec_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match="b: "):
        write_bundle(tmp_path / "b", replace(BARE, **change), **bare_parts())
    assert beside(tmp_path / "b") == []


@pytest.mark.parametrize("missing", ["golden_user", "golden_item", "item_tower", "item_residuals"])
def test_towers_come_with_golden_rows_and_residuals(tmp_path: Path, missing: str) -> None:
    with pytest.raises(BundleInvalidError):
        write_bundle(tmp_path / "b", SPEC, **{**tower_parts(), missing: None})
    assert beside(tmp_path / "b") == []


def test_dropped_items_leave_the_others_as_they_were(tmp_path: Path, pristine: Path) -> None:
    write_tiny_bundle(tmp_path / "b", drop_items=("item-3", "item-4"))
    fewer, whole = read_bundle(tmp_path / "b"), read_bundle(pristine)
    assert fewer.item_ids == [name for name in whole.item_ids if name not in ("item-3", "item-4")]
    np.testing.assert_array_equal(fewer.item_vectors[3], whole.item_vectors[5])
