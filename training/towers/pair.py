"""Both towers with the items' own residuals: the whole of what is trained."""

from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.config import TowerConfig
from training.data.catalogue import Catalogue
from training.data.windows import Batch
from training.towers.item import ItemTower
from training.towers.loss import Weights, full_softmax_loss, sampled_softmax_loss
from training.towers.negatives import Candidates
from training.towers.user import UserTower

AT_ONCE = 1 << 16  # items: what the tower makes on the way is C times as large as the vectors


class TowerPair(nn.Module):
    """Item tower, user tower and residuals (N, D) over one catalogue."""

    text: Tensor
    codes: Tensor
    residual_scale: Tensor  # (N, 1) float32, what residuals are multiplied with where they are read; 0 = none
    droppable: Tensor
    compared: Tensor | None  # (M,) int64, rows that the softmax is over, rising; None = all

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
        """`trained` (N,) bool: items with training events. The others keep residual 0, as a new item has it.

        Nor are targets compared with those others: an item that is never a target would only ever be pushed away from
        everybody, which a truly new item is not.
        """
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
        self.register_buffer("residual_scale", torch.from_numpy(trained[:, None].astype(np.float32)), persistent=False)
        self.register_buffer("droppable", torch.from_numpy(catalogue.has_content[:, None]), persistent=False)
        everything = bool(trained.all())
        self.register_buffer("compared", None if everything else torch.from_numpy(np.flatnonzero(trained)), persistent=False)

    def residuals(self) -> Tensor:
        """(N, D) float32 as served: 0 for items without training events."""
        return self.residual * self.residual_scale

    def item_vectors(self) -> Tensor:
        """(N, D) float32 unit rows as served."""
        parts = zip(*(torch.split(each, AT_ONCE) for each in (self.text, self.codes, self.residuals())), strict=True)
        return torch.cat([self.item(*part) for part in parts])

    def loss(
        self, batch: Batch, *, temperature: float, residual_dropout: float, candidates: Candidates | None = None
    ) -> Tensor:
        """() float32: softmax cross-entropy, mean over the targets; exact over all items with events, or candidates.

        With `candidates` only they and the batch's items go through the item tower, and the residuals' gradient is
        sparse. They must hold every target of the batch.
        """
        rows = None if candidates is None else torch.unique(torch.cat([batch.item.flatten(), candidates.item]))
        items = self._training_vectors(rows, residual_dropout)
        place = batch.item if rows is None else torch.searchsorted(rows, batch.item)
        users = self.user.all_positions(F.embedding(place, items), batch.kind, batch.seconds_before_newest)
        wanted = batch.target >= 0  # only these positions enter the softmax; padding never does
        users = users[wanted]
        with torch.autocast(users.device.type, enabled=False):
            if users.dtype != torch.float32:  # autocast: its vectors are unit only to their own rounding
                users = F.normalize(users.float(), dim=-1)
            if candidates is None or rows is None:
                target = batch.target[wanted]
                if self.compared is not None:
                    items, target = items[self.compared], torch.searchsorted(self.compared, target)
                return full_softmax_loss(users, items, target, temperature=temperature)
            among = F.embedding(torch.searchsorted(rows, candidates.item), items)  # (C, D)
            columns = torch.searchsorted(candidates.item, batch.target)  # (B, L), where wanted
            # What a piece of history has as its own targets is in this step with certainty, its other items are not.
            certain = torch.where(wanted, columns, torch.where(wanted, columns, -1).amax(1, keepdim=True))
            weights = Weights(candidates.weight, certain[wanted.nonzero()[:, 0]])
            return sampled_softmax_loss(users, among, columns[wanted], weights, temperature=temperature)

    def _training_vectors(self, rows: Tensor | None, residual_dropout: float) -> Tensor:
        """(N, D) or, of `rows` (R,), (R, D) float32 unit rows, some of them without their residual."""
        if rows is None:
            scale, droppable, text, codes = self.residual_scale, self.droppable, self.text, self.codes
            residual = self.residuals()
        else:
            scale, droppable = self.residual_scale[rows], self.droppable[rows]
            text, codes = self.text[rows], self.codes[rows]
            residual = F.embedding(rows, self.residual, sparse=True) * scale
        dropped = (torch.rand_like(scale) < residual_dropout) & droppable  # (N, 1)
        return cast(Tensor, self.item(text, codes, torch.where(dropped, 0.0, residual)))
