"""Arrays by slot that grow while they are in use."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_DOUBLED_UP_TO = 262_144


def grown(length: int) -> int:
    """How long an array gets that is full: twice as long at first, and a quarter longer once it is large.

    What is added costs nothing until it is written, what there is must be copied, and whoever walks all slots walks the rest.
    """
    return length + max(min(length, _DOUBLED_UP_TO), length // 4, 1)


def longer(array: NDArray[Any], length: int) -> NDArray[Any]:
    """A longer copy of a one-dimensional array, with zeros (or None) behind. A reader of the old one may go on."""
    # Not np.pad: it writes what it adds, and the system hands out zeroed memory only when it is first touched.
    copy = np.empty(length, dtype=object) if array.dtype == object else np.zeros(length, dtype=array.dtype)
    copy[: len(array)] = array
    return copy
