"""A foreign name that is gone, or that takes other arguments than ours, is seen."""

from pathlib import Path

import numpy as np
import pytest

from bench import gpu_names

SOURCE = """
class Ours:
    def __init__(self):
        self._xp = None
        self.made = self._xp.random.RandomState(3)

    def run(self, xp):
        xp.clip(self, 0, 1)
        xp.no_such_function(1)
        xp.reshape()
        xp.random.RandomState(3).rand(2)
        xp.random.RandomState(3).no_such_method()
        return ours.clip(1)
"""


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    (tmp_path / "ours.py").write_text(SOURCE, encoding="utf-8")
    monkeypatch.setattr(gpu_names, "ROOT", tmp_path)
    roots = {"xp": np, "self._xp": np}
    return {one.code: one.problem for one in gpu_names._uses_in(tmp_path / "ours.py", roots)}


def test_what_fits_has_no_problem(found: dict[str, str]):
    assert found["xp.clip(self, 0, 1)"] == ""
    assert found["self._xp.random.RandomState(3)"] == ""
    assert found["xp.random.RandomState(3).rand(2)"] == ""


def test_a_name_that_is_gone_is_named(found: dict[str, str]):
    assert found["xp.no_such_function(1)"] == "numpy has no no_such_function"
    assert found["xp.random.RandomState(3).no_such_method()"] == "RandomState has no no_such_method"


def test_arguments_that_do_not_fit_are_named_with_the_signature(found: dict[str, str]):
    assert found["xp.reshape()"].startswith("missing a required argument: 'a'; it takes (a, ")


def test_our_own_names_are_left_alone(found: dict[str, str]):
    assert not any(code.startswith("ours") for code in found)


def test_the_files_that_are_read_exist():
    assert all((gpu_names.ROOT / file).is_file() for file in gpu_names.FILES)
