"""Both towers with the items' own residuals: the whole of what is trained."""

from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.catalogue import Catalogue
from training.config import TowerConfig
from training.loss import full_softmax_loss
from training.towers.item import ItemTower
from training.towers.user import UserTower
from training.windows import Batch


class TowerPair(nn.Module):
    """Item tower, user tower and residuals (N, D) over one catalogue."""

    text: Tensor
    codes: Tensor
    own: Tensor
    droppable: Tensor

    def __init__(
        self,
        catalogue: Catalogue,
        config: TowerConfig,
        *,
        event_types: int,
        time_features: bool,
        dropout: float,
        trained: npt.NDArray[np.bool_],
    ) -> None:
        """`trained` (N,) bool: items with training events. The others keep residual 0, as a new item has it."""
        super().__init__()
        count, dim = len(catalogue.codes), config.dim
        self.item = ItemTower(dim=dim, text_dim=catalogue.text.shape[1], categories=len(catalogue.vocabulary))
        self.user = UserTower(
            dim=dim,
            history_length=config.history_length,
            event_types=event_types,
            time_features=time_features,
            blocks=config.blocks,
            heads=config.heads,
            hidden=config.hidden,
            dropout=dropout,
        )
        self.residual = nn.Parameter(torch.randn(count, dim) * dim**-0.5)  # (N, D) float32, rows of norm about 1
        self.register_buffer("text", torch.from_numpy(catalogue.text), persistent=False)
        self.register_buffer("codes", torch.from_numpy(catalogue.codes), persistent=False)
        self.register_buffer("own", torch.from_numpy(trained[:, None].astype(np.float32)), persistent=False)
        self.register_buffer("droppable", torch.from_numpy(catalogue.has_content[:, None]), persistent=False)

    def residuals(self) -> Tensor:
        """(N, D) float32 as served: 0 for items without training events."""
        return self.residual * self.own

    def item_vectors(self) -> Tensor:
        """(N, D) float32 unit rows as served."""
        return cast(Tensor, self.item(self.text, self.codes, self.residuals()))

    def loss(self, batch: Batch, *, temperature: float, residual_dropout: float) -> Tensor:
        """() float32: exact softmax cross-entropy over all items, mean over the batch's targets."""
        dropped = (torch.rand_like(self.own) < residual_dropout) & self.droppable  # (N, 1)
        items = self.item(self.text, self.codes, torch.where(dropped, 0.0, self.residuals()))
        history = F.embedding(batch.item, items)
        users = self.user.all_positions(history, batch.kind, batch.seconds_before_newest)
        wanted = batch.target >= 0  # only these positions enter the softmax; padding never does
        return full_softmax_loss(users[wanted], items, batch.target[wanted], temperature=temperature)
