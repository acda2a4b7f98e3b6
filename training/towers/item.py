"""Item tower: text, categories and a gated residual of its own make one unit vector for each item."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ItemTower(nn.Module):
    """unit(bias + proj(text) + sum of n category vectors / sqrt(n) + gate · residual).

    The residual is what an item learnt from behaviour beyond its text and categories. A new item has residual 0 and is
    served from the rest; `residual_dropout` trains for that by dropping the residual of some items in each step.
    """

    def __init__(self, *, dim: int, text_dim: int, categories: int) -> None:
        """`text_dim` 0 = items have no text; `categories` = size of the vocabulary without the padding code 0."""
        super().__init__()
        self.bias = nn.Parameter(0.1 * dim**-0.5 * torch.randn(dim))  # not 0: what an item has that has nothing
        self.gate = nn.Parameter(torch.zeros(dim))  # sigmoid(0): the residual starts at half weight
        self.project = nn.Linear(text_dim, dim, bias=False) if text_dim else None
        self.category = nn.Embedding(categories + 1, dim, padding_idx=0)
        nn.init.normal_(self.category.weight, std=dim**-0.5)
        with torch.no_grad():
            self.category.weight[0] = 0.0
        if self.project is not None:
            nn.init.normal_(self.project.weight, std=dim**-0.5)  # unit text -> a vector of norm about 1

    def content(self, text: Tensor, categories: Tensor) -> Tensor:
        """(N, T) f32, (N, C) i64 -> (N, D) f32: the part that a new item has too; not normalised."""
        known = (categories > 0).sum(1, keepdim=True).clamp(min=1)  # (N, 1)
        content: Tensor = self.bias + self.category(categories).sum(1) / known.sqrt()  # row 0 of the table is 0
        return content if self.project is None else content + self.project(text)

    def forward(self, text: Tensor, categories: Tensor, residual: Tensor) -> Tensor:
        """(N, T) f32, (N, C) i64, (N, D) f32 -> (N, D) float32 unit rows. N is free; T may be 0."""
        mixed = self.content(text, categories) + torch.sigmoid(self.gate) * residual
        return F.normalize(mixed, dim=-1)
