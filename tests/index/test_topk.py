import numpy as np
import pytest
import torch

from index.topk import TILE, BestSoFar, top_k


@pytest.mark.parametrize(("n", "k"), [(TILE * 3, 1), (TILE * 100, 7), (TILE * 100, 50), (100, 100), (TILE, TILE)])
def test_tile_pruned_top_k_equals_a_full_sort(n: int, k: int):
    scores = torch.from_numpy(np.random.default_rng(n + k).integers(0, 50, size=(4, n)).astype(np.float32))  # many ties
    scores[0, : n // 2] = -torch.inf
    values, places = top_k(scores, k)
    assert values.tolist() == torch.sort(scores, dim=1, descending=True).values[:, :k].tolist()
    assert torch.gather(scores, 1, places).tolist() == values.tolist()
    assert all(len(set(row)) == k for row in places.tolist())


@pytest.mark.parametrize("k", [1, 3, 64, 700])
@pytest.mark.parametrize("sizes", [[1], [2, 1, 5], [64, 64, 64, 1], [200]])
@pytest.mark.parametrize("kind", ["ties", "distinct", "mostly ruled out", "all ruled out", "ascending"])
def test_the_best_of_blocks_equals_a_full_sort(k: int, sizes: list[int], kind: str):
    random = np.random.default_rng(k + len(sizes))
    shape = (3, TILE * sum(sizes))
    scores = random.normal(size=shape) if kind != "ties" else random.integers(0, 9, size=shape)
    scores = torch.from_numpy(np.sort(scores, axis=1) if kind == "ascending" else scores).to(torch.float32)
    if kind.endswith("ruled out"):
        scores[torch.from_numpy(random.random(shape) < (0.99 if kind.startswith("mostly") else 2))] = -torch.inf
    best = BestSoFar(k)
    start = 0
    for size in sizes:
        block = scores[:, start : start + TILE * size].clone()
        best.add(block)
        block.fill_(torch.nan)  # the memory is used again
        start += TILE * size
    values, columns = best.result()
    expected = torch.sort(scores, dim=1, descending=True).values[:, :k]
    finite = expected > -torch.inf
    assert torch.equal(values[:, : expected.shape[1]][finite[:, : values.shape[1]]], expected[finite])
    assert (values[:, : expected.shape[1]][~finite[:, : values.shape[1]]] == -torch.inf).all()
    found = values > -torch.inf
    assert torch.equal(torch.gather(scores, 1, columns)[found], values[found])
    assert all(len(set(row[own].tolist())) == own.sum() for row, own in zip(columns, found, strict=True))
