"""What can be wrong with a bundle.

BundleError                 one line: "<path>: <file>: <what is wrong>; <what to do>"
├── BundleMissingError      no bundle there
├── BundleTornError         a file is missing, edited, truncated or not listed in the manifest
├── BundleVersionError      written by a newer Towerbridge, or no format this one knows
├── BundleUnsafeError       a file could run code when loaded (a pickle, a foreign operator, a link out of the bundle)
└── BundleInvalidError      whole, but not a bundle: wrong shape, type or value, duplicate ids, golden vectors missed
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class BundleError(Exception):
    """A bundle, or one of its files, is refused. `str()` is one line for an operator."""

    def __init__(self, file: str, problem: str, cure: str, path: Path | None = None) -> None:
        super().__init__(file, problem, cure)
        self.file = file
        self.problem = problem
        self.cure = cure
        self.path = path

    def __str__(self) -> str:
        parts = [str(self.path)] if self.path is not None else []
        parts += [self.file] if self.file else []
        line = f"{': '.join([*parts, self.problem])}; {self.cure}"
        return " ".join(line.split())


class BundleMissingError(BundleError):
    """There is no bundle at this path."""


class BundleTornError(BundleError):
    """The files are not those the manifest was written for."""


class BundleVersionError(BundleError):
    """The format is newer than this Towerbridge, or none that it knows."""


class BundleUnsafeError(BundleError):
    """Loading the file could run code that is not ours."""


class BundleInvalidError(BundleError):
    """The files are whole but their contents do not fit the format or each other."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give every BundleError raised inside the path of the bundle it is about, unless it already names one."""
    try:
        yield
    except BundleError as error:
        error.path = error.path or path
        raise
