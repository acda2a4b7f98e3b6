"""The GPU's engine as tests build it: FAISS's brute force on the CPU, behind the bias column that the GPU needs."""

import torch

from index.exact import ExactSearch
from index.gpu.flat import FaissFlatSearch, padding
from index.gpu.knn import Knn, knn_on_cpu
from index.items import ItemIndex
from index.matrix import VectorMatrix
from index.slots import SlotTable


def faiss_flat(
    dim: int, chunk_rows: int, *, dtype: torch.dtype = torch.float32, device: str = "cpu", knn: Knn = knn_on_cpu
) -> ItemIndex:
    slots = SlotTable(capacity=2)
    matrix = VectorMatrix(dim, chunk_rows=chunk_rows, dtype=dtype, device=device, padded=padding(dim))
    oracle = ExactSearch(slots, matrix)
    return ItemIndex(slots, matrix, FaissFlatSearch(slots, matrix, oracle=oracle, knn=knn), oracle=oracle)
