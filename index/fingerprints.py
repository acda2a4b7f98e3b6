"""A number for each vector that changes when the vector does."""

import numpy as np
from numpy.typing import NDArray

_ROWS_AT_ONCE = 16_384  # 8 MiB of 64-bit words at 64 components
_GOLDEN_RATIO = np.uint64(0x9E3779B97F4A7C15)


def fingerprints(rows: NDArray[np.float32]) -> NDArray[np.uint64]:
    """64 bits for each row: (n, D) float32 -> (n,) uint64.

    The sum over the components, modulo 2^64, of a component's 32 bits times an odd number that belongs to its place
    (multilinear hashing). A change of one component always changes the sum; one of several is missed with a chance of 2^-64, or
    2^-51 where rows were rounded to float16. A miss costs little: the row stays in a list that is not the nearest any more.

    Part of the snapshot's format: a change of what is computed here is a new version of it.
    """
    factors = _factors(rows.shape[1])
    words = np.ascontiguousarray(rows, dtype=np.float32).view(np.uint32)  # (n, D) uint32
    found = np.empty(len(rows), dtype=np.uint64)
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        found[start : start + _ROWS_AT_ONCE] = words[start : start + _ROWS_AT_ONCE].astype(np.uint64) @ factors
    return found


def _factors(dim: int) -> NDArray[np.uint64]:
    """The first outputs of SplitMix64 (Steele, Lea, Flood 2014) from state 0, made odd: (dim,) uint64.

    Written out here, since NumPy's generators may change what they draw.
    """
    mixed = np.arange(1, dim + 1, dtype=np.uint64) * _GOLDEN_RATIO
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (mixed ^ (mixed >> np.uint64(31))) | np.uint64(1)
