"""The k largest scores of each row, exactly, without sorting what cannot be among them."""

from typing import NamedTuple

import numpy as np
import torch

TILE = 64
"""Scores whose maximum stands for them in the first round."""
_BLOCK = 32_768  # scores of a row whose maxima are taken together


class Tiles(NamedTuple):
    """Where the scores of each tile are: in a block of n columns, tile j has every (n / TILE)-th one, from the j-th on.

    So the maxima of a block are those of TILE runs of adjacent scores, element by element, which processors do fastest. In
    memory, the t-th score of a tile in row b is at origin + b * pitch + t * step, and in column `column` + t * step.
    """

    columns: torch.Tensor  # (tiles,) int64, of the first score
    steps: torch.Tensor  # (tiles,) int64
    origins: torch.Tensor  # (tiles,) int64, of the first score in row 0
    pitches: torch.Tensor  # (tiles,) int64, from a row to the next


def tiles_of(blocks: tuple[int, ...], rows: int | None, device: torch.device) -> Tiles:
    """The tiles of adjacent blocks of so many columns each, all multiples of TILE.

    rows: of a memory that has block behind block, each (rows, columns); None for one that has row behind row of all blocks.
    """
    sizes = np.array(blocks, dtype=np.int64)
    counts = sizes // TILE  # tiles of each block, and the step within each of them
    firsts = np.cumsum(sizes) - sizes
    numbers = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    first, step, size = (np.repeat(one, counts) for one in (firsts, counts, sizes))
    if rows is None:
        tiles = (first + numbers, step, first + numbers, np.full_like(size, sizes.sum()))
    else:
        tiles = (first + numbers, step, first * rows + numbers, size)
    return Tiles(*(torch.from_numpy(one).to(device) for one in tiles))


def top_k(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest of each row, largest first: (B, n) -> values (B, k), places (B, k) int64. Ties in any order."""
    if not prunes(scores.shape[1], k) or not scores.is_contiguous():
        return torch.topk(scores, k, dim=1)
    blocks = torch.split(scores, _BLOCK, dim=1)
    maxima = torch.cat([tile_maxima(block) for block in blocks], dim=1)
    return top_k_of_tiles(scores.view(-1), maxima, tiles_of(tuple(one.shape[1] for one in blocks), None, scores.device), k)


def prunes(n: int, k: int) -> bool:
    """Whether tiles save work: n must consist of whole ones, and be much more than the k tiles that are sorted."""
    return n % TILE == 0 and n // TILE > 2 * k


def tile_maxima(block: torch.Tensor) -> torch.Tensor:
    """The largest score of each tile of one block: (B, n) -> (B, n / TILE). Cheapest while it is in the processor's cache."""
    return block.view(len(block), TILE, -1).amax(dim=1)


def top_k_of_tiles(memory: torch.Tensor, maxima: torch.Tensor, tiles: Tiles, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As `top_k`, given the tiles' maxima, (B, tiles), and the scores in memory, (B * n,): values (B, k), columns (B, k) int64.

    The k best scores lie in the k tiles with the largest maxima: were one in another tile, then k tiles would each hold a score
    at least as large. So only those tiles are sorted.
    """
    rows = torch.arange(len(maxima), device=memory.device)[:, None]  # (B, 1)
    best = torch.topk(maxima, k, dim=1, sorted=False).indices  # (B, k) int64
    within = tiles.steps[best][:, :, None] * torch.arange(TILE, device=memory.device)  # (B, k, TILE)
    places = (tiles.origins[best] + rows * tiles.pitches[best])[:, :, None] + within
    values, chosen = torch.topk(memory[places.view(len(maxima), -1)], k, dim=1)
    columns = (tiles.columns[best][:, :, None] + within).view(len(maxima), -1)
    return values, torch.gather(columns, 1, chosen)
