"""A bundle whose files are not those it was written with is refused, in one line that names the file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from index.bundle import (
    BundleError,
    BundleInvalidError,
    BundleMissingError,
    BundleTornError,
    BundleUnsafeError,
    BundleVersionError,
    check_bundle,
    read_bundle,
)
from tests.index.bundle.tampering import edit_manifest

FILES = (
    "user_tower.pt2",
    "item_tower.pt2",
    "item_vectors.safetensors",
    "item_residuals.safetensors",
    "vocabularies.json",
    "items.parquet",
    "golden.safetensors",
)
ENCODER_FILES = (
    "text_encoder/model.safetensors",
    "text_encoder/modules.json",
    "text_encoder/tokenizer.json",
    "text_encoder/config_sentence_transformers.json",
)


def refusal(bundle: Path, kind: type[BundleError]) -> str:
    with pytest.raises(BundleError) as caught:
        read_bundle(bundle)
    assert type(caught.value) is kind
    line = str(caught.value)
    assert str(bundle) in line and "; " in line and "\n" not in line
    with pytest.raises(kind):
        check_bundle(bundle)
    return line


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_these_tests_cover_every_file_of_a_bundle(pristine_with_text: Path) -> None:
    files = json.loads((pristine_with_text / "manifest.json").read_text())["files"]
    assert set(files) == {*FILES, *ENCODER_FILES}


@pytest.mark.parametrize("file", [*FILES, *ENCODER_FILES])
def test_an_edited_file_is_refused_with_its_name(text_bundle: Path, file: str) -> None:
    flip_last_byte(text_bundle / file)
    refused = BundleTornError
    assert file in refusal(text_bundle, refused)


@pytest.mark.parametrize("file", [*FILES, *ENCODER_FILES])
def test_a_missing_file_is_refused_with_its_name(text_bundle: Path, file: str) -> None:
    (text_bundle / file).unlink()
    assert file in refusal(text_bundle, BundleTornError)


@pytest.mark.parametrize("file", FILES)
def test_a_truncated_file_is_refused_with_its_name(bundle: Path, file: str) -> None:
    data = (bundle / file).read_bytes()
    (bundle / file).write_bytes(data[: len(data) // 2])
    assert file in refusal(bundle, BundleTornError)


@pytest.mark.parametrize("file", ["notes.txt", ".hidden", "text_encoder/extra.json", "deep/down/x"])
def test_a_file_that_is_not_listed_is_refused_with_its_name(text_bundle: Path, file: str) -> None:
    (text_bundle / file).parent.mkdir(parents=True, exist_ok=True)
    (text_bundle / file).write_text("{}")
    assert file in refusal(text_bundle, BundleTornError)


def test_a_link_is_refused_even_to_the_right_bytes(bundle: Path, tmp_path: Path) -> None:
    shutil.move(bundle / "items.parquet", tmp_path / "elsewhere")
    (bundle / "items.parquet").symlink_to(tmp_path / "elsewhere")
    assert "items.parquet" in refusal(bundle, BundleUnsafeError)


def test_no_directory_is_no_bundle(tmp_path: Path) -> None:
    refusal(tmp_path / "nothing", BundleMissingError)


def test_a_directory_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    assert "manifest.json" in refusal(tmp_path, BundleMissingError)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 100_000, b'{"format": NaN'])
def test_a_manifest_that_is_not_json_is_refused(bundle: Path, data: bytes) -> None:
    (bundle / "manifest.json").write_bytes(data)
    assert "manifest.json" in refusal(bundle, BundleTornError)


@pytest.mark.parametrize("data", [b"[]", b"3", b"{}", b'{"format": "something else"}'])
def test_another_kind_of_manifest_is_refused(bundle: Path, data: bytes) -> None:
    (bundle / "manifest.json").write_bytes(data)
    assert "manifest.json" in refusal(bundle, BundleInvalidError)


def test_a_newer_format_is_refused_with_what_to_do(bundle: Path) -> None:
    edit_manifest(bundle, lambda values: values.update(format_version=2, shape_of_things_to_come=True))
    line = refusal(bundle, BundleVersionError)
    assert "upgrade Towerbridge" in line and "export the bundle again" in line


@pytest.mark.parametrize("version", [0, -1, "1", 1.0, True, None])
def test_a_version_that_never_was_is_refused(bundle: Path, version: object) -> None:
    edit_manifest(bundle, lambda values: values.update(format_version=version))
    refusal(bundle, BundleVersionError)


def test_every_key_of_the_manifest_is_required(bundle: Path, tmp_path: Path) -> None:
    for key in json.loads((bundle / "manifest.json").read_text()):
        copy = Path(shutil.copytree(bundle, tmp_path / key))
        edit_manifest(copy, lambda values, key=key: values.pop(key))  # type: ignore[misc]
        assert "manifest.json" in refusal(copy, BundleVersionError if key == "format_version" else BundleInvalidError)


@pytest.mark.parametrize(
    "change",
    [
        {"dim": "8"},
        {"dim": 0},
        {"dim": 8.0},
        {"metric": "cosine"},
        {"created_at": "yesterday"},
        {"created_at": "2026-01-01T00:00:00"},
        {"history_length": None},
        {"history_length": 0},
        {"event_types": {}},
        {"event_types": {"view": 0}},
        {"event_types": {"view": 1, "cart": 1}},
        {"event_types": ["view"]},
        {"time_features": 1},
        {"category_slots": 0},
        {"watermark": {"epoch": "e", "position": -1}},
        {"watermark": 3},
        {"offline_metrics": {"recall": "high"}},
        {"training": []},
        {"unheard_of": 1},
        {"files": {}},
        {"text": {"template": "no place", "encoder": None, "encoder_sha256": None, "dim": 0}},
        {"text": {"template": "{text}", "encoder": "text_encoder", "encoder_sha256": None, "dim": 0}},
        {"text": {"template": "{text}", "encoder": "elsewhere", "encoder_sha256": None, "dim": 0}},
        {"text": None},
    ],
)
def test_a_manifest_of_wrong_values_is_refused(bundle: Path, change: dict[str, Any]) -> None:
    edit_manifest(bundle, lambda values: values.update(change))
    assert "manifest.json" in refusal(bundle, BundleInvalidError)


@pytest.mark.parametrize(
    "path", ["../outside", "/etc/passwd", "a/../b", ".hidden", "a\\b", "c:x", "", "a//b", "manifest.json", "x\n"]
)
def test_a_manifest_that_lists_a_path_outside_is_refused(bundle: Path, path: str) -> None:
    def add(values: dict[str, Any]) -> None:
        values["files"][path] = {"sha256": "0" * 64, "bytes": 1}

    edit_manifest(bundle, add)
    assert "manifest.json" in refusal(bundle, BundleInvalidError)


@pytest.mark.parametrize(
    "entry", [{"sha256": "0" * 63, "bytes": 1}, {"sha256": "0" * 64, "bytes": -1}, {"sha256": "0" * 64}, "x"]
)
def test_a_file_entry_of_wrong_values_is_refused(bundle: Path, entry: object) -> None:
    edit_manifest(bundle, lambda values: values["files"].update({"items.parquet": entry}))
    assert "manifest.json" in refusal(bundle, BundleInvalidError)


@pytest.mark.parametrize("dropped", ["user_tower.pt2", "item_tower.pt2", "golden.safetensors", "item_residuals.safetensors"])
def test_half_of_what_belongs_together_is_refused(bundle: Path, dropped: str) -> None:
    (bundle / dropped).unlink()
    edit_manifest(bundle, lambda values: values["files"].pop(dropped))
    assert "manifest.json" in refusal(bundle, BundleInvalidError)


@pytest.mark.parametrize("verify", [True, False])
def test_a_missing_file_is_noticed_without_verification_too(bundle: Path, verify: bool) -> None:
    (bundle / "items.parquet").unlink()
    with pytest.raises(BundleTornError, match=r"items\.parquet"):
        read_bundle(bundle, verify=verify)


def test_errors_say_path_file_problem_and_cure(bundle: Path) -> None:
    flip_last_byte(bundle / "items.parquet")
    assert refusal(bundle, BundleTornError).startswith(f"{bundle}: items.parquet: ")
