"""One optimiser step: the loss of its positions, in parts and over the processes, then the weights move once."""

from dataclasses import dataclass

import torch
from torch import Tensor

from training.config import TrainingConfig
from training.data.interactions import IntArray, Interactions
from training.data.windows import gather
from training.fitting.distributed import Ranks
from training.fitting.optimiser import Optimiser
from training.incremental.anchor import Anchor
from training.towers.negatives import NegativeSampler
from training.towers.pair import TowerPair

EXACT_ITEMS = 100_000  # up to that many items `training.loss: auto` is the full softmax


def is_sampled(config: TrainingConfig, items: int) -> bool:
    """Whether `training.loss` means the sampled softmax for a catalogue of that size."""
    return config.loss == "sampled" or (config.loss == "auto" and items > EXACT_ITEMS)


@dataclass(frozen=True)
class StepResult:
    """What a step came to."""

    loss: Tensor  # () float64, sum over this process's positions, on its device
    count: int  # this process's positions
    positions: int  # those of all processes


class Stepper:
    """Takes steps on a pair that lies on the processes' device.

    A step's pieces of history are shared out over processes and, with `training.accumulate`, over parts that one
    process computes one after another. Each part's mean weighs by its share of the step's targets, so the gradient is
    that of the mean over all of them, however they are shared out.
    """

    def __init__(
        self,
        pair: TowerPair,
        data: Interactions,
        target: IntArray,
        config: TrainingConfig,
        *,
        ranks: Ranks,
        anchor: Anchor | None = None,
    ) -> None:
        self._pair, self._data, self._target, self._config = pair, data, target, config
        self._ranks, self._anchor = ranks, anchor
        sampled = is_sampled(config, data.items)
        self.optimiser = Optimiser(pair, config, sparse=sampled)
        self._sparse = pair.residual if sampled else None
        self._sampler = None
        if sampled:
            among = None if pair.compared is None else pair.compared.cpu().numpy()
            self._sampler = NegativeSampler(
                target, data.offsets, items=data.items, uniform=config.negatives, seed=config.seed, among=among
            )
        if config.compile == "on":
            pair.user.all_positions = torch.compile(pair.user.all_positions, dynamic=True)  # type: ignore[method-assign]

    def __call__(self, starts: IntArray, ends: IntArray, *, epoch: int, number: int) -> StepResult | None:
        """`starts`, `ends` (B,) int64 event ranges; `number` of the step within its epoch. None: it has no target."""
        whole = gather(self._data, starts, ends, self._target)
        wanted = whole.target >= 0
        positions = int(wanted.sum())
        if not positions:
            return None
        candidates = None
        if self._sampler is not None:
            drawn = self._sampler.draw(whole.target[wanted].numpy(), epoch=epoch, step=number)
            candidates = drawn.to(self._ranks.device)
        self.optimiser.zero_grad()
        loss, count = torch.zeros((), dtype=torch.float64, device=self._ranks.device), 0
        for batch in whole.parts(*self._parts()):
            part = int((batch.target >= 0).sum())
            if not part:
                continue
            with torch.autocast(self._ranks.device.type, torch.bfloat16, enabled=self._config.precision == "bfloat16"):
                mean = self._pair.loss(
                    batch.to(self._ranks.device),
                    temperature=self._config.temperature,
                    residual_dropout=self._config.residual_dropout,
                    candidates=candidates,
                )
            pulled = mean if self._anchor is None else mean + self._anchor(self._pair)
            torch.autograd.backward(pulled * (part / positions))
            loss, count = loss + mean.detach().double() * part, count + part
        self._ranks.sum_gradients(self.optimiser.parameters, self._sparse)
        self.optimiser.step()
        return StepResult(loss, count, positions)

    def _parts(self) -> tuple[range, int]:
        """(this process's parts, parts of a step)."""
        each = self._config.accumulate
        return range(self._ranks.rank * each, (self._ranks.rank + 1) * each), self._ranks.world * each
