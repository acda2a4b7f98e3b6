"""What a refresh has done so far, so that the same command goes on where it failed."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from training.errors import ConfigError

FILE = "refresh.json"


@dataclass
class Record:
    """The working folder of one refresh, which only its owner can read: it holds people's events until all is done.

    `asked` is what the command was given; another command begins anew, and so does one that finds another release live.
    """

    folder: Path
    asked: dict[str, str]
    bundle: str  # what it goes on from, …
    release_id: str  # … and of which release that is
    done: dict[str, Any] = field(default_factory=dict)  # step -> {"seconds", and what later steps need of it}
    inputs: dict[str, str] = field(default_factory=dict)  # step -> digest of what it was last begun with
    made: list[str] = field(default_factory=list)  # releases that it wrote, whether or not they have to be made again

    @classmethod
    def read(cls, folder: Path, asked: dict[str, str], bundle: str, release_id: str) -> "Record":
        """What an earlier run of the same command left in a folder, else an empty record. Raises ConfigError.

        `bundle` is what is live now. If that is what the earlier run made, it got as far as a promotion, and goes on from
        where it began.
        """
        if folder.exists() and not (folder / FILE).is_file():
            raise ConfigError(f"{folder}: is there and no refresh made it; remove it, or give another --work")
        try:
            saved = cls(folder, **json.loads((folder / FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return cls(folder, asked, bundle, release_id)
        goes_on = saved.asked == asked and release_id in (saved.release_id, *saved.made)
        return saved if goes_on else cls(folder, asked, bundle, release_id)

    def prepare(self) -> None:
        """Makes the folder; what another command left there goes."""
        if not self.done:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, mode=0o700, exist_ok=True)
        self._save()

    def begin(self, name: str, inputs: str, *later: str) -> bool:
        """Notes what a step is given; if that is new, it and those after it have to run again, and True comes back."""
        if self.inputs.get(name) == inputs:
            return False
        self.inputs[name] = inputs
        self.forget(name, *later)
        return True

    def step(self, name: str, run: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], bool]:
        """What the step gave, and whether it ran just now; a step that was done before is not run again."""
        if name in self.done:
            return self.done[name], False
        began = time.perf_counter()
        given = run()
        self.done[name] = {"seconds": round(time.perf_counter() - began, 1), **given}
        self._save()
        return self.done[name], True

    def forget(self, *names: str) -> None:
        """These steps have to run again."""
        self.done = {name: given for name, given in self.done.items() if name not in names}
        self._save()

    def remove(self) -> None:
        """All was done: nobody's events stay behind."""
        shutil.rmtree(self.folder)

    def _save(self) -> None:
        saved = {name: value for name, value in asdict(self).items() if name != "folder"}
        aside = self.folder / f".{FILE}"
        aside.write_text(json.dumps(saved, indent=2), encoding="utf-8")
        aside.replace(self.folder / FILE)
