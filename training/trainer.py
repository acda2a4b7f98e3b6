"""Trains a pair of towers: epochs, validation, early stop."""

import copy
import math
import time
from dataclasses import dataclass, field

import numpy as np
import torch

from training.anchor import Anchor
from training.config import TrainingConfig
from training.errors import DatasetError
from training.interactions import Interactions, next_new_item
from training.progress import Progress
from training.ranking import Questions, ask, rank
from training.split import Split
from training.towers.pair import TowerPair
from training.windows import training_batches


@dataclass
class History:
    """What happened: the best epoch's validation metrics (filtered) and where it was."""

    best: dict[str, float] = field(default_factory=dict)
    best_epoch: int = 0
    epochs: int = 0
    seconds: float = 0.0


def train(
    pair: TowerPair,
    data: Interactions,
    split: Split,
    config: TrainingConfig,
    *,
    history_length: int,
    progress: Progress,
    chosen: np.ndarray[tuple[int], np.dtype[np.bool_]] | None = None,
    anchor: Anchor | None = None,
) -> History:
    """Trains in place and leaves the weights of the epoch with the best validation N@10.

    A warm start has its own: `chosen` (E,) bool events that may be targets, and an `anchor` that is added to the loss.

    Without an evaluated user (no one has three different items) all epochs run and the last weights stay.
    """
    target = next_new_item(data, split.train_end, chosen)
    if not (target >= 0).any():
        raise DatasetError("nothing to learn from: no user has two different items before the held-out ones; add events")
    generator = np.random.default_rng(config.seed)
    optimiser = torch.optim.AdamW(pair.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    history = History()
    best_weights = None
    began = time.perf_counter()
    for epoch in range(1, config.epochs + 1):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(config, epoch)
        loss = _epoch(pair, data, split, target, config, history_length, generator, optimiser, anchor, progress, epoch)
        metrics = validate(pair, data, split, history_length=history_length)
        history.epochs, history.seconds = epoch, time.perf_counter() - began
        better = bool(metrics) and metrics["N@10"] > history.best.get("N@10", -1.0)
        if better:
            history.best, history.best_epoch = metrics, epoch
            best_weights = copy.deepcopy(pair.state_dict())
        _say(progress, history, epoch, loss, metrics)
        if metrics and epoch - history.best_epoch >= config.patience:
            break
    if best_weights is not None:
        pair.load_state_dict(best_weights)
    pair.eval()
    return history


def learning_rate(config: TrainingConfig, epoch: int) -> float:
    """Falls from `learning_rate` in epoch 1 to `final_learning_rate` in the last one, along half a cosine."""
    done = (epoch - 1) / max(config.epochs - 1, 1)
    share = 0.5 * (1 + math.cos(math.pi * done))
    return config.final_learning_rate + (config.learning_rate - config.final_learning_rate) * share


def validate(pair: TowerPair, data: Interactions, split: Split, *, history_length: int) -> dict[str, float]:
    """Filtered metrics over the validation targets; empty without any."""
    users = np.flatnonzero(split.validation >= 0)
    if not len(users):
        return {}
    pair.eval()
    ends = split.validation[users]
    with torch.inference_mode():
        items = pair.item_vectors()  # (N, D)

        def score(part: Questions) -> torch.Tensor:
            batch = part.history
            vectors = pair.user(items[batch.item], batch.kind, batch.seconds_before_newest, batch.length)
            scores: torch.Tensor = vectors @ items.T
            return scores

        questions = ask(data, data.offsets[users], ends, data.item[ends], history_length=history_length)
        return rank(questions, score)["filtered"]


def _epoch(
    pair: TowerPair,
    data: Interactions,
    split: Split,
    target: np.ndarray[tuple[int], np.dtype[np.int64]],
    config: TrainingConfig,
    history_length: int,
    generator: np.random.Generator,
    optimiser: torch.optim.Optimizer,
    anchor: Anchor | None,
    progress: Progress,
    epoch: int,
) -> float:
    """One pass over all training targets -> mean loss."""
    pair.train()
    total, count = 0.0, 0
    batches = training_batches(
        data, split.train_end, target, length=history_length, positions=config.positions, generator=generator
    )
    with progress.bar(f"epoch {epoch}", int((target >= 0).sum())) as bar:
        for batch in batches:
            wanted = int((batch.target >= 0).sum())
            if not wanted:
                continue
            loss = pair.loss(batch, temperature=config.temperature, residual_dropout=config.residual_dropout)
            optimiser.zero_grad()
            torch.autograd.backward(loss if anchor is None else loss + anchor(pair))
            optimiser.step()
            total, count = total + loss.item() * wanted, count + wanted
            bar.update(wanted)
    return total / max(count, 1)


def _say(progress: Progress, history: History, epoch: int, loss: float, metrics: dict[str, float]) -> None:
    line = f"epoch {epoch:>3}  {history.seconds:>5.0f} s  loss {loss:.4f}"
    if metrics:
        best = "  best" if history.best_epoch == epoch else ""
        line += f"  validation R@10 {metrics['R@10']:.4f}  N@10 {metrics['N@10']:.4f}{best}"
    progress.say(line)
