"""FAISS's brute force with a bias column: what it must not return, it does not."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis.stateful import initialize

from index.exact import ExactSearch
from index.filters.filter import Filter, MatchAny
from index.gpu.flat import DEAD, FaissFlatSearch, padding
from index.gpu.knn import knn_on_cpu
from index.items import ItemIndex
from index.matrix import VectorMatrix
from index.search import Hits
from index.slots import SlotTable
from tests.index.engines import unit_rows
from tests.index.gpu.engine import faiss_flat
from tests.index.test_search_contract import IndexMachine

DIM = 8


class FlatMachine(IndexMachine):
    engine = "exact by faiss-gpu's code"

    @initialize()
    def start(self) -> None:
        self.index = faiss_flat(4, 64)
        self.vectors, self.available, self.attributes = {}, {}, {}


def test_it_keeps_to_the_contract_of_every_engine():
    case = FlatMachine.TestCase
    case.settings = settings(max_examples=40, stateful_step_count=40, deadline=None, derandomize=True)
    case().runTest()


def filled(count: int, *, chunk_rows: int = 64, dtype: torch.dtype = torch.float32) -> tuple[ItemIndex, np.ndarray]:
    index = faiss_flat(DIM, chunk_rows, dtype=dtype)
    vectors = unit_rows(count, 1, DIM)
    index.set_vectors(np.array([index.slots.insert(str(number)) for number in range(count)]), vectors)
    return index, vectors


class CountingOracle(ExactSearch):
    """Remembers how many queries it was asked."""

    asked = 0

    def search(self, queries: torch.Tensor, k: int, exclude: Sequence[np.ndarray] | None = None, masks: object = None) -> Hits:
        self.asked += len(queries)
        return super().search(queries, k, exclude, masks)  # type: ignore[arg-type]


def with_counting_oracle(count: int) -> tuple[ItemIndex, CountingOracle]:
    slots, matrix = SlotTable(), VectorMatrix(DIM, chunk_rows=512, padded=padding(DIM))
    oracle = CountingOracle(slots, matrix)
    index = ItemIndex(slots, matrix, FaissFlatSearch(slots, matrix, oracle=oracle, knn=knn_on_cpu), oracle=oracle)
    index.set_vectors(np.array([slots.insert(str(number)) for number in range(count)]), unit_rows(count, 1, DIM))
    return index, oracle


@pytest.mark.parametrize("dim", [1, 7, 8, 63, 64, 100, 128])
def test_rows_are_padded_to_whole_groups_of_eight_with_room_for_the_bias(dim: int):
    assert 1 <= padding(dim) <= 8
    assert (dim + padding(dim)) % 8 == 0


def test_a_matrix_without_room_for_the_bias_is_refused():
    slots, matrix = SlotTable(), VectorMatrix(DIM)
    with pytest.raises(ValueError, match="needs 8 columns behind its 8, got 0"):
        FaissFlatSearch(slots, matrix, oracle=ExactSearch(slots, matrix), knn=knn_on_cpu)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 2e-3)])
def test_it_agrees_with_brute_force_over_many_chunks(dtype: torch.dtype, tolerance: float):
    index, vectors = filled(1000, dtype=dtype)
    queries = unit_rows(7, 2, DIM)
    for row, candidates in enumerate(index.search(torch.from_numpy(queries), [100] * 7)):
        truth = np.sort(vectors @ queries[row])[::-1][:100]
        np.testing.assert_allclose(candidates.scores, truth, atol=tolerance)
        assert len(set(candidates.item_ids)) == 100


def test_rows_that_were_never_written_are_dead():
    index = faiss_flat(DIM, 64)
    for number in range(10):
        index.slots.insert(str(number))
    index.set_vectors(np.array([7]), unit_rows(1, 1, DIM))
    assert index.matrix.chunks[0][:10, DIM].tolist() == [DEAD] * 7 + [0] + [DEAD] * 2
    assert index.search(torch.from_numpy(unit_rows(1, 2, DIM)), [10])[0].item_ids == ["7"]
    assert index.violations == 0


def test_reading_writing_and_clearing_rows_leaves_the_bias_alone():
    index, vectors = filled(3)
    index.matrix.clear(np.array([1]))
    index.matrix.write(np.array([2]), vectors[:1])
    assert index.matrix.chunks[0][:3, DIM].tolist() == [0, 0, 0], "the index says what changed, and only then does the bias"
    assert index.matrix.read(np.arange(3)).shape == (3, DIM)
    index.changed(np.array([1]))
    assert index.matrix.chunks[0][:3, DIM].tolist() == [0, DEAD, 0]


def test_excluded_slots_are_made_up_for_and_each_querys_are_its_own():
    index, vectors = filled(300)
    queries = unit_rows(3, 3, DIM)
    order = np.argsort(-(queries @ vectors.T), axis=1)
    exclude = [order[0, :50], np.zeros(0, dtype=np.int64), np.arange(300)]
    found = index.search(torch.from_numpy(queries), [20] * 3, exclude)
    assert [one.item_ids for one in found] == [[str(n) for n in order[0, 50:70]], [str(n) for n in order[1, :20]], []]
    assert index.violations == 0


def test_excluded_slots_without_a_row_do_not_touch_another_query():
    index, _ = filled(64)
    without_row = np.array([64, 65, -1], dtype=np.int64)  # 64 + 0 would be the first row of the second query
    found = index.search(torch.from_numpy(unit_rows(2, 3, DIM)), [64, 64], [without_row, np.zeros(0, dtype=np.int64)])
    assert [len(one.item_ids) for one in found] == [64, 64]


def test_only_queries_with_masks_or_too_many_exclusions_go_to_the_oracle():
    index, oracle = with_counting_oracle(3000)
    index.slots.columns.set(np.arange(3000), [{"even": number % 2 == 0} for number in range(3000)])
    index.changed(np.arange(3000))
    even = Filter(must=(MatchAny("even", frozenset({True})),))
    none, few, many = np.zeros(0, dtype=np.int64), np.arange(100), np.arange(2040)
    queries = torch.from_numpy(unit_rows(4, 5, DIM))
    expected = index.search(queries, [10] * 4, [none, few, many, none], [None, None, None, even], exact=True)
    oracle.asked = 0
    found = index.search(queries, [10] * 4, [none, few, many, none], [None, None, None, even])
    assert oracle.asked == 2, "the one with many exclusions and the one with a filter"
    assert [one.item_ids for one in found] == [one.item_ids for one in expected]
    assert index.violations == 0


def test_no_more_is_ever_fetched_than_the_gpu_can_select():
    fetched: list[int] = []

    def knn(queries: torch.Tensor, rows: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        fetched.append(k)
        return knn_on_cpu(queries, rows, k)

    index = faiss_flat(DIM, 4096, knn=knn)
    index.set_vectors(np.array([index.slots.insert(str(n)) for n in range(4000)]), unit_rows(4000, 1, DIM))
    for k, excluded in ((2048, 0), (2000, 48), (2000, 49), (1, 2048), (1, 2047)):
        [found] = index.search(torch.from_numpy(unit_rows(1, 2, DIM)), [k], [np.arange(excluded)])
        assert len(found.item_ids) == k
    assert fetched == [2048, 2048, 2048], "two of them went to the oracle"


def test_scores_below_every_possible_one_are_no_hits_whatever_place_comes_with_them():
    def knn(queries: torch.Tensor, rows: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        scores, places = knn_on_cpu(queries, rows, k)
        places[scores < -1e4] = 3  # FAISS adds tiles' offsets to its -1 for "none"
        return scores, places

    index = faiss_flat(DIM, 64, knn=knn)
    index.set_vectors(np.array([index.slots.insert(str(n)) for n in range(5)]), unit_rows(5, 1, DIM))
    index.slots.available[1:] = False
    index.changed(np.arange(5))
    [found] = index.search(torch.from_numpy(unit_rows(1, 2, DIM)), [5])
    assert found.item_ids == ["0"]
    assert index.violations == 0
