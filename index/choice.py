"""Which way of searching serves a catalogue: one answer at start, with its reason."""

import importlib.metadata
from collections.abc import Callable
from typing import NamedTuple

KINDS = ("auto", "exact", "ivf", "faiss-ivf", "faiss-gpu")
EXACT_ON_CPU_MAX = 50_000
"""Items up to which `auto` compares with every row on a CPU: there the scan takes about as long as the rest of a call."""
_OF_ITS_OWN = "in an environment of its own"
_PACKAGES = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu11", "faiss-gpu-cu12", "faiss-gpu-cuvs")


class ChoiceError(Exception):
    """The configured index cannot be had here: one line that says why and what to do."""


class FaissBuild(NamedTuple):
    """The FAISS that is installed."""

    packages: tuple[str, ...]  # installed wheels that bring a faiss folder; conda's is none
    version: str = ""  # of what can be imported; "" if nothing can
    on_gpu: bool = False  # whether the folder that was imported is a GPU build

    def check(self) -> None:
        """Raises ChoiceError if more than one wheel is installed: they own the same folder and overwrite each other."""
        if len(self.packages) > 1:
            raise ChoiceError(
                f"{' and '.join(self.packages)} are both installed and overwrite each other's files; "
                f"pip uninstall both, then install the cpu or the gpu extra, {_OF_ITS_OWN}"
            )
        if self.version and self.packages and (self.packages[0] != "faiss-cpu") != self.on_gpu:
            built = "GPUs" if self.on_gpu else "CPUs"
            raise ChoiceError(
                f"{self.packages[0]} is installed but its files are a build for {built}, left by another wheel; "
                f"install the cpu or the gpu extra again, {_OF_ITS_OWN}"
            )


class Choice(NamedTuple):
    kind: str  # one of `KINDS`, but "auto"
    why: str  # for the line that is printed at start

    def __str__(self) -> str:
        return f"index {self.kind}: {self.why}"


def installed_faiss() -> FaissBuild:
    """Looks at the wheels and at what is imported as faiss."""
    packages = tuple(name for name in _PACKAGES if _is_installed(name))
    try:
        import faiss
    except ImportError:
        return FaissBuild(packages)
    return FaissBuild(packages, faiss.__version__, "GPU" in faiss.get_compile_options().split())


def choose(kind: str, *, items: int, device: str, faiss: FaissBuild, why_not_native: Callable[[], str]) -> Choice:
    """The engine for a catalogue of `items` on `device` ("cpu", "cuda", "cuda:1").

    kind: what is configured, one of `KINDS`. "auto" never asks for what is not installed. why_not_native: what stands against
    native code, "" for nothing: `index.native.library.why_not`, which takes a second the first time and is asked only if it
    decides. What is chosen is chosen at start and stays: an index that grows past a threshold is chosen anew at the next start.
    Raises ChoiceError for what cannot be had.
    """
    faiss.check()
    if kind not in KINDS:
        raise ChoiceError(f"there is no index {kind!r}; choose one of {', '.join(KINDS)}")
    on_gpu = device.startswith("cuda")
    if kind == "auto":
        return _automatic(items, on_gpu, faiss, why_not_native)
    if kind in ("ivf", "faiss-ivf"):
        if on_gpu:
            # Its lists lie in the host's memory: every batch would wait for copies, and filters are cheaper by exact search.
            raise ChoiceError(f"{kind} searches on the CPU and the device is {device}; use exact, or --device cpu")
        _need(bool(faiss.version), f"{kind} needs FAISS", "cpu")
    if kind == "ivf" and (why_not := why_not_native()):
        raise ChoiceError(f"ivf is native code, and {why_not}, or use faiss-ivf")
    if kind == "faiss-gpu":
        if not on_gpu:
            raise ChoiceError("faiss-gpu searches on a GPU and the device is cpu; use --device cuda, or ivf")
        _need(faiss.on_gpu, "faiss-gpu needs FAISS's GPU build", "gpu")
    return Choice(kind, "as configured")


def _automatic(items: int, on_gpu: bool, faiss: FaissBuild, why_not_native: Callable[[], str]) -> Choice:
    if on_gpu:  # FAISS's brute force took 8 to 69 times as long for 1 and 10 million rows on an H200: docs/gpu/h200.md
        return Choice("exact", f"{items:,} items, on a GPU")
    if items <= EXACT_ON_CPU_MAX:
        return Choice("exact", f"{items:,} items, at most {EXACT_ON_CPU_MAX:,} on a CPU")
    above = f"{items:,} items, more than {EXACT_ON_CPU_MAX:,} on a CPU"
    if faiss.version:
        why_not = why_not_native()
        return Choice("faiss-ivf", f"{above}; {why_not} to search faster") if why_not else Choice("ivf", above)
    return Choice("exact", f"{above}, but {_cure('cpu')} to search faster")


def _need(there: bool, what: str, extra: str) -> None:
    if not there:
        raise ChoiceError(f"{what}, which is not installed; {_cure(extra)}")


def _cure(extra: str) -> str:
    return f"pip install -e '.[{extra}]', {_OF_ITS_OWN},"


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
