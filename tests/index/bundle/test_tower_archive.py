"""A .pt2 is a zip in which torch looks for pickles and libraries: such a zip is refused before torch sees it."""

from __future__ import annotations

import contextlib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from index.bundle import BundleTornError
from tests.index.bundle.tampering import (
    PROGRAM,
    SAMPLE_INPUTS,
    WEIGHTS_CONFIG,
    TouchOnUnpickling,
    edit_json,
    edit_tower,
    pickled,
    read_members,
    reseal,
    tower_refusal,
    zip_bytes,
)

Members = dict[str, bytes]


def test_pickled_sample_inputs_are_refused_and_never_run(bundle: Path, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    payload = pickled(((TouchOnUnpickling(mark),), {}))
    edit_tower(bundle, lambda members: members.update({SAMPLE_INPUTS: payload}))
    assert "sample inputs" in tower_refusal(bundle)
    assert not mark.exists()


def test_torch_itself_runs_pickled_sample_inputs(bundle: Path, tmp_path: Path) -> None:
    """The control of the test above: with the guard gone, the file would be created."""
    mark = tmp_path / "executed"
    payload = pickled(((TouchOnUnpickling(mark),), {}))
    tower = edit_tower(bundle, lambda members: members.update({SAMPLE_INPUTS: payload}))
    with contextlib.suppress(Exception):
        torch.export.load(tower)
    assert mark.exists()


def test_pickled_weights_are_refused_and_never_run(bundle: Path, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    pickle_weights(bundle, mark)
    assert "pickled" in tower_refusal(bundle)
    assert not mark.exists()


def test_torch_itself_runs_pickled_weights(bundle: Path, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    tower = pickle_weights(bundle, mark)
    with contextlib.suppress(Exception):
        torch.export.load(tower)
    assert mark.exists()


def pickle_weights(bundle: Path, mark: Path) -> Path:
    def edit(members: Members) -> None:
        members["archive/data/weights/weight_0"] = pickled(TouchOnUnpickling(mark))
        edit_json(WEIGHTS_CONFIG, lambda config: next(iter(config["config"].values())).update(use_pickle=True))(members)

    return edit_tower(bundle, edit)


@pytest.mark.parametrize(
    "name",
    [
        "archive/data/aotinductor/model/model.so",
        "archive/data/constants/custom_obj_0",
        "archive/data/constants/opaque_obj_0",
        "archive/data/weights/model.pt",
        "archive/extra/notes.txt",
        "archive/models/second.json",
        "archive/../escaped",
        "archive//data/weights/weight_0",
        "/etc/escaped",
        "other/version",
        "serialized_exported_program.json",
    ],
)
def test_a_member_that_a_plain_tower_does_not_have_is_refused(bundle: Path, name: str) -> None:
    edit_tower(bundle, lambda members: members.update({name: b"{}"}))
    tower_refusal(bundle)


def test_two_members_of_one_name_are_refused(bundle: Path) -> None:
    tower = bundle / "user_tower.pt2"
    pairs = [*read_members(tower).items(), (PROGRAM, b"{}")]
    with pytest.warns(UserWarning, match="Duplicate name"):
        tower.write_bytes(zip_bytes(pairs))
    reseal(bundle)
    assert "same name" in tower_refusal(bundle)


def test_a_compressed_member_is_refused(bundle: Path) -> None:
    tower = bundle / "user_tower.pt2"
    members = {**read_members(tower), "archive/data/weights/weight_9": b"\0" * 10_000_000}
    tower.write_bytes(zip_bytes(members, zipfile.ZIP_DEFLATED))
    reseal(bundle)
    assert "compressed" in tower_refusal(bundle)


def test_weights_of_no_bytes_and_a_huge_shape_are_refused(bundle: Path) -> None:
    def edit(members: Members) -> None:
        members["archive/data/weights/weight_0"] = b""
        edit_json(
            WEIGHTS_CONFIG,
            lambda config: next(iter(config["config"].values()))["tensor_meta"].update(sizes=[{"as_int": 10**12}]),
        )(members)

    edit_tower(bundle, edit)
    assert "no bytes" in tower_refusal(bundle)


@pytest.mark.parametrize(
    "entry",
    [
        {"path_name": "../constants/tensor_0"},
        {"path_name": "weight_99"},
        {"path_name": "custom_obj_0"},
        {"path_name": 3},
        {"use_pickle": 0},
        {"use_pickle": None},
        {"tensor_meta": None},
    ],
)
def test_a_weight_that_points_elsewhere_is_refused(bundle: Path, entry: dict[str, Any]) -> None:
    edit_tower(bundle, edit_json(WEIGHTS_CONFIG, lambda config: next(iter(config["config"].values())).update(entry)))
    tower_refusal(bundle)


@pytest.mark.parametrize("keep", [0, 10, 1_000, -1])
def test_a_truncated_tower_is_refused(bundle: Path, keep: int) -> None:
    tower = bundle / "user_tower.pt2"
    tower.write_bytes(tower.read_bytes()[:keep])
    reseal(bundle)
    tower_refusal(bundle, BundleTornError)


def test_a_tower_with_a_forgotten_member_is_refused(bundle: Path) -> None:
    edit_tower(bundle, lambda members: members.pop(WEIGHTS_CONFIG))
    tower_refusal(bundle, BundleTornError)


def test_a_written_tower_holds_no_pickle_and_no_source_path(pristine: Path) -> None:
    members = read_members(pristine / "user_tower.pt2")
    assert members[SAMPLE_INPUTS] == b""
    assert b".py" not in b"".join(members.values())
