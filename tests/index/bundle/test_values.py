"""Bundles that are whole and sealed but whose contents do not fit the format or each other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from index.bundle import BundleError, BundleInvalidError, BundleTornError, read_bundle
from tests.index.bundle.tampering import edit_manifest, reseal

Arrays = dict[str, NDArray[Any]]


def refusal(bundle: Path, file: str, kind: type[BundleError] = BundleInvalidError) -> str:
    with pytest.raises(kind) as caught:
        read_bundle(bundle)
    line = str(caught.value)
    assert file in line and "\n" not in line
    return line


def edit_arrays(bundle: Path, file: str, edit: Callable[[Arrays], object]) -> None:
    arrays = load_file(bundle / file)
    edit(arrays)
    save_file(arrays, bundle / file)
    reseal(bundle)


def set_items(bundle: Path, edit: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(edit(pq.read_table(bundle / "items.parquet")), bundle / "items.parquet")
    reseal(bundle)


def with_column(name: str, values: Any) -> Callable[[pa.Table], pa.Table]:
    """Replace or append a column; `values` may be a function of the old values."""

    def edit(items: pa.Table) -> pa.Table:
        if name not in items.column_names:
            return items.append_column(name, values)
        new = values(items.column(name).to_pylist()) if callable(values) else values
        return items.set_column(items.column_names.index(name), name, new)

    return edit


def test_a_vector_that_is_not_a_number_is_refused_with_its_row(bundle: Path) -> None:
    edit_arrays(bundle, "item_vectors.safetensors", lambda arrays: arrays["vectors"].__setitem__((7, 3), np.nan))
    assert "row 7" in refusal(bundle, "item_vectors.safetensors")


def test_a_vector_that_is_not_of_length_1_is_refused_with_its_row(bundle: Path) -> None:
    edit_arrays(bundle, "item_vectors.safetensors", lambda arrays: arrays["vectors"].__setitem__(9, 0.5))
    assert "row 9" in refusal(bundle, "item_vectors.safetensors")


def test_an_infinite_residual_is_refused(bundle: Path) -> None:
    edit_arrays(bundle, "item_residuals.safetensors", lambda arrays: arrays["residuals"].__setitem__((0, 0), np.inf))
    refusal(bundle, "item_residuals.safetensors")


@pytest.mark.parametrize("file", ["item_vectors", "item_residuals"])
@pytest.mark.parametrize(
    "change",
    [
        lambda array: array[:-1],
        lambda array: array[:, :-1],
        lambda array: array.astype(np.float64),
        lambda array: array.astype(np.float16),
        lambda array: array.reshape(-1),
    ],
)
def test_a_matrix_of_another_shape_or_type_is_refused(
    bundle: Path, file: str, change: Callable[[NDArray[Any]], NDArray[Any]]
) -> None:
    name = file.removeprefix("item_")
    edit_arrays(bundle, f"{file}.safetensors", lambda arrays: arrays.update({name: change(arrays[name]).copy()}))
    refusal(bundle, f"{file}.safetensors")


def test_a_second_array_is_refused(bundle: Path) -> None:
    edit_arrays(bundle, "item_vectors.safetensors", lambda arrays: arrays.update(more=np.zeros(1)))
    refusal(bundle, "item_vectors.safetensors")


@pytest.mark.parametrize("file", ["item_vectors.safetensors", "items.parquet", "vocabularies.json", "golden.safetensors"])
@pytest.mark.parametrize("data", [b"", b"garbage", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_sealed_file_of_garbage_is_refused(bundle: Path, file: str, data: bytes) -> None:
    (bundle / file).write_bytes(data)
    reseal(bundle)
    refusal(bundle, file, BundleError)


def test_two_items_of_one_id_are_refused_with_the_id(bundle: Path) -> None:
    set_items(bundle, with_column("item_id", lambda ids: pa.array(["item-5", *ids[1:]])))
    assert "'item-5'" in refusal(bundle, "items.parquet")


@pytest.mark.parametrize("item_id", ["", "x" * 257, "ü" * 129, "a\0b"])
def test_an_item_id_that_no_call_could_name_is_refused(bundle: Path, item_id: str) -> None:
    set_items(bundle, with_column("item_id", lambda ids: pa.array([*ids[:3], item_id, *ids[4:]])))
    assert "row 3" in refusal(bundle, "items.parquet")


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_a_popularity_that_is_no_count_is_refused(bundle: Path, value: float) -> None:
    set_items(bundle, with_column("popularity", lambda old: pa.array([*old[:2], value, *old[3:]])))
    assert "row 2" in refusal(bundle, "items.parquet")


@pytest.mark.parametrize(
    "column",
    [
        ("item_id", lambda old: pa.array(range(len(old)))),
        ("item_id", lambda old: pa.array([None, *old[1:]], pa.string())),
        ("text", lambda old: pa.array([None, *old[1:]], pa.string())),
        ("categories", lambda old: pa.array(["red"] * len(old))),
        ("categories", lambda old: pa.array([[None], *old[1:]], pa.list_(pa.string()))),
        ("popularity", lambda old: pa.array([1] * len(old))),
        ("price", pa.array([1] * 50, pa.int32())),
        ("released", pa.array([2**62] * 50, pa.timestamp("us", "UTC"))),
        ("released", pa.array([0] * 50, pa.timestamp("us", "Nowhere/At_All"))),
        ("nested", pa.array([{"a": 1}] * 50)),
    ],
)
def test_a_column_of_another_type_is_refused_with_its_name(bundle: Path, column: tuple[str, Any]) -> None:
    set_items(bundle, with_column(*column))
    assert column[0] in refusal(bundle, "items.parquet")


def test_text_that_is_not_utf_8_is_refused(bundle: Path) -> None:
    set_items(bundle, with_column("text", lambda old: pa.array([b"\xff"] * len(old)).view(pa.string())))
    refusal(bundle, "items.parquet", BundleTornError)


def test_a_column_name_that_is_not_utf_8_is_refused(bundle: Path) -> None:
    path = bundle / "items.parquet"
    path.write_bytes(path.read_bytes().replace(b"in_stock", b"in_\xffstoc"))
    reseal(bundle)
    refusal(bundle, "items.parquet", BundleTornError)


@pytest.mark.parametrize("name", ["item_id", "text", "categories", "popularity"])
def test_a_missing_column_is_refused_with_its_name(bundle: Path, name: str) -> None:
    set_items(bundle, lambda items: items.drop_columns([name]))
    assert name in refusal(bundle, "items.parquet")


def test_fewer_items_than_vectors_are_refused(bundle: Path) -> None:
    set_items(bundle, lambda items: items.slice(1))
    refusal(bundle, "item_vectors.safetensors")


def test_no_items_are_refused(bundle: Path) -> None:
    set_items(bundle, lambda items: items.slice(0, 0))
    refusal(bundle, "items.parquet")


@pytest.mark.parametrize(
    "vocabularies",
    [
        [],
        {},
        {"categories": []},
        {"categories": {"red": 0}},
        {"categories": {"red": 1.5}},
        {"categories": {"red": True}},
        {"categories": {"red": 2**31}},
        {"categories": {}, "more": {}},
    ],
)
def test_vocabularies_of_another_shape_are_refused(bundle: Path, vocabularies: object) -> None:
    (bundle / "vocabularies.json").write_text(json.dumps(vocabularies))
    reseal(bundle)
    refusal(bundle, "vocabularies.json")


def test_a_category_code_that_the_tower_cannot_take_is_refused(bundle: Path) -> None:
    (bundle / "vocabularies.json").write_text(json.dumps({"categories": {"red": 1, "far": 1_000}}))
    reseal(bundle)
    refusal(bundle, "item_tower.pt2")


def test_an_event_type_that_the_tower_cannot_take_is_refused(bundle: Path) -> None:
    edit_manifest(bundle, lambda values: values["event_types"].update(far=1_000))
    refusal(bundle, "user_tower.pt2")


@pytest.mark.parametrize(("vectors", "tower"), [("user_vectors", "user_tower.pt2"), ("item_vectors", "item_tower.pt2")])
def test_golden_vectors_that_a_tower_misses_are_refused(bundle: Path, vectors: str, tower: str) -> None:
    edit_arrays(bundle, "golden.safetensors", lambda arrays: arrays.update({vectors: arrays[vectors][::-1].copy()}))
    assert "golden" in refusal(bundle, tower)


def test_golden_vectors_are_held_to_1e_5(bundle: Path, tmp_path: Path) -> None:
    near, far = (Path(shutil.copytree(bundle, tmp_path / name)) for name in ("near", "far"))
    edit_arrays(near, "golden.safetensors", lambda arrays: arrays["user_vectors"].__iadd__(np.float32(0.5e-5)))
    edit_arrays(far, "golden.safetensors", lambda arrays: arrays["user_vectors"].__iadd__(np.float32(2e-5)))
    read_bundle(near)
    refusal(far, "user_tower.pt2")


def unknown_to_known(arrays: Arrays) -> None:
    types = arrays["user_event_type"]
    types[:] = np.where(np.arange(types.shape[1])[None] < arrays["user_length"][:, None], np.maximum(types, 1), 0)


@pytest.mark.parametrize(
    "edit",
    [
        unknown_to_known,
        lambda arrays: arrays["user_length"].__setitem__(slice(None), 10),
        lambda arrays: arrays["user_length"].__setitem__(0, 0),
        lambda arrays: arrays["user_length"].__setitem__(0, 11),
        lambda arrays: arrays["user_history"].__setitem__((0, 9), 1.0),
        lambda arrays: arrays["user_event_type"].__setitem__((0, 9), 1),
        lambda arrays: arrays["user_event_type"].__setitem__((1, 0), 77),
        lambda arrays: arrays["user_seconds_before_newest"].__setitem__((1, 0), -1.0),
        lambda arrays: arrays["user_seconds_before_newest"].__setitem__((1, 9), 5.0),
        lambda arrays: arrays["item_categories"].__setitem__((0, 0), 1),
        lambda arrays: arrays["item_categories"].__setitem__((1, 0), 1_000),
        lambda arrays: arrays["item_residual"].__setitem__((slice(None), 0), 1.0),
        lambda arrays: arrays.pop("user_length"),
        lambda arrays: arrays.update(more=np.zeros(1)),
        lambda arrays: arrays.update({name: array[:3].copy() for name, array in arrays.items()}),
        lambda arrays: arrays.update(user_length=arrays["user_length"].astype(np.int32)),
    ],
)
def test_golden_rows_that_do_not_cover_what_they_must_are_refused(bundle: Path, edit: Callable[[Arrays], Any]) -> None:
    edit_arrays(bundle, "golden.safetensors", edit)
    refusal(bundle, ".")


def test_ages_without_time_features_are_refused(bundle: Path) -> None:
    edit_manifest(bundle, lambda values: values.update(time_features=False))
    assert "time_features" in refusal(bundle, "golden.safetensors")


@pytest.mark.parametrize(("key", "value"), [("history_length", 11), ("history_length", 9), ("category_slots", 2), ("dim", 9)])
def test_a_manifest_of_other_sizes_than_its_files_is_refused(bundle: Path, key: str, value: int) -> None:
    edit_manifest(bundle, lambda values: values.update({key: value}))
    refusal(bundle, "bundle")


def test_catalogue_vectors_that_the_item_tower_does_not_give_are_refused(bundle: Path) -> None:
    edit_arrays(bundle, "item_vectors.safetensors", lambda arrays: arrays.update(vectors=arrays["vectors"][::-1].copy()))
    assert "encoded again" in refusal(bundle, "item_vectors.safetensors")


def test_two_towers_swapped_are_refused(bundle: Path) -> None:
    shutil.move(bundle / "user_tower.pt2", bundle / "kept")
    shutil.move(bundle / "item_tower.pt2", bundle / "user_tower.pt2")
    shutil.move(bundle / "kept", bundle / "item_tower.pt2")
    reseal(bundle)
    assert "takes" in refusal(bundle, "user_tower.pt2")
