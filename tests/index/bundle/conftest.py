"""Bundles for the tests of this folder: written once, copied for every test that damages one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.tiny import write_tiny_bundle


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bundle with both towers; not to be changed."""
    path = tmp_path_factory.mktemp("pristine") / "bundle"
    write_tiny_bundle(path)
    return path


@pytest.fixture(scope="session")
def pristine_with_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bundle with a text encoder as well; not to be changed."""
    path = tmp_path_factory.mktemp("pristine_text") / "bundle"
    write_tiny_bundle(path, text=True)
    return path


@pytest.fixture
def bundle(pristine: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle, to damage."""
    return Path(shutil.copytree(pristine, tmp_path / "bundle"))


@pytest.fixture
def text_bundle(pristine_with_text: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle with a text encoder, to damage."""
    return Path(shutil.copytree(pristine_with_text, tmp_path / "bundle"))
