"""The processes that train together: one, or those that torchrun starts, each with its share of every step.

All of them read the same data and cut the same steps with the same seed, so that only gradients, metrics and small
decisions travel. The first one alone prints and writes.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.rendezvous import rendezvous

from training.errors import ConfigError, TrainingError

T = TypeVar("T")
# A process may wait that long for another: the first one encodes all texts while the others wait. A process that ends
# is noticed at once, by torchrun and by those connected to it.
PATIENCE = timedelta(days=2)


@dataclass(frozen=True)
class Ranks:
    """This process among them, and the device that it computes on."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        return self.rank == 0

    def on(self, setting: str) -> "Ranks":
        """The same on the device that `setting`, training.device, means. Raises ConfigError."""
        device = choose_device(setting)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        return replace(self, device=device)

    def agree(self, decision: bool) -> bool:
        """What the first process decided."""
        return self.from_first(lambda: decision)

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` returns in the first process, small and picklable, without calling it in the others."""
        if self.world == 1:
            return make()
        box: list[Any] = [make() if self.first else None]
        dist.broadcast_object_list(box, src=0)
        made: T = box[0]
        return made

    def array_from_first(self, make: Callable[[], npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """The same for an array that may be large."""
        if self.world == 1:
            return make()
        made = make() if self.first else None
        shape = self.from_first(lambda: () if made is None else made.shape)
        shared = torch.empty(shape) if made is None else torch.from_numpy(np.ascontiguousarray(made))
        dist.broadcast(shared, src=0)
        return shared.numpy()

    def wait(self) -> None:
        """Until every process has come to this point."""
        self.gather(None)

    def gather(self, value: T) -> list[T]:
        """Every process's value, in order of rank, in each of them."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def sum_gradients(self, parameters: list[nn.Parameter], sparse: nn.Parameter | None) -> None:
        """Adds up each parameter's gradient over the processes, in place; a missing one counts as 0.

        That of `sparse`, one of them, is and stays sparse. All processes end with the same bits.
        """
        if self.world == 1:
            return
        dense = [each for each in parameters if each is not sparse]
        flat = torch.cat([_dense_gradient(each).flatten() for each in dense])
        dist.all_reduce(flat)
        for parameter, total in zip(dense, torch.split(flat, [each.numel() for each in dense]), strict=True):
            parameter.grad = total.view_as(parameter)
        if sparse is not None:
            sparse.grad = self._sum_rows(sparse)

    def _sum_rows(self, parameter: nn.Parameter) -> Tensor:
        """(N, D) sparse: the sum of all processes' rows; of unequal number, so they travel padded."""
        device, width = parameter.device, parameter.shape[1]
        indices = torch.zeros(0, dtype=torch.int64, device=device)
        found = torch.zeros(0, width, device=device)
        if parameter.grad is not None:
            grad = parameter.grad.coalesce()
            indices, found = grad.indices()[0], grad.values()
        counts = self.gather(len(indices))
        mine, count = len(indices), max(counts)
        rows, values = torch.zeros(count, dtype=torch.int64, device=device), torch.zeros(count, width, device=device)
        rows[:mine], values[:mine] = indices, found
        all_rows, all_values = ([torch.empty_like(each) for _ in counts] for each in (rows, values))
        dist.all_gather(all_rows, rows)
        dist.all_gather(all_values, values)
        rows, values = (torch.cat([each[:n] for each, n in zip(all_, counts, strict=True)]) for all_ in (all_rows, all_values))
        return torch.sparse_coo_tensor(rows[None], values, parameter.shape, check_invariants=False).coalesce()


def _dense_gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        return torch.zeros_like(parameter)
    return parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad


@contextmanager
def join() -> Iterator[Ranks]:
    """The processes that this one trains with, by torchrun's variables; on the CPU until `Ranks.on` says otherwise.

    The first process to fail raises its error; those that fail after it end without a word.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    store, rank, world = next(iter(rendezvous("env://")))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=PATIENCE)
    try:
        yield Ranks(rank, world)
    except BaseException as error:
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # the store outlives torchrun's restarts
        if store.add(f"towerbridge/failed/{attempt}", 1) > 1:
            raise SystemExit(2) from None
        if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
            raise TrainingError(f"process {rank} of {world}: another one ended; look at its own message") from error
        raise
    dist.destroy_process_group()


def choose_device(setting: str) -> torch.device:
    """The device that auto | cpu | cuda means; with several processes on a machine each has its own GPU. Raises ConfigError."""
    local = int(os.environ.get("LOCAL_RANK", "0"))
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if setting == "cpu" or (setting == "auto" and not found):
        return torch.device("cpu")
    if not found:
        raise ConfigError("training.device: cuda, but torch sees no CUDA device; use auto or cpu")
    if local >= found:
        raise ConfigError(f"process {local + 1} on this machine has no GPU: torch sees {found}; start fewer with torchrun")
    return torch.device("cuda", local)
