"""What a crash leaves of a snapshot that is being replaced."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.index.test_snapshot import IDS, golden_rows, loaded, save


class Crash(BaseException):
    """The process ends here: nothing may catch it."""


def crash_at(monkeypatch: pytest.MonkeyPatch, call: int, *, after: bool) -> list[str]:
    """Lets the process die before or after its `call`-th change of the disk; returns the names of the changes made."""
    made: list[str] = []

    def dying(name: str, work: Callable[..., object]) -> Callable[..., object]:
        def run(*arguments: object, **named: object) -> object:
            if len(made) == call and not after:
                raise Crash
            result = work(*arguments, **named)
            made.append(name)
            if len(made) == call + 1 and after:
                raise Crash
            return result

        return run

    monkeypatch.setattr(os, "fsync", dying("fsync", os.fsync))
    monkeypatch.setattr(Path, "replace", dying("replace", Path.replace))
    monkeypatch.setattr(Path, "unlink", dying("unlink", Path.unlink))
    return made


def test_the_data_file_is_on_disk_before_the_manifest_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save(tmp_path, golden_rows())
    made = crash_at(monkeypatch, 1_000, after=False)
    save(tmp_path, golden_rows() + 1)
    assert made == ["fsync", "replace", "fsync", "fsync", "replace", "fsync", "unlink"]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("call", range(7))
def test_a_crash_at_any_step_leaves_the_old_snapshot_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int, after: bool
):
    old, new = golden_rows(), golden_rows() + 1
    save(tmp_path, old, target=0.9)
    with monkeypatch.context() as patch:
        crash_at(patch, call, after=after)
        with pytest.raises(Crash):
            save(tmp_path, new, target=0.95)
    found = loaded(tmp_path)
    assert found.table.target == (0.95 if call > 4 or (call == 4 and after) else 0.9)
    assert found.lists_for(IDS, new if found.table.target == 0.95 else old).min() >= 0
    save(tmp_path, new, target=0.97)
    assert loaded(tmp_path).table.target == 0.97
    assert len(list(tmp_path.iterdir())) == 2
