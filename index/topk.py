"""The k largest scores of each row, exactly, without sorting what cannot be among them."""

import torch

TILE = 64
"""Adjacent scores whose maximum stands for them in the first round."""


def top_k(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest of each row, largest first: (B, n) -> values (B, k), places (B, k) int64. Ties in any order.

    The k best scores lie in the k tiles with the largest maxima: were one in another tile, then k tiles would each hold a score
    at least as large. So one cheap pass over all scores finds the tiles, and only theirs are sorted.
    """
    n = scores.shape[1]
    if n % TILE or n // TILE <= 2 * k:
        return torch.topk(scores, k, dim=1)
    best = BestSoFar(k)
    best.add(scores)
    return best.result()


class BestSoFar:
    """`top_k` of scores that come block by block, each of which is looked at once, while it is in the processor's cache.

    Of each block the k tiles with the largest maxima are kept, and in the end those of all blocks together.
    """

    def __init__(self, k: int) -> None:
        self._k = k
        self._count = 0  # tiles so far
        # Of each block: maxima (B, <=k), numbers of the tiles (B, <=k) int64, and their scores (B, <=k, TILE).
        self._kept: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def add(self, block: torch.Tensor) -> None:
        """Looks at the next (B, n) scores, n a multiple of TILE. The memory may be written again afterwards."""
        tiles = block.view(len(block), -1, TILE)
        maxima = tiles.amax(dim=2)  # (B, n / TILE)
        best = torch.topk(maxima, min(self._k, maxima.shape[1]), dim=1, sorted=False)
        self._kept.append((best.values, best.indices + self._count, _tiles(tiles, best.indices)))
        self._count += maxima.shape[1]

    def result(self) -> tuple[torch.Tensor, torch.Tensor]:
        """As `top_k` of all blocks side by side; fewer than k if there are no more columns."""
        maxima, numbers, scores = (torch.cat(parts, dim=1) for parts in zip(*self._kept, strict=True))
        best = torch.topk(maxima, min(self._k, maxima.shape[1]), dim=1, sorted=False).indices  # (B, <=k)
        candidates = _tiles(scores, best).view(len(best), -1)  # (B, <=k * TILE)
        values, places = torch.topk(candidates, min(self._k, candidates.shape[1]), dim=1)
        number = torch.gather(torch.gather(numbers, 1, best), 1, places // TILE)
        return values, number * TILE + places % TILE


def _tiles(tiles: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """(B, n, TILE), (B, m) int64 -> (B, m, TILE)."""
    rows = torch.arange(len(tiles), device=tiles.device)[:, None]
    return tiles[rows, chosen]  # whole tiles are copied, which gather does score by score
