"""Native lists against brute force: nothing that bytes cannot tell apart is lost, whatever was put and removed before."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from index.faiss_lists import FaissLists
from index.matrix import VectorMatrix
from index.native.library import library
from index.native.lists import NativeLists
from tests.index.engines import unit_rows

CHANGES = st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 199), min_size=1, max_size=60, unique=True)), max_size=12)


@pytest.fixture(scope="module", autouse=True)
def _compiled():
    """Before anything is timed."""
    library()


def filled(rows: np.ndarray, lists: int, *, dtype: torch.dtype = torch.float32) -> tuple[NativeLists, VectorMatrix]:
    slots, matrix = np.arange(len(rows)), VectorMatrix(rows.shape[1], chunk_rows=64, dtype=dtype)
    matrix.write(slots, rows)
    made = NativeLists(unit_rows(lists, 1, rows.shape[1]))
    made.put(slots, matrix.read(slots))
    return made, matrix


def best(scores: np.ndarray, k: int) -> np.ndarray:
    return np.sort(scores)[::-1][:k]


@given(changes=CHANGES, dim=st.sampled_from([1, 3, 64, 100, 130]), k=st.integers(1, 250))
def test_every_list_searched_is_brute_force_after_any_changes(changes: list[tuple[bool, list[int]]], dim: int, k: int):
    matrix, lists, present = VectorMatrix(dim, chunk_rows=64), NativeLists(unit_rows(7, 1, dim)), set()
    for number, (is_put, some) in enumerate(changes):
        slots = np.array(some)
        if is_put:
            matrix.write(slots, unit_rows(len(some), number, dim))
            lists.put(slots, matrix.read(slots))
            present |= set(some)
        else:
            lists.remove(slots)
            present -= set(some)
    assert len(lists) == len(present) == lists.sizes.sum()
    query = unit_rows(1, 99, dim)
    slots, scores = (part[0] for part in lists.search(query, k, 7, matrix))
    count = min(k, len(present))
    assert set(slots[:count].tolist()) <= present and len(set(slots[:count].tolist())) == count
    assert (slots[count:] == -1).all() and (scores[count:] == -np.inf).all()
    if present:
        truth = matrix.read(np.array(sorted(present))).numpy() @ query[0]
        np.testing.assert_allclose(scores[:count], best(truth, k), atol=1e-6)
        np.testing.assert_allclose(scores[:count], matrix.read(slots[:count]).numpy() @ query[0], atol=1e-6)


@pytest.mark.parametrize("noise", [1e-2, 1e-3, 1e-5, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_rows_that_bytes_cannot_tell_apart_are_told_apart(noise: float, dtype: torch.dtype):
    rows = unit_rows(1, 3, 64) + noise * unit_rows(5_000, 4, 64)
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    lists, matrix = filled(rows, 8, dtype=dtype)
    for query in unit_rows(20, 5, 64):
        _, scores = lists.search(query[None], 100, 8, matrix)
        np.testing.assert_allclose(scores[0], best(matrix.read(np.arange(5_000)).numpy() @ query, 100), atol=1e-6)


@pytest.mark.parametrize("dim", [1, 4, 64, 384])
def test_a_row_along_an_axis_is_found_among_all_others(dim: int):
    rows = np.concatenate([np.eye(dim), -np.eye(dim)]).astype(np.float32)
    lists, matrix = filled(rows, 4)
    slots, scores = lists.search(rows, 1, 4, matrix)
    assert slots[:, 0].tolist() == list(range(2 * dim))
    np.testing.assert_allclose(scores, 1.0)


def test_what_a_bitmap_rules_out_is_not_returned_and_does_not_take_the_place_of_others():
    rows = unit_rows(3_000, 6, 32)
    lists, matrix = filled(rows, 16)
    passes = np.random.default_rng(0).random(3_000) < 0.1
    passes[2_500:] = False
    bits = np.packbits(passes[:2_500], bitorder="little")  # shorter than the slots: what lies behind does not pass
    query = unit_rows(1, 7, 32)[0]
    slots, scores = lists.search_in(query, 50, np.arange(16), bits, matrix)
    assert passes[slots].all()
    np.testing.assert_allclose(scores, best(rows[passes] @ query, 50), atol=1e-6)


def test_a_batch_finds_what_its_queries_find_alone_and_no_more_lists_than_asked_for_are_read():
    rows = unit_rows(4_000, 8, 48)
    lists, matrix = filled(rows, 64)
    queries = unit_rows(33, 9, 48)
    together = lists.search(queries, 20, 5, matrix)
    for row, query in enumerate(queries):
        alone = lists.search(query[None], 20, 5, matrix)
        np.testing.assert_array_equal(together.slots[row], alone.slots[0])
        nearest = np.argsort(-(unit_rows(64, 1, 48) @ query))[:5]
        own = np.isin(lists.lists_of(np.arange(4_000)), nearest)
        np.testing.assert_allclose(together.scores[row], best(rows[own] @ query, 20), atol=1e-6)
        assert set(alone.slots[0].tolist()) <= set(lists.near(query, 20, 5).tolist())


def test_a_query_of_zeros_is_answered():
    lists, matrix = filled(unit_rows(50, 2, 8), 4)
    slots, scores = lists.search(np.zeros((1, 8), dtype=np.float32), 10, 4, matrix)
    assert len(set(slots[0].tolist())) == 10 and (scores == 0).all()


def test_an_empty_bitmap_lets_nothing_through():
    lists, matrix = filled(unit_rows(50, 2, 8), 4)
    slots, _ = lists.search_in(unit_rows(1, 4, 8)[0], 10, np.arange(4), np.zeros(0, dtype=np.uint8), matrix)
    assert (slots == -1).all()


@pytest.mark.parametrize("component", [np.nan, np.inf, -np.inf, 3e38])
def test_nothing_is_nearest_to_what_cannot_be_compared(component: float):
    lists, matrix = filled(unit_rows(3_000, 2, 8), 40)
    query = unit_rows(1, 4, 8)
    query[0, 3] = component
    assert (lists.search(query, 10, 4, matrix).slots == -1).all()
    slots, _ = lists.search_in(query[0], 10, np.arange(40), np.full(400, 255, dtype=np.uint8), matrix)
    assert (slots == -1).all()
    assert not len(lists.near(query[0], 10, 4))


def test_bytes_take_less_than_half_of_the_memory_of_faiss_lists():
    rows = unit_rows(20_000, 3, 64)
    native, _ = filled(rows, 32)
    by_faiss = FaissLists(unit_rows(32, 1, 64))
    by_faiss.put(np.arange(20_000), torch.from_numpy(rows))
    assert native.memory_bytes < by_faiss.memory_bytes / 2
