"""Arrays become safetensors files in parts, as the format's own library would write them whole."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from index.tensors import PART_BYTES, tensor_parts

GOLDEN = Path(__file__).parent / "golden_snapshot_v1"
TYPES = (np.uint8, np.int32, np.float32, np.float64, np.int64, np.uint64)

shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
kinds = st.tuples(st.sampled_from(TYPES), shapes)


def filled(kind: type, shape: tuple[int, ...]) -> NDArray[np.generic]:
    return np.arange(np.prod(shape, dtype=int)).astype(kind).reshape(shape)


@given(st.dictionaries(st.text("abcé_", min_size=1, max_size=4), kinds, max_size=8))
def test_the_bytes_are_those_of_safetensors(arrays: dict[str, tuple[type, tuple[int, ...]]]):
    made = {name: filled(*one) for name, one in arrays.items()}
    assert b"".join(tensor_parts(made)) == save(made)


def test_the_golden_snapshot_is_written_as_it_was():
    [path] = GOLDEN.glob("*.safetensors")
    assert b"".join(tensor_parts(load_file(path))) == path.read_bytes()


def test_large_arrays_come_in_views_of_a_mebibyte():
    array = np.arange(PART_BYTES // 4 + 1, dtype=np.int32)
    header, whole, rest = tensor_parts({"array": array})
    assert [len(whole), len(rest)] == [PART_BYTES, 4]
    array[0] = 7
    assert whole[0] == 7, "a view, not a copy"
    assert len(header) % 8 == 0


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(3, dtype=np.float16),
        np.zeros(3, dtype=">i4"),
        np.zeros((3, 4), dtype=np.int32).T,
        np.array(["a"], dtype=object),
    ],
    ids=["type", "byte order", "strides", "objects"],
)
def test_what_is_not_plain_is_refused(array: NDArray[np.generic]):
    with pytest.raises(ValueError, match="array cannot be written"):
        list(tensor_parts({"array": array}))
