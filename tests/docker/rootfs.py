"""An image's files and processes without Docker: its steps, run in a folder.

What comes from package indexes (base image, apt, pip) is what the tests run on; everything of ours is copied, built and started
as the Dockerfile says, with the image's environment and nothing else of this one's.
"""

import os
import re
import shlex
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from shutil import copy2
from typing import IO, NamedTuple

from tests.docker.dockerfile import ROOT, Stage, context, stages

SERVER = ROOT / "docker" / "server.Dockerfile"
VENV = "/opt/venv"
HERE = {
    "TOWERBRIDGE__LISTEN__HOST": "127.0.0.1",
    "TOWERBRIDGE__LISTEN__PORT": "0",
    "TOWERBRIDGE__METRICS__HOST": "127.0.0.1",
    "TOWERBRIDGE__METRICS__PORT": "0",
}
"""Free ports of this machine alone, instead of the image's own."""
_READY = "is ready on port "


class Rootfs:
    """The image of a Dockerfile's last stage in `folder`; `stage` is what was read of it."""

    def __init__(self, dockerfile: Path, folder: Path, **arguments: str) -> None:
        self.folder = folder
        all_stages = stages(dockerfile, **arguments)
        self.stage = list(all_stages.values())[-1]
        self.workdir = "/"
        self.path("/tmp").mkdir(parents=True)
        if "packages" in all_stages:
            self._run(all_stages["packages"], folder.with_name(f"{folder.name}.packages"))
        self._copy_context(self.stage, self.folder)

    def path(self, inside: str) -> Path:
        """Where a path of the image lies here."""
        return self.folder / inside.removeprefix("/")

    def environment(self, **changes: str) -> dict[str, str]:
        """The image's variables; paths in them are those here."""
        variables = self.stage.environment | changes
        ours = {name: str(self.path(value)) if value.startswith("/") else value for name, value in variables.items()}
        return ours | {"PATH": f"{self.path(VENV)}/bin:/usr/bin:/bin", "TMPDIR": str(self.path("/tmp"))}

    def start(
        self, command: Sequence[str], *, stderr: IO[str] | int = subprocess.PIPE, **changes: str
    ) -> "subprocess.Popen[str]":
        """Starts a command of the image, such as its ENTRYPOINT and CMD."""
        environment = self.environment(**changes)
        program = Path(environment["PATH"].split(os.pathsep)[0]) / command[0]
        return subprocess.Popen(
            [str(program), *command[1:]],
            cwd=self.path(self.workdir),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )

    def run(self, command: Sequence[str], **changes: str) -> "subprocess.CompletedProcess[str]":
        """Runs a command of the image to its end."""
        with self.start(command, **changes) as process:
            out, errors = process.communicate(timeout=120)
        return subprocess.CompletedProcess(command, process.returncode, out, errors)

    def files(self, *, but: Iterable[str]) -> set[str]:
        """All files but those below some paths."""
        left_out = [self.path(inside) for inside in but]
        found = (path for path in self.folder.rglob("*") if not path.is_dir())
        return {str(path) for path in found if not any(path.is_relative_to(one) for one in left_out)}

    def _run(self, stage: Stage, source: Path) -> None:
        """The stage that makes the environment: the packages that are installed here, and our wheel, built from its copies."""
        self._copy_context(stage, source)
        venv.create(self.path(VENV), with_pip=False)
        site = Path(sysconfig.get_path("purelib", vars={"base": str(self.path(VENV)), "platbase": str(self.path(VENV))}))
        # The packages alone: .pth files there, such as that of an editable install, are not read.
        (site / "installed.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
        workdir = source / stage.last("WORKDIR").removeprefix("/")
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(source / "dist")]
        subprocess.run(command, cwd=workdir, check=True, capture_output=True, timeout=120)
        [wheel] = (source / "dist").glob("*.whl")
        with zipfile.ZipFile(wheel) as opened:
            opened.extractall(site)

    def _copy_context(self, stage: Stage, folder: Path) -> None:
        """WORKDIR, COPY from the context, and the folders that RUN makes."""
        files, workdir = context(), "/"
        for name, rest in stage.instructions:
            if name == "WORKDIR":
                workdir = rest
                (folder / workdir.removeprefix("/")).mkdir(parents=True, exist_ok=True)
            elif name == "RUN":
                for made in made_folders(rest):
                    (folder / made.removeprefix("/")).mkdir(parents=True, exist_ok=True)
            elif name == "COPY" and not rest.startswith("--from="):
                *sources, target = shlex.split(rest)
                _copy(files, sources, folder / str(PurePosixPath(workdir, target)).removeprefix("/"), target)
        self.workdir = workdir


def made_folders(run: str) -> dict[str, Mapping[str, str]]:
    """The folders that `install --directory` makes in a RUN, with its options."""
    made: dict[str, Mapping[str, str]] = {}
    for command in run.split("&&"):
        words = shlex.split(command)
        if words[:2] == ["install", "--directory"]:
            options = dict(re.findall(r"--(owner|group|mode) (\S+)", command))
            made |= {word: options for word in words if word.startswith("/")}
    return made


def _copy(files: list[Path], sources: list[str], target: Path, named: str) -> None:
    for source in sources:
        chosen = [file for file in files if file == Path(source) or Path(source) in file.parents]
        assert chosen, f"COPY {source}: the context has no such file; see .dockerignore"
        for file in chosen:
            inside = target / file.name if named.endswith("/") else target / file.relative_to(source)
            inside.parent.mkdir(parents=True, exist_ok=True)
            copy2(ROOT / file, inside)


class Running(NamedTuple):
    """A server's process, and its port."""

    process: "subprocess.Popen[str]"
    port: str


@contextmanager
def running(server: Rootfs, **changes: str) -> Iterator[Running]:
    """The command of the server's image; killed at the end if it has not ended."""
    command = [*server.stage.command("ENTRYPOINT"), *server.stage.command("CMD")]
    log = server.folder.with_name("server.log")
    with log.open("w", encoding="utf-8") as errors, server.start(command, stderr=errors, **changes) as process:
        try:
            assert process.stdout is not None
            ready = process.stdout.readline()
            assert _READY in ready, ready + log.read_text(encoding="utf-8")
            yield Running(process, ready.split(_READY)[1].split(":")[0])
        finally:
            process.kill()
