"""Every engine against a dictionary and brute force, under random upserts, removes, filters, availability and searches."""

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from index.filters.filter import Filter, MatchAny, Range
from index.items import ItemIndex
from index.matrix import VectorMatrix
from index.rebuild import Rebuild
from index.search import Hits
from index.slots import SlotTable
from tests.index.engines import DIM, ENGINES, make_lists, unit_rows

ids = st.integers(0, 30).map(lambda number: f"item-{number}")
seeds = st.integers(0, 10_000)
FILTERS = {
    "none": (None, lambda _id, _attributes: True),
    "colour": (Filter(must=(MatchAny("colour", frozenset({"red"})),)), lambda _id, a: a["colour"] == "red"),
    "cheap, not blue": (
        Filter(must=(Range("price", lte=5.0),), must_not=(MatchAny("colour", frozenset({"blue"})),)),
        lambda _id, a: a["price"] <= 5 and a["colour"] != "blue",
    ),
    "some ids": (Filter(allow=frozenset(f"item-{n}" for n in range(0, 31, 3))), lambda i, _a: int(i[5:]) % 3 == 0),
    "two ids": (Filter(allow=frozenset({"item-3", "item-11"})), lambda i, _a: i in {"item-3", "item-11"}),
    "nothing": (Filter(allow=frozenset()), lambda _id, _attributes: False),
}
filters = st.sampled_from(sorted(FILTERS))
LISTS = ["ivf", "faiss-ivf"]
# How far a score may be from the true one: rows kept as float16 are rounded to 11 bits.
TOLERANCE = {"exact-float16": 2e-3, "ivf-float16": 2e-3}


class IndexMachine(RuleBasedStateMachine):
    """What is searched must be what a dictionary says, whatever was done before."""

    engine = ""
    operations = 0  # of all sequences together

    @initialize()
    def start(self) -> None:
        self.index = ENGINES[self.engine](DIM, 64)
        self.vectors: dict[str, np.ndarray] = {}
        self.available: dict[str, bool] = {}
        self.attributes: dict[str, dict[str, object]] = {}

    @rule(item_id=ids, seed=seeds, available=st.booleans())
    def upsert(self, item_id: str, seed: int, available: bool) -> None:
        vector = unit_rows(1, seed)
        slot = self.index.slots.insert(item_id, available=available)
        attributes = {"colour": ("red", "blue", "green")[seed % 3], "price": float(seed % 11)}
        self.index.slots.columns.set(np.array([slot]), [attributes])
        self.index.set_vectors(np.array([slot]), vector)
        self.vectors[item_id], self.available[item_id], self.attributes[item_id] = vector[0], available, attributes

    @rule(item_id=ids)
    def remove_and_free(self, item_id: str) -> None:
        slot = self.index.slots.remove(item_id)
        assert (slot >= 0) == (item_id in self.available)
        if slot >= 0:
            self.index.clear_vectors(np.array([slot]))
            self.index.slots.free(slot)
            del self.available[item_id], self.attributes[item_id]
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
            self.index.changed(np.array([slot]))
            self.available[item_id] = available

    @rule(gather_rows=st.sampled_from([0, 5]))
    def build_lists(self, gather_rows: int) -> None:
        make_lists(self.index, gather_rows=gather_rows)

    @rule()
    def settle(self) -> None:
        self.index.settle()

    @rule(steps=st.integers(1, 4), start=st.booleans())
    def rebuild(self, steps: int, start: bool) -> None:
        for watcher in self.index.watchers:
            assert isinstance(watcher, Rebuild)
            if start:
                watcher.start()
            for _ in range(steps):
                watcher.wait()  # the building thread has ended
                watcher.step()

    @rule(seed=seeds, k=st.integers(1, 40), excluded=st.lists(ids, max_size=10), names=st.tuples(filters, filters, filters))
    def search(self, seed: int, k: int, excluded: list[str], names: tuple[str, ...]) -> None:
        """Unsettled: nothing wrong is found. Settled: nothing is missing either, and an exact engine finds the best."""
        queries = unit_rows(3, seed)
        exclude = [self.index.slots.slots(excluded), np.array([], dtype=np.int64), self.index.slots.slots(excluded)]
        chosen = [FILTERS[name][0] for name in names]
        for settled in (False, True):
            if settled:
                self.index.finish()
                assert self.index.settled == self.index.queued
            for exact in (False, True):
                found = self.index.search(torch.from_numpy(queries), [k, k, 1], exclude, chosen, exact=exact)
                for row, wanted in enumerate((k, k, 1)):
                    passes = FILTERS[names[row]][1]
                    ruled_out = set(excluded) if row != 1 else set()
                    eligible = {
                        i for i in self.vectors if self.available[i] and i not in ruled_out and passes(i, self.attributes[i])
                    }
                    self.check(queries[row], found[row].item_ids, found[row].scores, wanted, eligible, settled, exact)

    def check(
        self,
        query: np.ndarray,
        item_ids: list[str],
        scores: np.ndarray,
        wanted: int,
        eligible: set[str],
        settled: bool,
        exact: bool,
    ) -> None:
        tolerance = TOLERANCE.get(self.engine, 1e-5)
        assert len(item_ids) == len(set(item_ids))
        assert set(item_ids) <= eligible
        own = [float(query @ self.vectors[i]) for i in item_ids]
        np.testing.assert_allclose(scores, own, atol=tolerance)
        assert (np.diff(scores) <= 0).all()
        if settled or exact:
            assert len(item_ids) == min(wanted, len(eligible))
        if exact or "ivf" not in self.engine:
            truth = sorted((float(query @ self.vectors[i]) for i in eligible), reverse=True)[:wanted]
            np.testing.assert_allclose(scores, truth, atol=tolerance)

    @rule(item_id=ids)
    def every_settled_item_finds_itself(self, item_id: str) -> None:
        self.index.finish()
        if item_id in self.vectors and self.available[item_id]:
            [found] = self.index.search(torch.from_numpy(self.vectors[item_id][None]), [1])
            twins = {i for i in self.vectors if float(self.vectors[i] @ self.vectors[item_id]) > 1 - 1e-3}
            assert set(found.item_ids) <= twins and found.item_ids

    @invariant()
    def nothing_is_ever_violated(self) -> None:
        type(self).operations += 1
        if hasattr(self, "index"):
            assert self.index.violations == 0


def machine(engine: str) -> type[RuleBasedStateMachine]:
    return type(f"Machine_{engine}", (IndexMachine,), {"engine": engine})


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_keeps_to_the_contract(engine: str):
    case = machine(engine).TestCase
    case.settings = settings(max_examples=40, stateful_step_count=40, deadline=None, derandomize=True)
    case().runTest()


@pytest.mark.parametrize("engine", ENGINES)
def test_an_empty_index_finds_nothing(engine: str):
    found = ENGINES[engine](DIM, 64).search(torch.from_numpy(unit_rows(2, 0)), [5, 5], filters=[FILTERS["colour"][0], None])
    assert [candidates.item_ids for candidates in found] == [[], []]


@pytest.mark.parametrize("engine", ENGINES)
def test_wrong_shapes_and_k_are_refused(engine: str):
    search = ENGINES[engine](DIM, 64).engine
    with pytest.raises(ValueError, match="shape"):
        search.search(torch.zeros(1, DIM + 1), 1)
    with pytest.raises(ValueError, match="k must be 1 to 2048"):
        search.search(torch.zeros(1, DIM), 0)
    with pytest.raises(ValueError, match="k must be 1 to 2048"):
        search.search(torch.zeros(1, DIM), 2049)
    with pytest.raises(ValueError, match="exclusion for each"):
        search.search(torch.zeros(2, DIM), 1, [np.array([0])])
    with pytest.raises(ValueError, match="mask for each"):
        search.search(torch.zeros(2, DIM), 1, None, [None])


def filled(engine: str, count: int, *, dim: int = 8, chunk_rows: int = 4096) -> tuple[ItemIndex, np.ndarray]:
    index = ENGINES[engine](dim, chunk_rows)
    vectors = unit_rows(count, 1, dim)
    slots = np.array([index.slots.insert(str(number)) for number in range(count)])
    index.set_vectors(slots, vectors)
    make_lists(index, lists=64)
    return index, vectors


@pytest.mark.parametrize("engine", ["exact"])
def test_large_indexes_agree_with_brute_force(engine: str):
    index, vectors = filled(engine, 10_000)
    queries = unit_rows(5, 2, 8)
    found = index.search(torch.from_numpy(queries), [100] * 5)
    for row, candidates in enumerate(found):
        truth = np.argsort(-(vectors @ queries[row]), kind="stable")[:100]
        assert candidates.item_ids == [str(number) for number in truth]


@pytest.mark.parametrize("lists", LISTS)
@pytest.mark.parametrize("share", [1.0, 0.5, 0.1, 0.03, 0.002])
def test_lists_reach_the_target_recall_and_are_complete_at_every_selectivity(share: float, lists: str):
    index, vectors = filled(lists, 20_000)
    index.engine.use(index.engine.lists, index.engine.table, gather_rows=100)
    passes = np.random.default_rng(5).random(len(vectors)) < share
    index.slots.columns.set(np.arange(len(vectors)), [{"passes": bool(one)} for one in passes])
    chosen = None if share == 1 else Filter(must=(MatchAny("passes", frozenset({True})),))
    queries = unit_rows(100, 3, 8)
    found = index.search(torch.from_numpy(queries), [50] * 100, filters=[chosen] * 100)
    truth = index.search(torch.from_numpy(queries), [50] * 100, filters=[chosen] * 100, exact=True)
    eligible = len(vectors) if share == 1 else int(passes.sum())
    assert {len(one.item_ids) for one in found} == {min(50, eligible)}
    recall = np.mean([len(set(a.item_ids) & set(b.item_ids)) / len(b.item_ids) for a, b in zip(found, truth, strict=True)])
    assert recall >= 0.9


@pytest.mark.parametrize("lists", LISTS)
def test_a_filter_far_from_the_query_is_still_complete_and_found(lists: str):
    """What passes lies all on the other side: fewer rows near the query pass, so more lists are looked into."""
    index, vectors = filled(lists, 20_000)
    index.engine.use(index.engine.lists, index.engine.table, gather_rows=100)
    far = vectors[:, 0] < -0.6
    index.slots.columns.set(np.arange(len(vectors)), [{"far": bool(one)} for one in far])
    query = np.zeros((1, 8), dtype=np.float32)
    query[0, 0] = 1
    chosen = [Filter(must=(MatchAny("far", frozenset({True})),))]
    [found] = index.search(torch.from_numpy(query), [100], filters=chosen)
    [truth] = index.search(torch.from_numpy(query), [100], filters=chosen, exact=True)
    assert len(found.item_ids) == 100
    assert len(set(found.item_ids) & set(truth.item_ids)) >= 90


@pytest.mark.parametrize("lists", LISTS)
def test_many_exclusions_leave_the_answer_complete(lists: str):
    index, _ = filled(lists, 5_000)
    query = torch.from_numpy(unit_rows(1, 9, 8))
    [best] = index.search(query, [2000], exact=True)
    [found] = index.search(query, [100], [best.slots])
    assert len(found.item_ids) == 100
    assert not set(found.item_ids) & set(best.item_ids)
    [rest] = index.search(query, [2048], [np.arange(4_000)])
    assert len(rest.item_ids) == 1_000


class LyingSearch:
    """An engine that fails open: it returns every slot that was ever used."""

    kind = "lying"

    def __init__(self, slots: SlotTable) -> None:
        self.slots = slots

    def search(self, queries: torch.Tensor, k: int, exclude: object = None, masks: object = None) -> Hits:
        everything = np.tile(np.arange(self.slots.extent), (len(queries), 1))[:, :k]
        return Hits(everything, np.ones(everything.shape, dtype=np.float32))

    def update(self, slots: np.ndarray) -> None:
        return

    def settle(self) -> int:
        return 0


def test_what_a_lying_engine_returns_is_checked_again_and_counted():
    slots, matrix = SlotTable(), VectorMatrix(DIM)
    index = ItemIndex(slots, matrix, LyingSearch(slots))
    for item_id in ("good", "removed", "unavailable", "excluded", "filtered"):
        index.set_vectors(np.array([slots.insert(item_id)]), unit_rows(1, 3))
    slots.insert("without vector")
    slots.remove("removed")
    slots.insert("unavailable", available=False)
    chosen = Filter(deny=frozenset({"filtered"}))
    [candidates] = index.search(torch.from_numpy(unit_rows(1, 4)), [10], [slots.slots(["excluded"])], [chosen])
    assert candidates.item_ids == ["good"]
    assert index.violations == 5
