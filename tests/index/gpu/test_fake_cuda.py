"""What computes on a GPU, run on CUDA tensors without values: a tensor on the wrong device would fail here as there."""

import io

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from index.bundle.towers import tower_bytes
from index.exact import ExactSearch
from index.filters.filter import Filter, MatchAny
from index.gpu.flat import FaissFlatSearch
from index.items import ItemIndex
from index.matrix import VectorMatrix
from index.slots import SlotTable
from tests.index.engines import unit_rows
from tests.index.gpu.engine import faiss_flat
from tests.index.gpu.fake_cuda import DEVICE, fake_cuda, fake_tower
from tests.tiny import tiny_towers

DIM = 8
COUNT = 9_000
NONE = np.zeros(0, dtype=np.int64)


def fake_knn(queries: torch.Tensor, rows: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    scores, places = torch.topk(queries @ rows.to(queries.dtype).T, k, dim=1)
    return scores, places


def filled(engine: str, dtype: torch.dtype) -> ItemIndex:
    if engine == "exact":
        slots, matrix = SlotTable(), VectorMatrix(DIM, device=DEVICE, chunk_rows=4096, dtype=dtype)
        index = ItemIndex(slots, matrix, ExactSearch(slots, matrix))
    else:
        index = faiss_flat(DIM, 4096, dtype=dtype, device=DEVICE, knn=fake_knn)
    rows = np.array([index.slots.insert(str(number)) for number in range(COUNT)])
    index.slots.columns.set(rows, [{"small": number < 100, "odd": number % 2 == 1} for number in range(COUNT)])
    index.set_vectors(rows, unit_rows(COUNT, 1, DIM))
    return index


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("engine", ["exact", "faiss-gpu"])
@pytest.mark.parametrize("batch", [1, 3])
def test_searches_keep_to_their_device(engine: str, dtype: torch.dtype, batch: int):
    small = Filter(must=(MatchAny("small", frozenset({True})),))  # few rows: they are gathered
    odd = Filter(must=(MatchAny("odd", frozenset({True})),))  # many: a bias of their own
    with fake_cuda():
        index = filled(engine, dtype)
        assert isinstance(index.matrix.chunks[0], FakeTensor) and str(index.matrix.chunks[0].device) == DEVICE
        queries = torch.zeros(batch, DIM, device=DEVICE)
        for exclude in (None, [np.arange(5)] + [NONE] * (batch - 1), [np.arange(2048)] * batch):
            for filters in (None, [small] * batch, [odd] + [None] * (batch - 1)):
                masks = [index.mask(one) if one is not None else None for one in filters] if filters is not None else None
                for k in (1, 100, 2048):
                    hits = index.engine.search(queries, k, exclude, masks)
                    assert hits.slots.shape == hits.scores.shape == (batch, k)


@pytest.mark.parametrize("engine", ["exact", "faiss-gpu"])
def test_changes_keep_to_their_device(engine: str):
    with fake_cuda():
        index = filled(engine, torch.float16)
        scattered = np.array([8_000, 3, 5_000])
        index.set_vectors(scattered, unit_rows(3, 2, DIM))
        index.clear_vectors(scattered[:2])
        index.slots.available[4] = False
        index.changed(np.array([4]))
        index.finish()
        rows = index.matrix.read(scattered)
        assert (tuple(rows.shape), rows.dtype, str(rows.device)) == ((3, DIM), torch.float32, DEVICE)


@pytest.mark.parametrize("engine", ["exact", "faiss-gpu"])
def test_a_query_left_on_the_host_is_noticed(engine: str):
    with fake_cuda():
        index = filled(engine, torch.float32)
        with pytest.raises(RuntimeError, match="device"):
            index.engine.search(torch.zeros(2, DIM), 10)


def test_a_bias_left_on_the_host_is_noticed():
    with fake_cuda():
        index = filled("exact", torch.float32)
        assert isinstance(index.engine, ExactSearch)
        index.engine._bias = [torch.zeros(4096) for _ in index.engine._bias]
        with pytest.raises(RuntimeError, match="device"):
            index.engine.search(torch.zeros(2, DIM, device=DEVICE), 10)


def test_a_device_tensor_that_is_read_as_an_array_is_noticed():
    with fake_cuda(), pytest.raises(TypeError, match="copy it to the host first"):
        torch.zeros(2, device=DEVICE).numpy()


def test_the_flat_engine_writes_its_bias_on_the_device():
    with fake_cuda():
        index = filled("faiss-gpu", torch.float16)
        assert isinstance(index.engine, FaissFlatSearch)
        assert {str(chunk.device) for chunk in index.matrix.chunks} == {DEVICE}
        assert index.matrix.chunks[0].shape == (4096, 16)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_tower_that_was_moved_computes_on_its_device(batch: int):
    program = torch.export.load(io.BytesIO(tower_bytes(tiny_towers().user_tower, "tower")))
    with torch.no_grad(), fake_cuda():
        tower = fake_tower(program)
        assert {str(weight.device) for weight in tower.parameters()} == {DEVICE}
        history = torch.zeros(batch, 5, DIM, device=DEVICE)
        event_type = torch.zeros(batch, 5, dtype=torch.int64, device=DEVICE)
        seconds = torch.zeros(batch, 5, device=DEVICE)
        length = torch.ones(batch, dtype=torch.int64, device=DEVICE)
        vectors = tower(history, event_type, seconds, length)
        assert (tuple(vectors.shape), str(vectors.device)) == ((batch, DIM), DEVICE)
        for wrong in ((history.cpu(), event_type, seconds, length), (history, event_type, seconds, length.cpu())):
            with pytest.raises(RuntimeError, match="device"):
                tower(*wrong)
