"""Towers that no reader would accept are refused when they are written; the others move between devices."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.export import Dim, ExportedProgram, export

from index.bundle import (
    BundleInvalidError,
    BundleUnsafeError,
    GoldenUser,
    read_bundle,
    tower_module,
    write_bundle,
)
from tests.index.bundle.parts import SPEC, tower_parts
from tests.tiny import tiny_towers, write_tiny_bundle


class MeanOverPadding(torch.nn.Module):
    """A user tower that forgets its mask: right on full rows, wrong as soon as padding is cut or added."""

    def forward(
        self,
        history: torch.Tensor,
        event_type: torch.Tensor,
        seconds_before_newest: torch.Tensor,
        length: torch.Tensor,
    ) -> torch.Tensor:
        drift = 0.01 * history.shape[1] + 0 * (event_type + seconds_before_newest).sum() + 0 * length.sum()
        return torch.nn.functional.normalize(history.sum(dim=1) + drift, dim=1)


class CustomNorm(torch.nn.Module):
    """An item tower with an operator that no reader knows."""

    def forward(self, text: torch.Tensor, categories: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        mixed = residual + categories.sum(dim=1, keepdim=True) + text.sum(dim=1, keepdim=True) + 1.0
        return torch.nn.functional.normalize(torch.special.bessel_j0(mixed), dim=1)


def exported(tower: torch.nn.Module, golden: object, shapes: tuple[dict[int, Any], ...]) -> ExportedProgram:
    inputs = [torch.from_numpy(array) for name, array in vars(golden).items() if name != "vectors"]
    return export(tower, tuple(inputs), dynamic_shapes=shapes)


def test_a_user_tower_that_depends_on_padding_is_refused(tmp_path: Path) -> None:
    parts = tower_parts()
    golden: GoldenUser = parts["golden_user"]
    batch, width = Dim("batch", min=1, max=64), Dim("width", min=1, max=10)
    program = exported(
        MeanOverPadding(), golden, ({0: batch, 1: width}, {0: batch, 1: width}, {0: batch, 1: width}, {0: batch})
    )
    inputs = [torch.from_numpy(array) for name, array in vars(golden).items() if name != "vectors"]
    wrong = replace(golden, vectors=MeanOverPadding()(*inputs).numpy())
    with pytest.raises(BundleInvalidError, match="without its padding"):
        write_bundle(tmp_path / "b", SPEC, **{**parts, "user_tower": program, "golden_user": wrong})


def test_a_tower_of_one_batch_size_is_refused(tmp_path: Path) -> None:
    parts = tower_parts()
    program = export(parts["user_tower"].module(), parts["user_tower"].example_inputs[0], dynamic_shapes=({}, {}, {}, {}))
    with pytest.raises(BundleInvalidError, match="fixed size"):
        write_bundle(tmp_path / "b", SPEC, **{**parts, "user_tower": program})


def test_an_operator_off_the_list_is_refused_when_writing(tmp_path: Path) -> None:
    parts = tower_parts()
    rows = Dim("rows", min=1)
    program = exported(CustomNorm(), parts["golden_item"], ({0: rows}, {0: rows}, {0: rows}))
    with pytest.raises(BundleUnsafeError, match="special_bessel_j0"):
        write_bundle(tmp_path / "b", SPEC, **{**parts, "item_tower": program})
    assert not any(tmp_path.iterdir())


def test_a_tower_moves_to_another_device_and_its_program_stays(bundle: Path) -> None:
    """The meta device stands for a GPU: it refuses any constant or new tensor left behind on the CPU."""
    read = read_bundle(bundle)
    assert read.user_program is not None and read.item_program is not None
    golden = tiny_towers().golden_user
    inputs = [torch.from_numpy(array) for name, array in vars(golden).items() if name != "vectors"]
    moved = tower_module(read.user_program, "meta")
    assert moved(*(tensor.to("meta") for tensor in inputs)).device.type == "meta"
    stayed = tower_module(read.user_program)(*inputs)
    np.testing.assert_allclose(stayed.detach().numpy(), golden.vectors, atol=1e-5)


def test_bundles_can_be_read_by_several_threads_at_once(tmp_path: Path):
    """torch.export.load refuses to be entered twice; a server loads bundles of several tenants at once."""
    released = write_tiny_bundle(tmp_path / "bundle")
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(read_bundle, [tmp_path / "bundle"] * 8))
    assert {one.release_id for one in read} == {released}
