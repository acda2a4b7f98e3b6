"""What a refresh has done so far, so that the same command goes on where it failed."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.errors import ConfigError

FILE = "refresh.json"


@dataclass
class Record:
    """The working folder of one refresh, which only its owner can read: it holds people's events until all is done.

    `asked` is what the command was given; another command begins anew.
    """

    folder: Path
    asked: dict[str, str]
    done: dict[str, Any] = field(default_factory=dict)  # step -> {"seconds", and what later steps need of it}

    @classmethod
    def read(cls, folder: Path, asked: dict[str, str]) -> "Record":
        """What an earlier run of the same command left in a folder, else an empty record. Raises ConfigError."""
        if folder.exists() and not (folder / FILE).is_file():
            raise ConfigError(f"{folder}: is there and no refresh made it; remove it, or give another --work")
        try:
            saved = json.loads((folder / FILE).read_text(encoding="utf-8"))
            return cls(folder, asked, saved["done"] if saved["asked"] == asked else {})
        except (OSError, ValueError, KeyError, TypeError):
            return cls(folder, asked)

    def prepare(self) -> None:
        """Makes the folder; what another command left there goes."""
        if not self.done:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, mode=0o700, exist_ok=True)
        self._save()

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
        aside = self.folder / f".{FILE}"
        aside.write_text(json.dumps({"asked": self.asked, "done": self.done}, indent=2), encoding="utf-8")
        aside.replace(self.folder / FILE)
