"""AdamW, and for the residuals of a large catalogue an Adam that touches only the rows of a step."""

from typing import Any

import torch
from torch import nn

from training.config import TrainingConfig
from training.towers.pair import TowerPair


class Optimiser:
    """Of all parameters of a pair.

    With `sparse` (the sampled softmax) the residuals (N, D) have gradients for a few thousand rows in a step. AdamW
    would still read and write all of them and both moments, at 10^6 items a gigabyte in each step; SparseAdam moves
    the rows that have a gradient, and their moments, and leaves the others as they are.
    """

    def __init__(self, pair: TowerPair, config: TrainingConfig, *, sparse: bool) -> None:
        self.parameters: list[nn.Parameter] = list(pair.parameters())
        towers = {"params": [each for each in self.parameters if each is not pair.residual], "times": 1.0}
        residuals = {"params": [pair.residual], "times": config.residual_rate}
        decay = config.weight_decay / config.residual_rate  # AdamW takes its decay times the learning rate: undone here
        whole = [towers] if sparse else [towers, residuals | {"weight_decay": decay}]
        self._parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(whole, lr=config.learning_rate, weight_decay=config.weight_decay)
        ]
        if sparse:
            self._parts.append(torch.optim.SparseAdam([residuals], lr=config.learning_rate))
        self.set_rate(config.learning_rate)

    def set_rate(self, rate: float) -> None:
        """The learning rate from the next step on."""
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = rate * group["times"]

    def zero_grad(self) -> None:
        for part in self._parts:
            part.zero_grad()

    def step(self) -> None:
        for part in self._parts:
            part.step()

    def state(self) -> list[dict[str, Any]]:
        """Moments and counts, for a checkpoint."""
        return [part.state_dict() for part in self._parts]

    def load(self, state: list[dict[str, Any]]) -> None:
        for part, saved in zip(self._parts, state, strict=True):
            part.load_state_dict(saved)
