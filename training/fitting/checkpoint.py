"""A run's state on disk, so that a run that was cut off goes on to the very vectors that it would have given.

OUT.checkpoint/run.json    what run it is: settings, digests of the data, processes, device, version of torch
OUT.checkpoint/state.pt    weights, best weights, optimiser, random states, place in the epoch, history

state.pt replaces the one before it by a rename, so that there is a whole one at any moment.
"""

import contextlib
import json
import os
import pickle
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from training.errors import ConfigError
from training.fitting.distributed import Ranks

FORMAT = 2
ANEW = "go on with what it was begun with, or begin anew with --restart or by removing it"


def checkpoint_folder(bundle: Path) -> Path:
    """Where a run that is to write `bundle` keeps its state."""
    return bundle.with_name(f"{bundle.name}.checkpoint")


class Checkpoint:
    """Of one run; `run` is JSON that says which one, and any difference refuses to go on."""

    def __init__(self, folder: Path, run: dict[str, Any], *, minutes: float, ranks: Ranks) -> None:
        """Written every `minutes`; 0 = never."""
        self.folder, self._seconds, self._ranks = folder, minutes * 60, ranks
        about = {"format": FORMAT, "torch": torch.__version__, "processes": ranks.world, "device": ranks.device.type}
        self._run: dict[str, Any] = json.loads(json.dumps(about | run))
        self._last = time.monotonic()

    def read(self) -> dict[str, Any] | None:
        """What `write` was given, with this process's own random state set again; None where there is nothing.

        Every process calls it, and all of them find the same. Raises ConfigError where they do not, such as on machines
        that share no folder, and for another run's checkpoint, naming what differs.
        """
        self._ranks.wait()  # until the first process has removed what `--restart` leaves out of account
        state = self._load()
        place = None if state is None else [state.get("place", {}).get(name) for name in ("epoch", "step")]
        found = self._ranks.gather(place)
        if any(each != found[0] for each in found):
            told = ", ".join(f"process {rank}: {'none' if each is None else each}" for rank, each in enumerate(found))
            raise ConfigError(
                f"{self.folder}: the processes find different checkpoints ([epoch, step] of {told}); "
                "put the bundle into a folder that all machines share, or remove the checkpoint on each of them"
            )
        if state is None:
            return None
        random = state.pop("random")[self._ranks.rank]
        torch.set_rng_state(random["cpu"])
        if self._ranks.device.type == "cuda":
            torch.cuda.set_rng_state(random["cuda"], self._ranks.device)
        return state

    def _load(self) -> dict[str, Any] | None:
        if not (self.folder / "state.pt").is_file():
            return None
        try:
            there = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
            _refuse_another(self.folder, there, self._run)
            state: dict[str, Any] = torch.load(self.folder / "state.pt", map_location="cpu", weights_only=True)
        except (OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise ConfigError(f"{self.folder}: cannot be read ({type(error).__name__}); {ANEW}") from error
        return state

    def due(self) -> bool:
        """Whether it is time to write, the same in all processes."""
        return bool(self._seconds) and self._ranks.agree(time.monotonic() - self._last >= self._seconds)

    def write(self, state: dict[str, Any]) -> None:
        """Tensors, numbers, strings, lists and dicts. Every process calls it, the first one writes."""
        own = {"cpu": torch.get_rng_state()}
        if self._ranks.device.type == "cuda":
            own["cuda"] = torch.cuda.get_rng_state(self._ranks.device)
        random = self._ranks.gather(own)
        if self._ranks.first:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _replaced(self.folder / "run.json") as path:
                path.write_text(json.dumps(self._run, indent=2) + "\n", encoding="utf-8")
            with _replaced(self.folder / "state.pt") as path:
                torch.save(state | {"random": random}, path)
        self._last = time.monotonic()

    def remove(self) -> None:
        """When the bundle is written, or to begin anew."""
        if self._ranks.first:
            shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def _replaced(path: Path) -> Iterator[Path]:
    """A path to write to; then it is on disk whole and takes the place of `path` at once."""
    new = path.with_name(f"{path.name}.new")
    yield new
    for synced in (new, path.parent):
        handle = os.open(synced, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        if synced is new:
            new.replace(path)


def _refuse_another(folder: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    before, now = _flat(there), _flat(here)
    differing = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if differing:
        listed = ", ".join(f"{name} was {before.get(name)} and is {now.get(name)}" for name in differing[:3])
        more = f", and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise ConfigError(f"{folder}: an unfinished run of another kind: {listed}{more}; {ANEW}")


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
