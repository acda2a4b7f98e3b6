"""What is searched and what is asked: generated, or read from files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from bench.index.generator import generate
from bench.index.options import InputError, Options, check_k

CALIBRATION = 1_000
"""Queries at most on which our engine calibrates itself."""


class Data(NamedTuple):
    """All unit rows. No query that is measured is one that an engine was calibrated on."""

    vectors: NDArray[np.float32]  # (N, D) float32
    queries: NDArray[np.float32]  # (Q, D) float32, measured
    calibration: NDArray[np.float32]  # (C, D) float32
    source: str


def load_data(options: Options) -> Data:
    """The vectors and queries that the options name. Raises InputError."""
    if options.vectors is None or options.queries is None:
        check_k(options.k, options.items, streaming=options.streaming)
        count = options.queries_count + min(CALIBRATION, max(options.queries_count, 100))
        vectors, queries = generate(options.items, options.dim, count, seed=options.seed)
        return Data(vectors, queries[: options.queries_count], queries[options.queries_count :], "bench.index.generator")
    vectors = _read(options.vectors, "vectors")
    queries = _read(options.queries, "queries")
    _check(options, vectors, queries)
    vectors = vectors[: options.items or len(vectors)]
    # Files may be sorted, by user or by day.
    order = np.random.default_rng(options.seed).permutation(len(queries))
    measured = min(options.queries_count, -(-len(queries) // 2))
    calibration = order[measured : measured + CALIBRATION]
    source = f"{options.vectors.name} and {options.queries.name}"
    return Data(vectors, queries[order[:measured]], queries[calibration], source)


def _check(options: Options, vectors: NDArray[np.float32], queries: NDArray[np.float32]) -> None:
    if options.items > len(vectors):
        raise InputError(f"--items is {options.items}, but {options.vectors} has {len(vectors)} rows")
    if options.dim and options.dim != vectors.shape[1]:
        raise InputError(f"--dim is {options.dim}, but {options.vectors} has rows of {vectors.shape[1]} components")
    if queries.shape[1] != vectors.shape[1]:
        raise InputError(
            f"{options.vectors} has rows of {vectors.shape[1]} components, {options.queries} of {queries.shape[1]}; "
            "both must come from the same model"
        )
    if len(queries) < 2:
        raise InputError(f"{options.queries} has 1 query; at least 2 are needed, to calibrate on one and measure the other")
    check_k(options.k, options.items or len(vectors), streaming=options.streaming)


def _read(path: Path, name: str) -> NDArray[np.float32]:
    """A matrix of unit rows from a file: (n, D) float32."""
    try:
        if path.suffix == ".npy":
            found: Any = np.load(path, allow_pickle=False)
        elif path.suffix == ".safetensors":
            found = _only_tensor(load_file(path), path, name)
        else:
            raise InputError(f"{path} is neither .npy nor .safetensors")
    except (OSError, ValueError, EOFError, KeyError, TypeError, SafetensorError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} cannot be read: {first_line}") from error
    if not isinstance(found, np.ndarray) or found.ndim != 2 or 0 in found.shape or found.dtype.kind != "f":
        what = f"{found.dtype} of shape {found.shape}" if isinstance(found, np.ndarray) else type(found).__name__
        raise InputError(f"{path} must hold a matrix of floats, a row a vector; it holds {what}")
    return _unit(np.array(found, dtype=np.float32), path)


def _only_tensor(tensors: Mapping[str, NDArray[Any]], path: Path, name: str) -> NDArray[Any]:
    if name in tensors:
        return tensors[name]
    if len(tensors) != 1:
        raise InputError(f"{path} holds the tensors {', '.join(sorted(tensors)) or 'none'}; one must be named {name!r}")
    return next(iter(tensors.values()))


def _unit(rows: NDArray[np.float32], path: Path) -> NDArray[np.float32]:
    lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    wrong = np.flatnonzero(~np.isfinite(lengths) | (lengths == 0))
    if len(wrong):
        raise InputError(f"row {wrong[0]} of {path} has length {lengths[wrong[0]]}; leave out rows without a direction")
    rows /= lengths[:, None]
    return rows
