"""The k largest scores of each row, exactly, without sorting what cannot be among them."""

import torch

TILE = 64
"""Scores whose maximum stands for them in the first round."""


def top_k(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest of each row, largest first: (B, n) -> values (B, k), places (B, k) int64. Ties in any order."""
    if not prunes(scores.shape[1], k):
        return torch.topk(scores, k, dim=1)
    return top_k_of_tiles(scores, tile_maxima(scores), k)


def prunes(n: int, k: int) -> bool:
    """Whether tiles save work: n must consist of whole ones, and be much more than the k tiles that are sorted."""
    return n % TILE == 0 and n // TILE > 2 * k


def tile_maxima(scores: torch.Tensor) -> torch.Tensor:
    """The largest score of each tile: (B, n) -> (B, n / TILE). Cheapest while the scores are in the processor's cache."""
    return scores.view(len(scores), -1, TILE).amax(dim=2)


def top_k_of_tiles(scores: torch.Tensor, maxima: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As `top_k`, given the tiles' maxima: (B, n), (B, n / TILE) -> values (B, k), places (B, k) int64.

    The k best scores lie in the k tiles with the largest maxima: were one in another tile, then k tiles would each hold a score
    at least as large. So only those tiles are sorted.
    """
    rows = len(scores)
    best_tiles = torch.topk(maxima, k, dim=1, sorted=False).indices  # (B, k) int64
    tiles = scores.view(rows, -1, TILE)  # (B, n / TILE, TILE)
    candidates = torch.gather(tiles, 1, best_tiles[:, :, None].expand(rows, k, TILE)).reshape(rows, k * TILE)
    values, places = torch.topk(candidates, k, dim=1)
    return values, torch.gather(best_tiles, 1, places // TILE) * TILE + places % TILE
