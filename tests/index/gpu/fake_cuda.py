"""CUDA tensors without CUDA: they have shapes, types and devices, but no values. Operations on mixed devices fail as on a GPU.

torch's FakeTensorMode does this; torch's CPU build lacks three things that it needs, which `_Host` adds: indexing (done in C++
with a guard of the device that only CUDA builds have), arrays that become fake tensors, and host tensors that become arrays.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export.passes import move_to_device_pass
from torch.overrides import TorchFunctionMode

DEVICE = "cuda:0"
aten = torch.ops.aten


@contextmanager
def fake_cuda() -> Iterator[FakeTensorMode]:
    """Tensors made inside are fake; `DEVICE` is one that exists."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)  # a loaded tower has real ones, on the host
    with mode, _Host(mode):
        yield mode


class _Host(TorchFunctionMode):
    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()
        self._mode = mode

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.numpy:
            return _to_array(args[0])
        if func is torch.Tensor.__getitem__ and isinstance(args[0], FakeTensor):
            return self._get(*args)
        if func is torch.Tensor.__setitem__ and isinstance(args[0], FakeTensor):
            return self._set(*args)
        made = func(*args, **kwargs)
        return self._mode.from_tensor(made) if func in (torch.from_numpy, torch.from_dlpack) else made

    def _get(self, tensor: torch.Tensor, key: Any) -> torch.Tensor:
        view, indices = self._view(tensor, key)
        return aten.index.Tensor(view, indices) if indices else view

    def _set(self, tensor: torch.Tensor, key: Any, value: Any) -> None:
        view, indices = self._view(tensor, key)
        if isinstance(value, torch.Tensor) and value.ndim and value.device != tensor.device:
            raise RuntimeError(f"a {value.device} tensor is written into a {tensor.device} one, which waits for a copy")
        if not isinstance(value, torch.Tensor):
            value = torch.full((), value, dtype=tensor.dtype, device=tensor.device)
        if indices:
            aten.index_put_(view, indices, value.to(tensor.dtype))
        else:
            value.expand(view.shape)  # there are no values to copy, only shapes to check

    def _view(self, tensor: torch.Tensor, key: Any) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
        """The basic part of an index as a view, and the tensors that are left, by dimension of the view."""
        indices: list[torch.Tensor | None] = []
        dim = 0
        for one in key if isinstance(key, tuple) else (key,):
            if isinstance(one, int):
                tensor = aten.select.int(tensor, dim, one)
                continue
            if one is None:
                tensor = aten.unsqueeze(tensor, dim)
            elif isinstance(one, slice):
                tensor = aten.slice.Tensor(tensor, dim, one.start, one.stop, one.step or 1)
            if not isinstance(one, (slice, type(None))):
                indices += [None] * (dim - len(indices))
                found = one if isinstance(one, torch.Tensor) else torch.from_numpy(np.asarray(one))
                indices.append(found)
            dim += 1
        return tensor, indices


def _to_array(tensor: torch.Tensor) -> np.ndarray:
    """Zeros in place of the values that a fake tensor does not have."""
    if tensor.device.type != "cpu":
        raise TypeError(f"can't convert a {tensor.device} tensor to numpy; copy it to the host first")
    if isinstance(tensor, FakeTensor):
        return np.zeros(tuple(tensor.shape), dtype=str(tensor.dtype).removeprefix("torch."))
    return np.asarray(tensor)


def fake_tower(program: torch.export.ExportedProgram) -> torch.nn.Module:
    """An exported tower moved to `DEVICE`, as `index.bundle.tower_module` does; inside `fake_cuda`. It consumes `program`."""
    for tensors in (program._state_dict, program._constants):
        for name, value in tensors.items():
            if isinstance(value, torch.Tensor):
                made = torch.empty(value.shape, dtype=value.dtype, device=DEVICE)  # moving a real one would need the device
                tensors[name] = torch.nn.Parameter(made, requires_grad=False) if isinstance(value, torch.nn.Parameter) else made
    module = move_to_device_pass(program, DEVICE).module()
    module._forward_pre_hooks.clear()
    return module
