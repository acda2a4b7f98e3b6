"""One owner of a GPU: its stream and its memory are torch's, and FAISS and cupy work with them."""

import importlib
import threading
from typing import Any

import torch


class OwnerThread:
    """The one thread that may use something: FAISS's GPU resources are not safe in two threads, not even to read."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._owner = threading.current_thread()

    def take_over(self) -> None:
        """Makes the calling thread the owner. Nothing of the last owner may be running."""
        self._owner = threading.current_thread()

    def check(self) -> None:
        """Raises RuntimeError in any other thread than the owner."""
        caller = threading.current_thread()
        if caller is not self._owner:
            raise RuntimeError(
                f"{self._what} belongs to the thread {self._owner.name!r} and was used by {caller.name!r}; "
                "submit the work to the owner, or let the caller take over first"
            )


class GpuResources:
    """FAISS's resources for one device, made once a process: they take their temporary memory at once and keep it.

    FAISS in Python cannot take memory from a foreign allocator. So its temporary memory is a fixed reservation of
    `temporary_bytes` (FAISS caps it at 1.5 GiB), which `index.gpu.memory` plans; what does not fit FAISS takes from the driver
    for the moment, past torch. Everything else that is allocated on the device is torch's, cupy's arrays included.

    `hand_over` must be called by the thread that will compute, after construction and whenever that is another one.
    """

    def __init__(self, device: torch.device, *, temporary_bytes: int, cupy: bool = True) -> None:
        """cupy: whether cupy is used too. Raises ImportError without faiss-gpu (or cupy)."""
        faiss: Any = importlib.import_module("faiss")
        if not hasattr(faiss, "StandardGpuResources"):
            raise ImportError("this FAISS is built for CPUs; install the gpu extra in an environment of its own")
        self.device = device if device.index is not None else torch.device("cuda", torch.cuda.current_device())
        self._faiss = faiss
        self.faiss = faiss.StandardGpuResources()
        self.faiss.setTempMemory(temporary_bytes)
        self.faiss.setPinnedMemory(0)  # 256 MiB of the host's for copies that knn_gpu does not make
        self.owner = OwnerThread(f"FAISS on {self.device}")
        self._cupy: Any = importlib.import_module("cupy") if cupy else None

    def hand_over(self) -> None:
        """Makes the calling thread the owner: FAISS and cupy work on its current torch stream, cupy in torch's memory.

        All three then run in the order in which they were called, without waiting for each other.
        """
        self.owner.take_over()
        stream = torch.cuda.current_stream(self.device)
        with torch.cuda.device(self.device):
            self.faiss.setDefaultStream(self.device.index, self._faiss.cast_integer_to_cudastream_t(stream.cuda_stream))
            if self._cupy is not None:
                cuda = self._cupy.cuda
                cuda.Device(self.device.index).use()
                cuda.Stream.from_external(stream).use()
                cuda.set_allocator(cuda.PythonFunctionAllocator(self._allocate, self._free).malloc)

    def _allocate(self, size: int, device: int) -> int:
        """Memory for cupy: bytes and device -> address. On cupy's current stream, so that torch reuses it in that order."""
        address: int = torch.cuda.caching_allocator_alloc(size, device, self._cupy.cuda.get_current_stream().ptr)
        return address

    @staticmethod
    def _free(address: int, _device: int) -> None:
        torch.cuda.caching_allocator_delete(address)  # type: ignore[no-untyped-call]
