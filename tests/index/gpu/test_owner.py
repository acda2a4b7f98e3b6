"""Only one thread at a time may use a GPU's resources."""

import threading
from collections.abc import Callable

import pytest
import torch

from index.gpu.resources import GpuResources, OwnerThread


def in_thread(function: Callable[[], None], name: str) -> Exception | None:
    raised: list[Exception] = []

    def run() -> None:
        try:
            function()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run, name=name)
    thread.start()
    thread.join(10)
    return raised[0] if raised else None


def test_another_thread_is_refused_until_it_takes_over():
    owner = OwnerThread("FAISS on cuda:0")
    owner.check()
    refused = in_thread(owner.check, "engine")
    assert isinstance(refused, RuntimeError)
    assert str(refused).startswith("FAISS on cuda:0 belongs to the thread 'MainThread' and was used by 'engine'; ")

    def take_over() -> None:
        owner.take_over()
        owner.check()

    assert in_thread(take_over, "engine") is None
    with pytest.raises(RuntimeError, match="belongs to the thread 'engine' and was used by 'MainThread'"):
        owner.check()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
def test_without_a_gpu_build_of_faiss_it_says_what_to_install():
    import faiss

    if hasattr(faiss, "StandardGpuResources"):
        pytest.skip("this is a GPU build")
    with pytest.raises(ImportError, match="built for CPUs; install the gpu extra"):
        GpuResources(torch.device("cuda", 0), temporary_bytes=0)
