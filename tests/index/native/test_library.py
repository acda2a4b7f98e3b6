"""What is said where native code cannot be had."""

from pathlib import Path

import pytest

from index.native import library
from index.native.library import NativeError


@pytest.fixture(autouse=True)
def _forget():
    """The answer is kept for a process: not this one's."""
    library._load.cache_clear()
    yield
    library._load.cache_clear()


def compiler(folder: Path, script: str) -> str:
    made = folder / "compiler"
    made.write_text(f"#!/bin/sh\n{script}\n")
    made.chmod(0o700)
    return str(made)


def test_without_a_compiler_the_reason_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert library.why_not() == "there is no C++ compiler 'no-such-compiler'; install g++"
    with pytest.raises(NativeError, match="install g\\+\\+"):
        library.library()


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("echo 'lists.cpp:1: note' >&2; echo 'lists.cpp:2: error: too old' >&2; exit 1", "lists.cpp:2: error: too old"),
        ("exit 1", "no message"),
        ('while [ "$1" != -o ]; do shift; done; echo nonsense > "$2"', "cannot be compiled and loaded"),
        ("exit 0", "cannot be compiled and loaded"),
    ],
)
def test_a_compiler_that_fails_is_a_reason_and_not_an_error(
    script: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CXX", compiler(tmp_path, script))
    assert says in library.why_not()


def test_nothing_is_left_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert library.why_not() == ""
    assert list(tmp_path.iterdir()) == []
