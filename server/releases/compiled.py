"""The user tower as native code for this CPU: compiled aside, checked, kept on disk.

`python -m server.releases.compiled BUNDLE OUT` is the process that compiles.
"""

import argparse
import hashlib
import logging
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

from index.bundle import Bundle, BundleError, check_user_tower, read_user_tower
from index.bundle.files import file_sha256
from server.engine.engine import Engine
from server.errors import Unavailable
from server.releases.release import Release

_log = logging.getLogger(__name__)
_LONGEST_SECONDS = 900.0
_KEPT = 4  # towers on disk: the live one, the one before it, and a pair to choose from
_WORK = "compiling-"
_CPUINFO = Path("/proc/cpuinfo")


class CompiledTower(torch.nn.Module):
    """A user tower out of AOTInductor: ten times as fast for one person, and the interpreter's lock is free meanwhile."""

    def __init__(self, path: Path) -> None:
        """Loads native code, which is executed: whoever calls has checked where it comes from."""
        super().__init__()
        # What torch._inductor's own loader wraps; importing that would hold up a running server for a second.
        self._loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self._loader.run(list(inputs))[0]


class TowerCompiler:
    """Has the user towers of releases compiled, and used as soon as they are.

    Whatever goes wrong on the way costs one line in the log: the exported program goes on then. Compiling takes a process of
    low priority and about fifteen seconds, once for a bundle, a version of torch and a kind of CPU; its result is kept under
    `folder`, which nobody else may write, with its sha256.
    """

    def __init__(self, folder: Path, engine: Engine, *, threads: int = 1) -> None:
        """threads: of one computation."""
        self._folder = folder
        self._engine = engine
        self._threads = threads
        self._lock = threading.Lock()
        self._closing = False
        self._process: subprocess.Popen[str] | None = None
        self._turn = threading.Lock()  # one at a time
        self._workers: list[threading.Thread] = []

    def use(self, release: Release, *, wait: bool = False) -> None:
        """Has the release use its compiled tower: at once if it was compiled before, else when it is, in the background.

        wait: until it is, or cannot be.
        """
        if release.device.type != "cpu" or not release.has_user_tower:
            return
        path = self._path(release.bundle)
        if path.exists() and self._take_up(release, path):
            return
        worker = threading.Thread(target=self._compile, args=(release, path), name="tower-compiler", daemon=True)
        with self._lock:
            self._workers = [one for one in self._workers if one.is_alive()] + [worker]
        worker.start()
        if wait:
            worker.join()

    def wait(self) -> None:
        """Until nothing is being compiled."""
        for worker in list(self._workers):
            worker.join()

    def close(self) -> None:
        """Ends what is being compiled."""
        with self._lock:
            self._closing = True
            if self._process is not None:
                _kill(self._process)
        self.wait()

    def _path(self, bundle: Bundle) -> Path:
        what = "\n".join((bundle.release_id, torch.__version__, _cpu(), str(self._threads)))
        return self._folder / f"{bundle.release_id[:16]}-{hashlib.sha256(what.encode()).hexdigest()[:16]}.pt2"

    def _take_up(self, release: Release, path: Path) -> bool:
        """Loads, checks and uses a tower from disk; if it may not be used, deletes it."""
        try:
            _check_private(self._folder)
            if _noted(path).read_text().strip() != file_sha256(path):
                raise OSError(f"{path.name} is damaged: its sha256 is not the one noted beside it")
            tower = CompiledTower(path)
            passed = check_user_tower(release.bundle, tower)
        except (OSError, RuntimeError, BundleError) as error:
            _log.warning("the compiled user tower is not used, and deleted: %s", _first_line(error))
            path.unlink(missing_ok=True)
            return False
        try:
            self._engine.call(lambda: release.use_user_tower(tower))
        except Unavailable:
            return True  # the server stops
        path.touch()
        _log.info("release %s uses its compiled user tower: golden users, %s", release.release_id, passed)
        return True

    def _compile(self, release: Release, path: Path) -> None:
        with self._turn:
            if self._closing or (path.exists() and self._take_up(release, path)):
                return
            try:
                self._run(release.bundle.path, path)
            except (OSError, subprocess.SubprocessError) as error:
                if not self._closing:
                    _log.warning("release %s goes on with its exported user tower: %s", release.release_id, _first_line(error))
                return
            self._take_up(release, path)
            self._prune()

    def _run(self, bundle: Path, path: Path) -> None:
        """Compiles in a process. Raises OSError or SubprocessError, with what to do."""
        compiler = os.environ.get("CXX", "g++")
        if shutil.which(compiler) is None:
            raise OSError(f"there is no C++ compiler {compiler!r}; install g++, or set engine.compile: false")
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_private(self._folder)
        for left in self._folder.glob(f"{_WORK}*"):  # by a server that was killed
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=_WORK, dir=self._folder) as work:
            made = Path(work, "tower.pt2")
            command = [sys.executable, "-m", "server.releases.compiled", str(bundle.absolute()), str(made)]
            with self._lock:
                if self._closing:
                    return
                self._process = subprocess.Popen(
                    command, env=self._environment(work), stderr=subprocess.PIPE, text=True, start_new_session=True
                )
            try:
                _, said = self._process.communicate(timeout=_LONGEST_SECONDS)
            except subprocess.TimeoutExpired:
                _kill(self._process)
                self._process.communicate()
                raise OSError(f"it was not compiled after {_LONGEST_SECONDS:.0f} s") from None
            finally:
                with self._lock:
                    process, self._process = self._process, None
            if process.returncode != 0:
                raise OSError(f"it could not be compiled: {_last_line(said) or f'exit status {process.returncode}'}")
            _noted(path).write_text(file_sha256(made) + "\n")
            made.replace(path)  # last, so that what is there has its sha256

    def _environment(self, work: str) -> dict[str, str]:
        # Nothing that others may write is read: inductor keeps code in /tmp otherwise.
        own = {"TORCHINDUCTOR_CACHE_DIR": work, "TMPDIR": work, "TORCHINDUCTOR_COMPILE_THREADS": "1", "MAX_JOBS": "1"}
        path = os.pathsep.join(one or str(Path.cwd()) for one in sys.path)
        return {**os.environ, **own, "PYTHONPATH": path, "OMP_NUM_THREADS": str(self._threads)}

    def _prune(self) -> None:
        kept = sorted(self._folder.glob("*.pt2"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in kept[_KEPT:]:
            path.unlink(missing_ok=True)
            _noted(path).unlink(missing_ok=True)


def compile_user_tower(bundle: Bundle, path: Path) -> None:
    """Writes the bundle's user tower as native code for this CPU. Raises BundleError if it does not give the golden vectors."""
    program, longest = bundle.user_program, bundle.manifest.history_length
    if program is None or longest is None:
        raise ValueError("the bundle has no user tower")
    rows, width = 2, min(longest, 3)
    examples = (
        torch.zeros(rows, width, bundle.manifest.dim),
        torch.zeros(rows, width, dtype=torch.int64),
        torch.zeros(rows, width),
        torch.tensor([width, 1]),
    )
    program.example_inputs = (examples, {})  # a bundle keeps none; rows and width stay free
    from torch._inductor import aoti_compile_and_package  # here: it takes a second, and the server needs none of it

    # Precompiled headers pay from the second tower on, and are 300 MB.
    options = {"freezing": True, "aot_inductor.precompile_headers": False}
    aoti_compile_and_package(program, package_path=str(path), inductor_configs=options)
    check_user_tower(bundle, CompiledTower(path))  # in this process: native code that crashes must not do it in the server


def main(arguments: Sequence[str] | None = None) -> int:
    """Compiles at the lowest priority; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m server.releases.compiled", description=__doc__)
    parser.add_argument("bundle", type=Path, help="a bundle that was checked before")
    parser.add_argument("out", type=Path, help="where to write the compiled tower, a .pt2")
    options = parser.parse_args(arguments)
    os.nice(19)
    try:
        compile_user_tower(read_user_tower(options.bundle), options.out)
    except Exception as error:  # inductor raises whatever it meets, and the server logs one line
        print(f"{type(error).__name__}: {_first_line(error)}", file=sys.stderr)
        return 1
    return 0


def _cpu() -> str:
    """What code for this CPU may use."""
    lines = _CPUINFO.read_text().splitlines() if _CPUINFO.exists() else []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} {features}"


def _check_private(folder: Path) -> None:
    """Native code is executed: nobody else may have put it there. Raises OSError."""
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise OSError(f"others may write to {folder}; chmod 700 it, or remove it")


def _noted(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _kill(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # it has started the compiler


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1][:300]


if __name__ == "__main__":
    sys.exit(main())
