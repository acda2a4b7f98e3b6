"""What a run tells of itself: a line for each epoch, and curves in TensorBoard where a folder is given."""

import math
import time
from pathlib import Path
from typing import Any

from training.errors import ConfigError
from training.progress import Progress

STEPS_PER_POINT = 20  # steps that one point of a curve is the mean of


def check_tensorboard() -> None:
    """Raises ConfigError where the package is missing: before the hours, not after them."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise ConfigError("--tensorboard needs the package tensorboard: pip install 'towerbridge[training]'") from error


class Board:
    """Curves: loss, learning rate and positions a second over steps; validation and the item tower's gate over epochs."""

    def __init__(self, folder: Path | None, *, steps: int) -> None:
        """`steps` that were taken before, by a run that goes on here: what was written from the last of them on is hidden.

        Of the last one too, since the epoch that it ended, if it did, is closed and written once more.
        """
        self._writer: Any = None
        self._loss, self._positions, self._steps, self._seconds = 0.0, 0, 0, 0.0
        self._last = time.perf_counter()
        if folder is not None:
            from torch.utils.tensorboard import SummaryWriter

            _wait_for_a_later_name(folder)
            self._writer = SummaryWriter(str(folder), purge_step=steps)

    def step(self, number: int, loss: Any, count: int, positions: int, rate: float) -> None:
        """`loss` is the sum over `count` positions, a number or a tensor, which is read only once in a while."""
        if self._writer is None:
            return
        self._loss, self._positions, self._steps = (
            self._loss + loss / max(count, 1),
            self._positions + positions,
            self._steps + 1,
        )
        now = time.perf_counter()
        self._seconds, self._last = self._seconds + now - self._last, now
        if self._steps == STEPS_PER_POINT:
            self._writer.add_scalar("training/loss", float(self._loss) / STEPS_PER_POINT, number)
            self._writer.add_scalar("training/learning rate", rate, number)
            self._writer.add_scalar("training/positions a second", self._positions / self._seconds, number)
            self._loss, self._positions, self._steps, self._seconds = 0.0, 0, 0, 0.0

    def epoch(self, number: int, record: dict[str, float], *, gate: float) -> None:
        """`number` of steps taken so far."""
        if self._writer is None:
            return
        for name, value in record.items():
            if name == "loss" or "@" in name:
                self._writer.add_scalar(f"{'epoch' if name == 'loss' else 'validation'}/{name}", value, number)
        self._writer.add_scalar("item tower/gate", gate, number)
        self._writer.flush()
        self._last = time.perf_counter()  # without the validation

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _wait_for_a_later_name(folder: Path) -> None:
    """At most a second. TensorBoard reads files in the order of their names: events.out.tfevents.SECOND.HOST.PROCESS.NUMBER.

    A run that goes on within the second in which the one before made its file would else be read first, by chance of the
    process ids, and hidden as if it were the older one.
    """
    while any(folder.glob(f"events.out.tfevents.{int(time.time())}.*")):
        time.sleep(0.05)


def say_epoch(progress: Progress, record: dict[str, float], *, best: bool) -> None:
    """One line: epoch, seconds since the beginning, mean loss, validation."""
    line = f"epoch {record['epoch']:>3.0f}  {record['seconds']:>5.0f} s  loss {record['loss']:.4f}"
    if "N@10" in record:
        line += f"  validation R@10 {record['R@10']:.4f}  N@10 {record['N@10']:.4f}{'  best' if best else ''}"
    progress.say(line)


def finite(loss: float, epoch: int) -> float:
    """The loss itself. Raises ConfigError where training has blown up."""
    if not math.isfinite(loss):
        raise ConfigError(f"epoch {epoch}: the loss is {loss}; lower training.learning_rate or raise training.temperature")
    return loss
