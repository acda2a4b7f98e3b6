import numpy as np
import pytest

from index.matrix import VectorMatrix


def matrix(chunk_rows: int = 4) -> VectorMatrix:
    return VectorMatrix(3, chunk_rows=chunk_rows)


def rows(*starts: float) -> np.ndarray:
    return np.array([[start, start + 1, start + 2] for start in starts], dtype=np.float32)


@pytest.mark.parametrize("chunk_rows", [4, 64])
def test_rows_come_back_in_the_order_asked_across_chunks(chunk_rows: int):
    vectors = matrix(chunk_rows)
    vectors.write(np.array([9, 0, 5]), rows(90, 0, 50))
    assert vectors.read(np.array([5, 9, 0])).tolist() == rows(50, 90, 0).tolist()


def test_the_last_row_counts_if_a_slot_occurs_twice():
    vectors = matrix()
    vectors.write(np.array([1, 2, 1]), rows(1, 2, 3))
    assert vectors.read(np.array([1])).tolist() == rows(3).tolist()


def test_a_slot_has_a_vector_from_write_to_clear():
    vectors = matrix()
    slots = np.array([1, 7, 1000])
    assert vectors.holds(slots).tolist() == [False, False, False]
    vectors.write(np.array([7]), rows(7))
    assert vectors.holds(slots).tolist() == [False, True, False]
    vectors.clear(slots)
    assert vectors.holds(slots).tolist() == [False, False, False]
    assert vectors.read(np.array([7])).tolist() == [[0, 0, 0]]


def test_bad_vectors_are_refused_and_nothing_is_written():
    vectors = matrix()
    with pytest.raises(ValueError, match="shape"):
        vectors.write(np.array([0]), np.zeros((1, 4), dtype=np.float32))
    with pytest.raises(ValueError, match="not finite"):
        vectors.write(np.array([0, 1]), np.array([[0, 0, 1], [0, np.nan, 0]], dtype=np.float32))
    assert not vectors.holds(np.array([0, 1])).any()


def test_writing_nothing_is_fine():
    vectors = matrix()
    vectors.write(np.array([], dtype=np.int64), np.zeros((0, 3), dtype=np.float32))
    assert vectors.capacity == 0


def test_a_slice_of_slots_says_the_same_as_its_slots_also_beyond_the_last_row():
    matrix = VectorMatrix(2, chunk_rows=4)
    matrix.write(np.array([1, 6]), np.ones((2, 2), dtype=np.float32))
    for start, stop in ((0, 8), (1, 3), (5, 12), (9, 11), (3, 3)):
        assert matrix.holds(slice(start, stop)).tolist() == matrix.holds(np.arange(start, stop)).tolist()
