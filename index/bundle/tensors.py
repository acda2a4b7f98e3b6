"""Named arrays as safetensors bytes, and the checks every array of a bundle must pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from index.bundle.errors import BundleInvalidError, BundleTornError
from index.bundle.format import UNIT_TOLERANCE

_REWRITE = "write the bundle again"
_ROWS_AT_A_TIME = 1 << 16  # keeps temporaries of a check small against a matrix of millions of rows


def tensor_bytes(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Bytes of a safetensors file with these arrays, C-contiguous."""
    return save({name: np.ascontiguousarray(array) for name, array in arrays.items()})


def load_tensors(data: bytes, file: str) -> dict[str, NDArray[Any]]:
    """The arrays in safetensors bytes. Raises BundleTornError when they are not."""
    try:
        return load(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise BundleTornError(file, f"is not a readable safetensors file ({error})", "copy the bundle again") from error


def load_tensor(data: bytes, file: str, name: str) -> NDArray[Any]:
    """The only array, called `name`, in safetensors bytes."""
    arrays = load_tensors(data, file)
    if set(arrays) != {name}:
        raise BundleInvalidError(file, f"holds {sorted(arrays)}, not just {name!r}", _REWRITE)
    return arrays[name]


def check_array(array: NDArray[Any], file: str, name: str, shape: tuple[int | None, ...], dtype: type) -> None:
    """Refuse another dtype, rank or size (None: any), and anything not finite in an array of floats."""
    if array.dtype != np.dtype(dtype):
        raise BundleInvalidError(file, f"{name} is {array.dtype}, not {np.dtype(dtype)}", _REWRITE)
    fits = array.ndim == len(shape) and all(want is None or have == want for have, want in zip(array.shape, shape, strict=True))
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise BundleInvalidError(file, f"{name} has shape {array.shape}, not ({wanted})", _REWRITE)
    for start in range(0, len(array) if array.dtype.kind == "f" else 0, _ROWS_AT_A_TIME):
        finite = np.isfinite(array[start : start + _ROWS_AT_A_TIME]).all(axis=tuple(range(1, array.ndim)))
        if not finite.all():
            row = start + int(np.argmin(finite))
            raise BundleInvalidError(file, f"{name} row {row} is not finite", _REWRITE)


def check_unit_rows(array: NDArray[Any], file: str, name: str) -> None:
    """Refuse a row of a (N, D) array whose length is further from 1 than UNIT_TOLERANCE."""
    for start in range(0, len(array), _ROWS_AT_A_TIME):
        block = array[start : start + _ROWS_AT_A_TIME].astype(np.float64)  # (n, D) float64
        wrong = ~(np.abs(np.sqrt((block * block).sum(axis=1)) - 1.0) <= UNIT_TOLERANCE)
        if wrong.any():
            at = int(np.argmax(wrong))
            length = float(np.sqrt((block[at] ** 2).sum()))
            problem = f"{name} row {start + at} has length {length:.6g}, not 1"
            raise BundleInvalidError(file, problem, "scale every vector to length 1")
