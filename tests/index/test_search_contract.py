"""Every engine against a dictionary and brute force, under random upserts, removes, availability and searches."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from index.exact import TILE, ExactSearch, top_k
from index.items import ItemIndex
from index.matrix import VectorMatrix
from index.search import Hits, Search
from index.slots import SlotTable

DIM = 4
ENGINES: dict[str, Callable[[SlotTable, VectorMatrix], Search]] = {"exact": ExactSearch}
ids = st.integers(0, 30).map(lambda number: f"item-{number}")
seeds = st.integers(0, 10_000)


def unit_rows(count: int, seed: int, dim: int = DIM) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def build(engine: str, chunk_rows: int = 8) -> ItemIndex:
    slots = SlotTable(capacity=2)
    matrix = VectorMatrix(DIM, chunk_rows=chunk_rows)
    return ItemIndex(slots, matrix, ENGINES[engine](slots, matrix))


class IndexMachine(RuleBasedStateMachine):
    """What is searched must be what a dictionary says, whatever was done before."""

    engine = "exact"

    @initialize()
    def start(self) -> None:
        self.index = build(self.engine)
        self.vectors: dict[str, np.ndarray] = {}
        self.available: dict[str, bool] = {}

    @rule(item_id=ids, seed=seeds, available=st.booleans())
    def upsert(self, item_id: str, seed: int, available: bool) -> None:
        vector = unit_rows(1, seed)
        slot = self.index.slots.insert(item_id, available=available)
        self.index.set_vectors(np.array([slot]), vector)
        self.vectors[item_id] = vector[0]
        self.available[item_id] = available

    @rule(item_id=ids)
    def remove_and_free(self, item_id: str) -> None:
        slot = self.index.slots.remove(item_id)
        assert (slot >= 0) == (item_id in self.available)
        if slot >= 0:
            self.index.clear_vectors(np.array([slot]))
            self.index.slots.free(slot)
            del self.available[item_id]
            self.vectors.pop(item_id, None)

    @rule(item_id=ids)
    def lose_the_vector(self, item_id: str) -> None:
        slot = self.index.slots.slot(item_id)
        if slot >= 0:
            self.index.clear_vectors(np.array([slot]))
            self.vectors.pop(item_id, None)

    @rule(item_id=ids, available=st.booleans())
    def set_available(self, item_id: str, available: bool) -> None:
        slot = self.index.slots.slot(item_id)
        if slot >= 0:
            self.index.slots.available[slot] = available
            self.index.eligibility_changed(np.array([slot]))
            self.available[item_id] = available

    @rule(seed=seeds, k=st.integers(1, 40), excluded=st.lists(ids, max_size=10))
    def search(self, seed: int, k: int, excluded: list[str]) -> None:
        queries = unit_rows(3, seed)
        exclude = [self.index.slots.slots(excluded), np.array([], dtype=np.int64), self.index.slots.slots(excluded)]
        found = self.index.search(torch.from_numpy(queries), [k, k, 1], exclude)
        for row, (candidates, wanted) in enumerate(zip(found, (k, k, 1), strict=True)):
            ruled_out = set(excluded) if row != 1 else set()
            eligible = [i for i, vector in self.vectors.items() if self.available[i] and i not in ruled_out]
            truth = sorted(((float(queries[row] @ self.vectors[i]), i) for i in eligible), reverse=True)[:wanted]
            assert len(candidates.item_ids) == len(set(candidates.item_ids)) == min(wanted, len(eligible))
            assert set(candidates.item_ids) <= set(eligible)
            np.testing.assert_allclose(candidates.scores, [score for score, _ in truth], atol=1e-5)
            own = [float(queries[row] @ self.vectors[i]) for i in candidates.item_ids]
            np.testing.assert_allclose(candidates.scores, own, atol=1e-5)

    @invariant()
    def nothing_is_ever_violated(self) -> None:
        if hasattr(self, "index"):
            assert self.index.violations == 0


TestExact = IndexMachine.TestCase
TestExact.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, derandomize=True)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_empty_index_finds_nothing(engine: str):
    found = build(engine).search(torch.from_numpy(unit_rows(2, 0)), [5, 5])
    assert [candidates.item_ids for candidates in found] == [[], []]


@pytest.mark.parametrize("engine", ENGINES)
def test_wrong_shapes_and_k_are_refused(engine: str):
    search = build(engine).engine
    with pytest.raises(ValueError, match="shape"):
        search.search(torch.zeros(1, DIM + 1), 1)
    with pytest.raises(ValueError, match="k must be 1 to 2048"):
        search.search(torch.zeros(1, DIM), 0)
    with pytest.raises(ValueError, match="k must be 1 to 2048"):
        search.search(torch.zeros(1, DIM), 2049)
    with pytest.raises(ValueError, match="exclusion for each"):
        search.search(torch.zeros(2, DIM), 1, [np.array([0])])


@pytest.mark.parametrize("engine", ENGINES)
def test_large_indexes_agree_with_brute_force(engine: str):
    index = build(engine, chunk_rows=4096)
    vectors = unit_rows(10_000, 1)
    slots = np.array([index.slots.insert(str(number)) for number in range(len(vectors))])
    index.set_vectors(slots, vectors)
    queries = unit_rows(5, 2)
    found = index.search(torch.from_numpy(queries), [100] * 5)
    for row, candidates in enumerate(found):
        truth = np.argsort(-(vectors @ queries[row]), kind="stable")[:100]
        assert candidates.item_ids == [str(number) for number in truth]


@pytest.mark.parametrize(("n", "k"), [(TILE * 3, 1), (TILE * 100, 7), (TILE * 100, 50), (100, 100), (TILE, TILE)])
def test_tile_pruned_top_k_equals_a_full_sort(n: int, k: int):
    scores = torch.from_numpy(np.random.default_rng(n + k).integers(0, 50, size=(4, n)).astype(np.float32))  # many ties
    scores[0, : n // 2] = -torch.inf
    values, places = top_k(scores, k)
    assert values.tolist() == torch.sort(scores, dim=1, descending=True).values[:, :k].tolist()
    assert torch.gather(scores, 1, places).tolist() == values.tolist()
    assert all(len(set(row)) == k for row in places.tolist())


class LyingSearch:
    """An engine that fails open: it returns every slot that was ever used."""

    kind = "lying"

    def __init__(self, slots: SlotTable, matrix: VectorMatrix) -> None:
        self.slots = slots

    def search(self, queries: torch.Tensor, k: int, exclude: object = None) -> Hits:
        everything = np.tile(np.arange(self.slots.extent), (len(queries), 1))[:, :k]
        return Hits(everything, np.ones(everything.shape, dtype=np.float32))

    def update(self, slots: np.ndarray) -> None:
        return


def test_what_a_lying_engine_returns_is_checked_again_and_counted():
    slots, matrix = SlotTable(), VectorMatrix(DIM)
    index = ItemIndex(slots, matrix, LyingSearch(slots, matrix))
    for item_id in ("good", "removed", "unavailable", "excluded"):
        index.set_vectors(np.array([slots.insert(item_id)]), unit_rows(1, 3))
    slots.insert("without vector")
    slots.remove("removed")
    slots.insert("unavailable", available=False)
    [candidates] = index.search(torch.from_numpy(unit_rows(1, 4)), [10], [slots.slots(["excluded"])])
    assert candidates.item_ids == ["good"]
    assert index.violations == 4
