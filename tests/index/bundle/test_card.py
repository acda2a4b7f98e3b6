"""A model card may lie in a bundle: it is no part of the release, and it is the only file that may come later."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from index.bundle import (
    BundleError,
    BundleInvalidError,
    BundleTornError,
    BundleUnsafeError,
    check_bundle,
    read_bundle,
    write_card,
)
from tests.index.bundle.tampering import edit_manifest


def test_a_card_changes_nothing_that_is_served(bundle: Path) -> None:
    before = read_bundle(bundle).release_id
    manifest = (bundle / "manifest.json").read_bytes()
    for text in ("# First\n", "# Second, “longer”\n"):
        write_card(bundle, text)
        assert (bundle / "model_card.md").read_text(encoding="utf-8") == text
        assert read_bundle(bundle).release_id == check_bundle(bundle).release_id == before
    assert (bundle / "manifest.json").read_bytes() == manifest
    assert [path.name for path in bundle.parent.iterdir() if path.name.endswith(".card")] == []


def test_a_bundle_behind_a_link_on_another_disk_gets_its_card(bundle: Path) -> None:
    if not os.access("/dev/shm", os.W_OK) or Path("/dev/shm").stat().st_dev == bundle.stat().st_dev:
        pytest.skip("needs /dev/shm as another disk")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        link = Path(elsewhere) / "current"
        link.symlink_to(bundle)
        write_card(link, "# Card\n")
        assert (bundle / "model_card.md").read_text(encoding="utf-8") == "# Card\n" and link.is_symlink()
        assert [path.name for path in Path(elsewhere).iterdir()] == ["current"]
        assert not list(bundle.parent.glob(".*.card"))


@pytest.mark.parametrize("name", ["MODEL_CARD.md", "model_card.txt", "model_card.md~", "text_encoder/model_card.md"])
def test_any_other_name_is_still_a_stray_file(bundle: Path, name: str) -> None:
    (bundle / name).parent.mkdir(exist_ok=True)
    (bundle / name).write_text("# Card\n")
    with pytest.raises(BundleTornError, match="not listed"):
        read_bundle(bundle)


def test_a_card_that_is_a_link_or_a_directory_is_refused(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (bundle / "model_card.md").symlink_to(tmp_path / "secret")
    with pytest.raises(BundleUnsafeError, match=r"model_card\.md"):
        read_bundle(bundle)
    (bundle / "model_card.md").unlink()
    (bundle / "model_card.md").mkdir()
    (bundle / "model_card.md" / "more").write_text("x")
    with pytest.raises(BundleTornError, match=r"model_card\.md/more"):
        read_bundle(bundle)


def test_a_card_of_more_than_a_mebibyte_is_refused_by_writer_and_reader(bundle: Path) -> None:
    with pytest.raises(BundleInvalidError, match=r"model_card\.md"):
        write_card(bundle, "x" * (2**20 + 1))
    assert not (bundle / "model_card.md").exists()
    (bundle / "model_card.md").write_text("x" * (2**20 + 1))
    with pytest.raises(BundleInvalidError, match=r"model_card\.md"):
        read_bundle(bundle)


def test_a_manifest_that_lists_the_card_is_refused(bundle: Path) -> None:
    (bundle / "model_card.md").write_text("# Card\n")
    entry = {"sha256": "0" * 64, "bytes": 7}
    edit_manifest(bundle, lambda values: values["files"].update({"model_card.md": entry}))
    with pytest.raises(BundleInvalidError, match=r"model_card\.md"):
        read_bundle(bundle)


def test_only_a_bundle_gets_a_card(tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        write_card(tmp_path, "# Card\n")
    assert list(tmp_path.iterdir()) == []
