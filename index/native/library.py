"""Compiles `lists.cpp` for the processor that it is to run on, and loads it: once a process, when it is first needed."""

import ctypes
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

_SOURCE = Path(__file__).with_name("lists.cpp")
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared")
_LONGEST_SECONDS = 120.0
_COUNT, _INT, _POINTER = ctypes.c_int64, ctypes.c_int, ctypes.c_void_p
_FUNCTIONS: dict[str, tuple[type | None, tuple[type, ...]]] = {
    "lists_new": (_POINTER, (_COUNT, _COUNT, _POINTER)),
    "lists_free": (None, (_POINTER,)),
    "lists_bytes": (_COUNT, (_POINTER,)),
    "lists_add": (_INT, (_POINTER, _COUNT, _POINTER, _POINTER, _POINTER)),
    "lists_remove": (None, (_POINTER, _COUNT, _POINTER, _POINTER)),
    "lists_search": (
        _INT,
        (_POINTER, _POINTER, _COUNT, _POINTER, _COUNT, _COUNT, _COUNT, _POINTER, _POINTER),
    ),
    "lists_search_in": (
        _INT,
        (_POINTER, _POINTER, _POINTER, _COUNT, _POINTER, _COUNT, _POINTER, _COUNT, _POINTER, _POINTER),
    ),
    "lists_near": (_COUNT, (_POINTER, _POINTER, _COUNT, _COUNT, _COUNT, _POINTER)),
}


class NativeError(Exception):
    """There is no native code here: one line that says why, and what to do."""


def library() -> ctypes.CDLL:
    """The functions of `lists.cpp`; calls of them let other threads run. Raises NativeError.

    Takes a second the first time in a process: nothing is kept on disk, so there is nothing that others could replace.
    """
    loaded = _load()
    if isinstance(loaded, str):
        raise NativeError(loaded)
    return loaded


def why_not() -> str:
    """Why there is no native code here; "" if there is. Compiles it, if nobody has."""
    loaded = _load()
    return loaded if isinstance(loaded, str) else ""


@cache
def _load() -> ctypes.CDLL | str:
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return f"there is no C++ compiler {compiler!r}; install g++"
    with tempfile.TemporaryDirectory(prefix="towerbridge-") as folder:
        made = Path(folder, "lists.so")
        try:
            subprocess.run(
                [compiler, *_FLAGS, str(_SOURCE), "-o", str(made)],
                check=True,
                capture_output=True,
                text=True,
                timeout=_LONGEST_SECONDS,
            )
            loaded = ctypes.CDLL(str(made))
        except subprocess.CalledProcessError as error:
            said = (
                [line for line in error.stderr.splitlines() if "error" in line] or error.stderr.splitlines() or ["no message"]
            )
            return f"{compiler} cannot compile {_SOURCE.name}: {said[0]}"
        except (OSError, subprocess.SubprocessError) as error:
            return f"{_SOURCE.name} cannot be compiled and loaded: {error}"
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    return loaded
