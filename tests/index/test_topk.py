import numpy as np
import pytest
import torch

from index.topk import TILE, top_k


@pytest.mark.parametrize(("n", "k"), [(TILE * 3, 1), (TILE * 100, 7), (TILE * 100, 50), (100, 100), (TILE, TILE)])
def test_tile_pruned_top_k_equals_a_full_sort(n: int, k: int):
    scores = torch.from_numpy(np.random.default_rng(n + k).integers(0, 50, size=(4, n)).astype(np.float32))  # many ties
    scores[0, : n // 2] = -torch.inf
    values, places = top_k(scores, k)
    assert values.tolist() == torch.sort(scores, dim=1, descending=True).values[:, :k].tolist()
    assert torch.gather(scores, 1, places).tolist() == values.tolist()
    assert all(len(set(row)) == k for row in places.tolist())
