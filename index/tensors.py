"""Arrays as a safetensors file, in parts of a mebibyte, byte for byte what `safetensors.numpy.save` makes of them.

That function copies everything while it holds the interpreter's lock, 60 ms for 64 MB, and no search runs meanwhile. The parts
are views: nothing is copied, and whoever hashes or writes one gives the lock away.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

PART_BYTES = 1 << 20
# In a file the arrays lie in this order, and by name within a type, so that each begins at a multiple of its element's size.
_TYPES = {"uint64": "U64", "int64": "I64", "float64": "F64", "float32": "F32", "int32": "I32", "uint8": "U8"}
_ALIGNED = 8  # bytes: the header is filled up with blanks to a multiple


def tensor_parts(arrays: Mapping[str, NDArray[Any]]) -> Iterator[bytes | memoryview]:
    """The parts of the file, in order: the header, then at most `PART_BYTES` each.

    arrays: contiguous, of the machine's byte order, which must be little-endian. Raises ValueError for others, and for types
    that no snapshot holds.
    """
    for name, array in arrays.items():
        if array.dtype.name not in _TYPES or array.dtype.str[0] == ">" or not array.flags.c_contiguous:
            raise ValueError(f"{name} cannot be written: {array.dtype} {array.shape}, strides {array.strides}")
    order = list(_TYPES)
    ordered = sorted(arrays.items(), key=lambda one: (order.index(one[1].dtype.name), one[0]))
    yield _header(ordered)
    for _, array in ordered:
        data = array.reshape(-1).view(np.uint8).data
        for start in range(0, len(data), PART_BYTES):
            yield data[start : start + PART_BYTES]


def _header(ordered: list[tuple[str, NDArray[Any]]]) -> bytes:
    entries, start = {}, 0
    for name, array in ordered:
        offsets = [start, start + array.nbytes]
        entries[name] = {"dtype": _TYPES[array.dtype.name], "shape": list(array.shape), "data_offsets": offsets}
        start = offsets[1]
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNED)
    return len(text).to_bytes(8, "little") + text
