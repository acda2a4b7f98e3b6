"""Towers as bytes: torch.export programs written without pickles, and loaded only after `archive` has checked them."""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass

from index.bundle.archive import join_members, open_members, plain_members
from index.bundle.errors import BundleError, BundleInvalidError

_REEXPORT = "export the tower again with this version of torch"
_ONE_AT_A_TIME = threading.Lock()
"""torch.export.load refuses to run in two threads at once."""


@dataclass(frozen=True)
class InputShape:
    """One input of a tower as the format names it; None in `sizes` is a size that must be free."""

    name: str
    dtype: torch.dtype
    sizes: tuple[int | None, ...]


def tower_bytes(program: ExportedProgram, file: str) -> bytes:
    """`program` as a .pt2 without sample inputs, source paths and guards; equal programs give equal bytes.

    The program itself is left as it is. Raises BundleUnsafeError for a tower that no reader would accept: operators
    off the list, pickled constants, a device other than the CPU.
    """
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    data = join_members(plain_members(buffer.getvalue(), file))
    open_members(data, file)
    return data


@dataclass(frozen=True)
class Tower:
    """A tower as read: the program, to move or compile, and a module of it on the CPU, to call."""

    program: ExportedProgram
    module: torch.nn.Module


def load_tower(data: bytes, inputs: Sequence[InputShape], dim: int, file: str) -> Tower:
    """The tower in the bytes of a .pt2, checked by `archive.open_members` before torch sees them.

    Raises BundleError for a program that is unsafe, that torch cannot load, whose inputs are not `inputs` in this
    order, or whose output is not one (rows, dim) float32.
    """
    safe = join_members(open_members(data, file))
    try:
        program = _load(safe)
        _check_signature(program, inputs, dim, file)
        return Tower(program, program.module())
    except BundleError:
        raise
    except Exception as error:  # torch raises whatever its parser meets; none of it may reach an operator
        problem = f"cannot be loaded by torch {torch.__version__} ({_first_line(error)})"
        raise BundleInvalidError(file, problem, _REEXPORT) from error


def tower_module(program: ExportedProgram, device: str | torch.device = "cpu") -> torch.nn.Module:
    """A callable module of `program` on `device`, for the hot path; the program itself stays on the CPU.

    It does not check the shapes of its inputs, as `Bundle.encode_users` and `Bundle.encode_items` do.
    """
    if torch.device(device).type != "cpu":
        # The pass works in place, and deepcopy of a program warns in torch 2.13: a copy by way of its bytes.
        program = move_to_device_pass(_load(tower_bytes(program, "tower")), device)
    module = program.module()
    # torch's hook compares every input with the program's ranges, which takes longer than a small tower: 0.66 ms a call with
    # it, 0.24 without (batch 1, 50 events, one thread of a 2.6 GHz Xeon).
    module._forward_pre_hooks.clear()
    return module


def _load(data: bytes) -> ExportedProgram:
    with _ONE_AT_A_TIME:
        return torch.export.load(io.BytesIO(data))


def _check_signature(program: ExportedProgram, inputs: Sequence[InputShape], dim: int, file: str) -> None:
    names = program.graph_signature.user_inputs
    wanted = tuple(expected.name for expected in inputs)
    if tuple(names) != wanted:
        raise BundleInvalidError(file, f"takes {list(names)}, not {list(wanted)}", _REEXPORT)
    metas = {node.name: node.meta.get("val") for node in program.graph.nodes}
    for expected in inputs:
        _check_shape(metas.get(expected.name), expected, file)
    outputs = program.graph_signature.user_outputs
    if len(outputs) != 1:
        raise BundleInvalidError(file, f"gives {len(outputs)} outputs, not one tensor", _REEXPORT)
    if program.graph_signature.buffers_to_mutate or program.graph_signature.user_inputs_to_mutate:
        raise BundleInvalidError(file, "changes its own state or inputs when called", "export it in eval mode")
    _check_shape(metas.get(str(outputs[0])), InputShape("output", torch.float32, (None, dim)), file)


def _check_shape(found: object, expected: InputShape, file: str) -> None:
    if not isinstance(found, torch.Tensor):
        raise BundleInvalidError(file, f"{expected.name} is not a tensor", _REEXPORT)
    if found.dtype != expected.dtype or found.ndim != len(expected.sizes):
        problem = f"{expected.name} is {found.dtype} of rank {found.ndim}"
        raise BundleInvalidError(file, f"{problem}, not {expected.dtype} of rank {len(expected.sizes)}", _REEXPORT)
    for axis, (have, want) in enumerate(zip(found.shape, expected.sizes, strict=True)):
        if want is None and isinstance(have, int):
            problem = f"{expected.name} has a fixed size {have} on axis {axis}"
            raise BundleInvalidError(file, problem, "export it with torch.export.Dim on this axis")
        if want is not None and (not isinstance(have, int) or have != want):
            raise BundleInvalidError(file, f"{expected.name} has size {have} on axis {axis}, not {want}", _REEXPORT)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
