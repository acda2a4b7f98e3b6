"""The server's own commands, each in a process of its own: training never imports the server."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.errors import RefreshError

ROOT = Path(__file__).parents[2]
KEY_VARIABLE = "TOWERBRIDGE_API_KEY"


@dataclass(frozen=True)
class Journal:
    """The data directory of a server, and whose journal in it."""

    data: Path
    tenant: str = "default"
    config: Path | None = None  # the server's settings
    erasure_key: Path | None = None

    def export(self, events: Path, items: Path | None) -> str:
        """Writes the events of those who consented to training, and the catalogue -> what the command said."""
        more = [] if items is None else ["--items", str(items)]
        return _run("server.journal", "export", "--out", str(events), *more, *self._where())

    def screen(self, events: Path) -> str:
        """Takes those out of an export who were erased or withdrew since -> what the command said."""
        return _run("server.journal", "screen", str(events), *self._where())

    def _where(self) -> list[str]:
        where = ["--data", str(self.data), "--tenant", self.tenant]
        for flag, path in (("--config", self.config), ("--erasure-key", self.erasure_key)):
            where += [] if path is None else [flag, str(path)]
        return where


@dataclass(frozen=True)
class Server:
    """A running server and how to call it."""

    target: str
    flags: tuple[str, ...] = ()  # of python -m server.release
    key_file: Path | None = None

    def live_bundle(self) -> Path:
        """The directory of the live release, as the server sees it."""
        for one in self._release("list").get("releases", []):
            if one["state"] == "RELEASE_STATE_LIVE":
                return Path(one["bundle"])
        raise RefreshError(f"{self.target} has no live release; give --bundle")

    def load(self, bundle: str) -> str:
        """Loads a bundle beside the live one, and waits -> its release id. Loading what is held does nothing."""
        return str(self._release("load", bundle)["release"]["release_id"])

    def promote(self, release_id: str) -> str | None:
        """Makes a loaded release the live one -> the release that was live before."""
        before = self._release("promote", release_id).get("previous_release_id")
        return None if before is None else str(before)

    def _release(self, *arguments: str) -> dict[str, Any]:
        key = None if self.key_file is None else _read_key(self.key_file)
        answer = json.loads(_run("server.release", *arguments, "--json", "--target", self.target, *self.flags, key=key))
        if not isinstance(answer, dict):
            raise RefreshError(f"server.release answered {str(answer)[:80]}, which is no object")
        return answer


def _read_key(path: Path) -> str:
    text = path.read_text(encoding="utf-8").strip()
    if not text:
        raise RefreshError(f"{path}: is empty; put an API key with the role admin into it")
    return text


def _run(module: str, *arguments: str, key: str | None = None) -> str:
    """`python -m module arguments` -> its standard output. Raises RefreshError with its last word.

    A key goes by the environment, where other users of the machine do not see it.
    """
    if not (ROOT / module.replace(".", "/")).exists() and not (ROOT / f"{module.replace('.', '/')}.py").is_file():
        raise RefreshError(
            f"{module} is not installed beside training; run it where it is, and give --events or leave --target out"
        )
    search = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": search} | ({} if key is None else {KEY_VARIABLE: key})
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit status {done.returncode}"]
        raise RefreshError(said[-1].removeprefix("error: "))
    return done.stdout
