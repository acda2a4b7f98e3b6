"""Trains a pair of towers: epochs of steps, validation, early stop; goes on where a checkpoint left off."""

import copy
import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from training.config import TrainingConfig
from training.data.interactions import Interactions, next_new_item
from training.data.split import Split
from training.data.windows import training_steps
from training.errors import DatasetError
from training.fitting.checkpoint import Checkpoint
from training.fitting.distributed import Ranks
from training.fitting.reporting import Board, finite, say_epoch
from training.fitting.step import Stepper
from training.fitting.validation import validate
from training.incremental.anchor import Anchor
from training.progress import Progress
from training.towers.pair import TowerPair


@dataclass
class History:
    """What happened: the best epoch's validation metrics (filtered), where it was, and a record of each epoch."""

    best: dict[str, float] = field(default_factory=dict)
    best_epoch: int = 0
    epochs: int = 0
    seconds: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)  # epoch, seconds, loss, learning rate, validation metrics


@dataclass
class Place:
    """Where a run is: `step` of the steps of `epoch` are done."""

    epoch: int = 1
    step: int = 0
    steps: int = 0  # in all epochs together
    loss: float = 0.0  # sum over this epoch's positions so far, of this process
    count: int = 0  # those positions


def train(
    pair: TowerPair,
    data: Interactions,
    split: Split,
    config: TrainingConfig,
    *,
    history_length: int,
    progress: Progress,
    chosen: npt.NDArray[np.bool_] | None = None,
    anchor: Anchor | None = None,
    ranks: Ranks | None = None,
    checkpoint: Checkpoint | None = None,
    tensorboard: Path | None = None,
) -> History:
    """Trains in place and leaves the weights of the epoch with the best validation N@10, on the CPU.

    A warm start has its own: `chosen` (E,) bool events that may be targets, and an `anchor` that is added to the loss.
    `ranks` are the processes that train together, `tensorboard` a folder for curves.

    Without an evaluated user (no one has three different items) all epochs run and the last weights stay.
    """
    target = next_new_item(data, split.train_end, chosen)
    if not (target >= 0).any():
        raise DatasetError("nothing to learn from: no user has two different items before the held-out ones; add events")
    ranks = ranks or Ranks()
    pair.to(ranks.device)
    if not ranks.first:
        torch.manual_seed(config.seed + (ranks.rank << 32))  # dropout of its own; the weights are the same everywhere
    stepper = Stepper(pair, data, target, config, ranks=ranks, anchor=anchor)
    run = _Run(pair, split, config, history_length, progress, ranks, checkpoint, stepper)
    run.resume()
    board = Board(tensorboard if ranks.first else None, steps=run.place.steps)
    try:
        run.epochs(data, target, board)
    finally:
        board.close()
    if run.best is not None:
        pair.load_state_dict(run.best)
    pair.eval()
    pair.to("cpu")
    return run.history


def learning_rate(config: TrainingConfig, epoch: int) -> float:
    """Falls from `learning_rate` in epoch 1 to `final_learning_rate` in the last one, along half a cosine."""
    done = (epoch - 1) / max(config.epochs - 1, 1)
    share = 0.5 * (1 + math.cos(math.pi * done))
    return config.final_learning_rate + (config.learning_rate - config.final_learning_rate) * share


class _Run:
    """The state of a training and the loop that moves it on."""

    def __init__(
        self,
        pair: TowerPair,
        split: Split,
        config: TrainingConfig,
        history_length: int,
        progress: Progress,
        ranks: Ranks,
        checkpoint: Checkpoint | None,
        stepper: Stepper,
    ) -> None:
        self._pair, self._split, self._config, self._length = pair, split, config, history_length
        self._progress, self._ranks, self._checkpoint, self._stepper = progress, ranks, checkpoint, stepper
        self._generator = np.random.default_rng(config.seed)
        self._epoch_state: Mapping[str, Any] = {}  # of the generator, as this epoch began
        self._began = time.perf_counter()
        self.place, self.history = Place(), History()
        self.best: dict[str, torch.Tensor] | None = None

    def epochs(self, data: Interactions, target: npt.NDArray[np.int64], board: Board) -> None:
        """Until the last epoch, or until validation has not been better for `patience` epochs."""
        while self.place.epoch <= self._config.epochs:
            rate = learning_rate(self._config, self.place.epoch)
            self._stepper.optimiser.set_rate(rate)
            self._pair.train()
            loss = self._epoch(data, target, board, rate)
            metrics = validate(
                self._pair,
                self._split,
                history_length=self._length,
                most_users=self._config.validation_users,
                seed=self._config.seed,
                ranks=self._ranks,
            )
            self._close_epoch(loss, rate, metrics, board)
            if metrics and self.history.epochs - self.history.best_epoch >= self._config.patience:
                break

    def resume(self) -> None:
        """Goes on where the checkpoint is, if there is one."""
        state = None if self._checkpoint is None else self._checkpoint.read()
        if state is None:
            return
        self._pair.load_state_dict(state["pair"])
        self.best = state["best"]
        self._stepper.optimiser.load(state["optimiser"])
        self._generator.bit_generator.state = json.loads(state["generator"])
        self.history, place = History(**state["history"]), dict(state["place"])
        place["loss"], place["count"] = state["losses"][self._ranks.rank]
        self.place = Place(**place)
        self._began -= self.history.seconds
        self._progress.say(f"goes on from a checkpoint: epoch {self.place.epoch}, after {self.place.step} steps of it")

    def _epoch(self, data: Interactions, target: npt.NDArray[np.int64], board: Board, rate: float) -> float:
        """One pass over all training targets, or what is left of it -> mean loss."""
        self._epoch_state = self._generator.bit_generator.state
        steps = training_steps(
            data,
            self._split.train_end,
            target,
            length=self._length,
            positions=self._config.positions,
            generator=self._generator,
        )
        place = self.place
        loss: Any = place.loss
        with self._progress.bar(f"epoch {place.epoch}", int((target >= 0).sum())) as bar:
            for starts, ends in steps[place.step :]:
                done = self._stepper(starts, ends, epoch=place.epoch, number=place.step)
                place.step, place.steps = place.step + 1, place.steps + 1
                if done is not None:
                    loss, place.count = loss + done.loss, place.count + done.count
                    board.step(place.steps, done.loss, done.count, done.positions, rate)
                    bar.update(done.positions)
                if self._checkpoint is not None and self._checkpoint.due():
                    place.loss = float(loss)
                    self._write(self._checkpoint)
        parts = self._ranks.gather((float(loss), place.count))
        return finite(sum(part for part, _ in parts) / max(sum(count for _, count in parts), 1), place.epoch)

    def _close_epoch(self, loss: float, rate: float, metrics: dict[str, float], board: Board) -> None:
        history, epoch = self.history, self.place.epoch
        history.epochs, history.seconds = epoch, time.perf_counter() - self._began
        better = bool(metrics) and metrics["N@10"] > history.best.get("N@10", -1.0)
        if better:
            history.best, history.best_epoch = metrics, epoch
            self.best = copy.deepcopy(self._pair.state_dict())
        record = {"epoch": epoch, "seconds": history.seconds, "loss": loss, "learning_rate": rate, **metrics}
        history.curve.append(record)
        say_epoch(self._progress, record, best=better)
        board.epoch(self.place.steps, record, gate=torch.sigmoid(self._pair.item.gate.detach()).mean().item())
        self.place = Place(epoch=epoch + 1, steps=self.place.steps)

    def _write(self, checkpoint: Checkpoint) -> None:
        self.history.seconds = time.perf_counter() - self._began
        checkpoint.write(
            {
                "pair": self._pair.state_dict(),
                "best": self.best,
                "optimiser": self._stepper.optimiser.state(),
                "generator": json.dumps(self._epoch_state),
                "losses": self._ranks.gather((self.place.loss, self.place.count)),
                "place": asdict(self.place),
                "history": asdict(self.history),
            }
        )
