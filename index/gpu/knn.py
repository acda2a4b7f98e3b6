"""The nearest rows of a matrix by brute force: FAISS on a GPU or a CPU, behind one signature."""

import importlib
from typing import Any, Protocol

import torch

from index.gpu.resources import GpuResources


class Knn(Protocol):
    """Finds the rows with the largest inner products."""

    def __call__(self, queries: torch.Tensor, rows: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The best k rows of each query, best first.

        queries: (B, W) float32, contiguous. rows: (n, W) float32 or float16, contiguous, on the same device. k: at most n and
        2048. Returns scores (B, k) float32 and places (B, k) int64; a place whose score is below every possible one may be
        anything.
        """
        ...


def knn_on_cpu(queries: torch.Tensor, rows: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """See `Knn`. For tests of what is built on it; rows in float16 are copied to float32 as a whole."""
    import faiss

    scores, places = faiss.knn(queries.numpy(), rows.numpy(), k, metric=faiss.METRIC_INNER_PRODUCT)
    return torch.from_numpy(scores), torch.from_numpy(places)


class KnnOnGpu:
    """`faiss.knn_gpu`, on torch's own rows: nothing is copied or built. See `Knn`; only for the resources' owner thread."""

    def __init__(self, resources: GpuResources) -> None:
        self._faiss: Any = importlib.import_module("faiss")
        # Lets FAISS's functions take tensors, and puts their work on torch's current stream.
        importlib.import_module("faiss.contrib.torch_utils")
        self._resources = resources

    def __call__(self, queries: torch.Tensor, rows: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        self._resources.owner.check()
        faiss, device = self._faiss, self._resources.device
        with torch.cuda.device(device):  # whose current stream is meant
            scores, places = faiss.knn_gpu(
                self._resources.faiss,
                queries.to(rows.dtype),  # FAISS wants both in one type; products are added up in float32
                rows,
                k,
                metric=faiss.METRIC_INNER_PRODUCT,
                device=device.index,
                use_cuvs=False,
            )
        return scores, places
