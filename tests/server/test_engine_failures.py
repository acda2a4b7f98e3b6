"""A device that runs out of memory or breaks while it serves: waiters are told, and the server says what it is."""

import gc
import math
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import numpy as np
import pytest
import torch
import towerbridge
from grpc_health.v1 import health_pb2, health_pb2_grpc

from index.search import Hits
from server.engine.exhaustion import is_out_of_memory
from tests.server.conftest import Serve, Served
from tests.server.test_lifecycle import NOT_SERVING, PATIENCE_S, SERVING, Busy, InThread, wait_until

OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total of 1 GiB")


class FailingSearch:
    """Searches as the engine that it stands in for, unless it was given errors to raise first."""

    def __init__(self, served: Served, *, callers_compute: bool = False) -> None:
        self.gains_from_batches = not callers_compute
        self._index = served.app.tenant.live.index
        self._inner = self._index.engine
        self.errors: list[BaseException] = []
        self.failed_on: list[str] = []  # threads
        self.kind = self._inner.kind
        self.held: weakref.ref[torch.Tensor] | None = None
        self._index.engine = self
        engine = served.app.tenant._engine
        wait_until(lambda: engine._resting and engine._work_due == math.inf)

    def search(self, queries: torch.Tensor, *arguments: object, **options: object) -> Hits:
        if self.errors:
            scores = torch.zeros(1000)  # what a failed search leaves in its frame
            self.held = weakref.ref(scores)
            self.failed_on.append(threading.current_thread().name)
            raise self.errors.pop(0)
        return self._inner.search(queries, *arguments, **options)  # type: ignore[arg-type]

    def update(self, slots: np.ndarray) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self._inner.update(slots)

    def settle(self) -> int:
        return self._inner.settle()


@contextmanager
def channel_to(served: Served) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{served.app.port}") as channel:
        yield channel


def health(served: Served) -> int:
    with channel_to(served) as channel:
        request = health_pb2.HealthCheckRequest(service="")
        return int(health_pb2_grpc.HealthStub(channel).Check(request, timeout=PATIENCE_S).status)


def ask(served: Served) -> list[str]:
    return list(served.client.recommend(vector=[1.0] * 8, limit=3).item_ids)


@pytest.mark.parametrize("callers_compute", [False, True])
def test_a_batch_that_runs_out_of_memory_is_refused_and_the_next_one_is_answered(
    serve: Serve, caplog: pytest.LogCaptureFixture, callers_compute: bool
):
    served = serve()
    expected = ask(served)
    search = FailingSearch(served, callers_compute=callers_compute)
    search.errors = [OUT_OF_MEMORY]
    with pytest.raises(towerbridge.ResourceExhausted, match="not enough memory"):
        ask(served)
    assert search.failed_on == ["rpc-loop" if callers_compute else "engine"]
    assert ask(served) == expected
    assert health(served) == SERVING
    assert "out of memory, 1 in a row: CUDA out of memory. Tried to allocate 2.00 GiB." in caplog.text


def test_everyone_in_the_batch_is_refused_alike(serve: Serve):
    served = serve()
    search = FailingSearch(served)
    busy = Busy(served)
    waiting = [InThread(lambda: ask(served)) for _ in range(3)]
    wait_until(lambda: len(served.app.tenant._engine._queries) == 3)
    search.errors = [OUT_OF_MEMORY]
    busy.let_go()
    outcomes = [one.outcome() for one in waiting]
    assert all(isinstance(outcome, towerbridge.ResourceExhausted) for outcome in outcomes), outcomes
    assert len(ask(served)) == 3


@pytest.mark.parametrize("callers_compute", [False, True])
def test_the_memory_of_a_failed_batch_is_given_back_although_its_error_lives_on(serve: Serve, callers_compute: bool):
    served = serve()
    search = FailingSearch(served, callers_compute=callers_compute)
    error = torch.OutOfMemoryError("CUDA out of memory")
    search.errors = [error]
    with pytest.raises(towerbridge.ResourceExhausted):
        ask(served)
    gc.collect()
    assert search.held is not None and search.held() is None
    assert error.__traceback__ is not None, "the error itself is still there"


@pytest.mark.parametrize("callers_compute", [False, True])
def test_a_server_that_runs_out_of_memory_three_times_in_a_row_gives_up(
    serve: Serve, caplog: pytest.LogCaptureFixture, callers_compute: bool
):
    served = serve()
    search = FailingSearch(served, callers_compute=callers_compute)
    search.errors = [OUT_OF_MEMORY] * 2
    for _ in range(2):
        with pytest.raises(towerbridge.ResourceExhausted):
            ask(served)
    assert ask(served), "an answer in between starts the count again"
    search.errors = [OUT_OF_MEMORY] * 3
    for _ in range(2):
        with pytest.raises(towerbridge.ResourceExhausted):
            ask(served)
    with pytest.raises(towerbridge.Unavailable, match=r"the engine (died|has stopped)"):
        served.client.recommend(vector=[1.0] * 8, limit=3, timeout_s=2.0)
    wait_until(lambda: health(served) == NOT_SERVING)
    assert "3 computations in a row ran out of memory" in caplog.text


def test_a_broken_device_ends_the_engine_at_once_and_nobody_waits_for_ever(serve: Serve, caplog: pytest.LogCaptureFixture):
    served = serve(engine={"max_batch": 1})
    search = FailingSearch(served)
    busy = Busy(served)
    waiting = [InThread(lambda: served.client.recommend(vector=[1.0] * 8, limit=3, timeout_s=5.0)) for _ in range(3)]
    wait_until(lambda: len(served.app.tenant._engine._queries) == 3)
    search.errors = [torch.AcceleratorError("CUDA error: an illegal memory access was encountered")]
    busy.let_go()
    outcomes = [one.outcome() for one in waiting]
    assert all(isinstance(outcome, towerbridge.Unavailable) for outcome in outcomes), outcomes
    wait_until(lambda: health(served) == NOT_SERVING)
    assert "illegal memory access" in caplog.text
    assert served.client.get_items(["item-1"]).items, "what needs no engine is still answered"


def test_a_change_of_the_index_that_runs_out_of_memory_is_refused_and_can_be_repeated(serve: Serve):
    served = serve()
    search = FailingSearch(served)
    item = towerbridge.item("new", text="", vector=[1.0] + [0.0] * 7)
    search.errors = [OUT_OF_MEMORY]
    with pytest.raises(towerbridge.ResourceExhausted):
        served.client.upsert_items([item])
    assert served.client.upsert_items([item]).results[0].searchable
    found = served.client.recommend(vector=[1.0] + [0.0] * 7, limit=1)
    assert list(found.item_ids) == ["new"]
    assert served.app.tenant.live.index.violations == 0


def test_every_librarys_way_to_say_out_of_memory_is_understood():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())  # cupy's OutOfMemoryError is one
    faiss_says = "StandardGpuResources: alloc fail type TemporaryMemoryOverflow (cudaMalloc error out of memory [2])"
    assert is_out_of_memory(RuntimeError(faiss_says))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    torch_says = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"
    assert is_out_of_memory(RuntimeError(torch_says))
    with pytest.raises(RuntimeError) as refused:
        torch.empty(1 << 60)
    assert is_out_of_memory(refused.value)
    assert is_out_of_memory(RuntimeError("std::bad_alloc"))
    assert is_out_of_memory(RuntimeError("Error in faiss::AlignedTable: Failed to allocate 4096 bytes"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))
