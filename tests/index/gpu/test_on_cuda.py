"""What only a GPU can show. Skipped without one: none of this is known to pass before it ran there (`make gpu-check`)."""

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from index.bundle import tower_module
from index.exact import ExactSearch
from index.filters.evaluate import evaluate
from index.filters.filter import Filter, MatchAny, Range
from index.gpu.flat import FaissFlatSearch
from index.gpu.graph import GraphedTower
from index.gpu.knn import KnnOnGpu
from index.gpu.memory import MIB, Needs, plan_memory
from index.gpu.resources import GpuResources
from index.items import ItemIndex
from index.matrix import VectorMatrix
from index.slots import SlotTable
from tests.index.engines import unit_rows
from tests.index.gpu.engine import faiss_flat
from tests.tiny import tiny_towers

pytestmark = pytest.mark.gpu
DIM = 64
DEVICE = "cuda:0"
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-3}  # rows and queries in float16 are rounded to 11 bits


@pytest.fixture(scope="module")
def resources() -> Iterator[GpuResources]:
    """FAISS's and cupy's, handed over to the tests' thread."""
    pytest.importorskip("cupy")
    made = GpuResources(torch.device(DEVICE), temporary_bytes=256 * MIB)
    made.hand_over()
    yield made


def exact(count: int, dtype: torch.dtype, *, chunk_rows: int = 16_384) -> tuple[ItemIndex, np.ndarray]:
    slots, matrix = SlotTable(), VectorMatrix(DIM, device=DEVICE, chunk_rows=chunk_rows, dtype=dtype)
    return fill(ItemIndex(slots, matrix, ExactSearch(slots, matrix)), count)


def flat(count: int, dtype: torch.dtype, resources: GpuResources) -> tuple[ItemIndex, np.ndarray]:
    return fill(faiss_flat(DIM, 16_384, dtype=dtype, device=DEVICE, knn=KnnOnGpu(resources)), count)


def fill(index: ItemIndex, count: int) -> tuple[ItemIndex, np.ndarray]:
    vectors = unit_rows(count, 1, index.matrix.dim)
    rows = np.array([index.slots.insert(str(number)) for number in range(count)])
    index.slots.columns.set(rows, [{"odd": number % 2 == 1, "rank": float(number)} for number in range(count)])
    index.set_vectors(rows, vectors)
    return index, vectors


def agree(index: ItemIndex, vectors: np.ndarray, eligible: np.ndarray, tolerance: float, **options: Any) -> None:
    """Every hit is eligible, none is missing, and the scores are the best ones."""
    queries = unit_rows(9, 2, DIM)
    found = index.search(torch.from_numpy(queries).to(DEVICE), [100] * 9, **options)
    for query, candidates in zip(queries, found, strict=True):
        scores = (vectors @ query)[eligible]
        wanted = np.sort(scores)[::-1][:100]
        assert set(candidates.slots.tolist()) <= set(eligible.tolist())
        assert len(set(candidates.slots.tolist())) == len(wanted)
        np.testing.assert_allclose(candidates.scores, wanted, atol=tolerance)
    assert index.violations == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_exact_search_agrees_with_brute_force(dtype: torch.dtype):
    index, vectors = exact(50_000, dtype)
    agree(index, vectors, np.arange(50_000), TOLERANCE[dtype])
    excluded = np.arange(0, 50_000, 3)
    agree(index, vectors, np.setdiff1d(np.arange(50_000), excluded), TOLERANCE[dtype], exclude=[excluded] * 9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("most", [20, 2_000, 49_000])
def test_exact_search_agrees_with_brute_force_under_filters(dtype: torch.dtype, most: int):
    index, vectors = exact(50_000, dtype)
    chosen = Filter(must=(MatchAny("odd", frozenset({True})), Range("rank", lt=float(most))))
    agree(index, vectors, np.arange(1, most, 2), TOLERANCE[dtype], filters=[chosen] * 9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_faisss_brute_force_agrees_with_numpys(dtype: torch.dtype, resources: GpuResources):
    index, vectors = flat(50_000, dtype, resources)
    assert isinstance(index.engine, FaissFlatSearch)
    agree(index, vectors, np.arange(50_000), TOLERANCE[dtype])
    agree(index, vectors, np.arange(500, 50_000), TOLERANCE[dtype], exclude=[np.arange(500)] * 9)
    dead = np.arange(0, 50_000, 2)
    index.slots.available[dead] = False
    index.changed(dead)
    agree(index, vectors, np.arange(1, 50_000, 2), TOLERANCE[dtype])
    odd = Filter(must=(Range("rank", lt=1_000.0),))
    agree(index, vectors, np.arange(1, 1_000, 2), TOLERANCE[dtype], filters=[odd] * 9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("dim", "padded", "chunk_rows", "batch", "k"),
    [
        (64, 0, 1 << 20, 1, 100),
        (64, 8, 16_384, 17, 100),
        (50, 0, 8_192, 70, 30),
        (200, 0, 6_400, 3, 7),
        (384, 0, 1 << 20, 16, 90),
    ],
)
def test_a_scan_by_tiles_finds_what_one_by_matmul_finds(
    dtype: torch.dtype, dim: int, padded: int, chunk_rows: int, batch: int, k: int
):
    slots, matrix = SlotTable(), VectorMatrix(dim, device=DEVICE, chunk_rows=chunk_rows, dtype=dtype, padded=padded)
    index = fill(ItemIndex(slots, matrix, ExactSearch(slots, matrix)), 30_001)[0]
    dead = np.arange(0, 30_001, 5)
    index.slots.available[dead] = False
    index.changed(dead)
    queries = torch.from_numpy(unit_rows(batch, 2, dim)).to(DEVICE)
    few = [np.random.default_rng(row).choice(30_001, 40 + row, replace=False) for row in range(batch)]
    most = [Filter(must=(Range("rank", gte=100.0),)) if row % 2 else None for row in range(batch)]
    options = [{}, {"exclude": few}, {"filters": most}, {"exclude": few, "filters": most}]
    ks = [k] * batch
    by_tiles = [index.search(queries, ks, **given) for given in options]
    assert index.oracle._tiles is not None
    index.oracle._tiles = None
    for tiles, given in zip(by_tiles, options, strict=True):
        for one, other in zip(tiles, index.search(queries, ks, **given), strict=True):
            np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
            assert len(set(one.slots.tolist()) ^ set(other.slots.tolist())) <= 2  # two whose scores differ by rounding
    assert index.violations == 0


def test_overwritten_rows_are_found_by_the_next_search(resources: GpuResources):
    index, _ = flat(20_000, torch.float16, resources)
    for seed in range(20):
        fresh = unit_rows(256, 100 + seed, DIM)
        slots = np.random.default_rng(seed).choice(20_000, 256, replace=False)
        index.set_vectors(slots, fresh)
        found = index.search(torch.from_numpy(fresh[:16]).to(DEVICE), [1] * 16)
        assert [one.slots[0] for one in found] == slots[:16].tolist()


def test_filters_evaluated_by_cupy_reach_torch_without_a_copy(resources: GpuResources):
    import cupy

    index, _ = exact(10_000, torch.float16)
    chosen = Filter(must=(Range("rank", gte=100.0),), must_not=(MatchAny("odd", frozenset({True})),))
    on_device = evaluate(chosen, index.slots, xp=cupy)
    shared = torch.from_dlpack(on_device)
    assert str(shared.device) == DEVICE and shared.data_ptr() == on_device.data.ptr
    np.testing.assert_array_equal(shared.cpu().numpy(), evaluate(chosen, index.slots))


def test_faiss_and_cupy_work_on_torchs_stream_and_cupy_in_torchs_memory(resources: GpuResources):
    import cupy

    stream = torch.cuda.current_stream(DEVICE)
    assert cupy.cuda.get_current_stream().ptr == stream.cuda_stream
    assert int(resources.faiss.getDefaultStream(0) or 0) == stream.cuda_stream
    before = torch.cuda.memory_allocated(DEVICE)
    held = cupy.zeros(32 * MIB, dtype=cupy.uint8)
    assert torch.cuda.memory_allocated(DEVICE) - before >= 32 * MIB
    del held
    assert torch.cuda.memory_allocated(DEVICE) == before


def test_another_thread_is_refused_until_it_is_handed_over(resources: GpuResources):
    index, _ = flat(1_000, torch.float32, resources)
    query = torch.from_numpy(unit_rows(1, 3, DIM)).to(DEVICE)
    outcomes: list[object] = []

    def search() -> None:
        try:
            outcomes.append(index.search(query, [1])[0].item_ids)
        except RuntimeError as error:
            outcomes.append(str(error))

    def take_over() -> None:
        resources.hand_over()
        search()

    for function in (search, take_over):
        thread = threading.Thread(target=function, name="engine")
        thread.start()
        thread.join(60)
    resources.hand_over()
    assert "was used by 'engine'" in str(outcomes[0])
    assert outcomes[1] == index.search(query, [1])[0].item_ids


@pytest.mark.parametrize("batch", [1, 5])
def test_a_tower_on_the_device_agrees_with_the_one_on_the_cpu(batch: int):
    towers = tiny_towers()
    golden = towers.golden_user
    inputs = [torch.from_numpy(np.array(array[:batch])) for name, array in vars(golden).items() if name != "vectors"]
    with torch.inference_mode():
        vectors = tower_module(towers.user_tower, DEVICE)(*(one.to(DEVICE) for one in inputs))
    np.testing.assert_allclose(vectors.cpu().numpy(), golden.vectors[:batch], atol=1e-5)


def test_a_tower_as_graphs_agrees_with_the_one_on_the_cpu_at_every_size():
    towers = tiny_towers()
    golden = towers.golden_user
    graphed = GraphedTower(
        tower_module(towers.user_tower, DEVICE),
        torch.device(DEVICE),
        length=golden.history.shape[1],
        dim=golden.history.shape[2],
        most=8,
    )
    arrays = [golden.history, golden.event_type, golden.seconds_before_newest, golden.length]
    rows = np.arange(20) % len(golden.length)
    with torch.inference_mode():
        for batch in (8, 3, 1, 5, 20):  # 20 is more than was recorded
            inputs = [torch.from_numpy(array[rows[:batch]]) for array in arrays]
            found = graphed(*inputs).cpu().numpy()
            np.testing.assert_allclose(found, golden.vectors[rows[:batch]], atol=1e-5)
        for row in range(len(golden.length)):  # after larger ones: nothing of them is left
            length = int(golden.length[row])
            inputs = [torch.from_numpy(array[row : row + 1, :length]) for array in arrays[:3]]
            found = graphed(*inputs, torch.tensor([length])).cpu().numpy()
            np.testing.assert_allclose(found, golden.vectors[row : row + 1], atol=1e-5)
            assert not any(one[0, length:].any() for one in graphed._graphs[1].host_inputs[:3])


class LooksAtValues(torch.nn.Module):
    def forward(self, vectors: torch.Tensor, types: torch.Tensor, ages: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return vectors[:, : int(lengths.max())].sum(1)


def test_a_tower_that_cannot_be_recorded_is_refused_and_leaves_the_device_as_it_was():
    options = {"length": 10, "dim": 8, "most": 4}
    with pytest.raises(RuntimeError):
        GraphedTower(LooksAtValues(), torch.device(DEVICE), **options)
    torch.cuda.empty_cache()  # which a recording that has not ended would not allow
    towers = tiny_towers()
    graphed = GraphedTower(tower_module(towers.user_tower, DEVICE), torch.device(DEVICE), **options)
    golden = towers.golden_user
    arrays = [golden.history, golden.event_type, golden.seconds_before_newest, golden.length]
    with torch.inference_mode():
        found = graphed(*(torch.from_numpy(array[:3]) for array in arrays)).cpu().numpy()
    np.testing.assert_allclose(found, golden.vectors[:3], atol=1e-5)


def test_an_index_takes_no_more_memory_than_was_planned():
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(DEVICE)
    before = torch.cuda.memory_reserved(DEVICE)
    index, _ = exact(200_000, torch.float16, chunk_rows=2**18)
    needs = Needs(200_000, DIM, 2, growth=1.0, releases=1, max_batch=64, chunk_rows=2**18)
    odd = Filter(must=(MatchAny("odd", frozenset({True})),))
    few = Filter(must=(Range("rank", lt=10_000.0),))
    queries = torch.from_numpy(unit_rows(64, 2, DIM)).to(DEVICE)
    for k in (1_000, 2_048):  # by tiles; by matmul, since so many tiles are most of them
        for filters in (None, [odd] * 64, [few] * 64):
            index.search(queries, [k] * 64, filters=filters)
    GraphedTower(tower_module(tiny_towers().user_tower, DEVICE), torch.device(DEVICE), length=10, dim=8, most=64)
    taken = torch.cuda.max_memory_reserved(DEVICE) - before
    assert taken <= plan_memory(needs, device=DEVICE).total
