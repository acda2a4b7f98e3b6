"""The key that hides who was erased: a file outside the data directory."""

import os
import secrets
from pathlib import Path

from server.errors import StartupError
from server.journal.database import sync_directory

_KEY_BYTES = 32
_OTHERS = 0o077  # what group and others may do


def key_path(data: Path, configured: Path | None) -> Path:
    """Where the key of a data directory is: as configured (erasure.key_file), or beside it, named as it is.

    Raises StartupError if that lies inside the data directory: whoever had a copy of it could tell who was erased.
    """
    data = data.resolve()
    path = (configured or data.with_name(data.name + ".erasure-key")).resolve()
    if path.is_relative_to(data):
        raise StartupError(
            f"the erasure key {path} lies inside the data directory; move it out and set erasure.key_file to its new place"
        )
    return path


def read_key(path: Path, *, may_make: bool) -> bytes:
    """The key. may_make: makes one if there is none, readable by its owner alone. Raises StartupError."""
    try:
        if may_make and not path.exists():
            _make(path)
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            key = file.read(_KEY_BYTES + 1)
    except FileNotFoundError:
        raise StartupError(
            f"the erasure key {path} is missing, but people were erased or withdrew consent, which could be undone without it: "
            "put the file back, or set erasure.key_file to its place"
        ) from None
    except OSError as error:
        raise StartupError(
            f"cannot use the erasure key {path}: {error.strerror}; "
            "check its permissions, or set erasure.key_file to another place"
        ) from None
    if mode & _OTHERS:
        raise StartupError(f"the erasure key {path} can be used by others than its owner; run chmod 600 {path}")
    if len(key) != _KEY_BYTES:
        raise StartupError(f"the erasure key {path} must have {_KEY_BYTES} bytes; put the right file back")
    return key


def _make(path: Path) -> None:
    # Aside first, so that a crash leaves no key cut short.
    aside = path.with_name(f"{path.name}.{secrets.token_hex(6)}.new")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(descriptor, secrets.token_bytes(_KEY_BYTES))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    try:
        os.link(aside, path)  # unlike a rename, it does not replace a key that another process has just made
    except FileExistsError:
        pass
    finally:
        aside.unlink()
    sync_directory(path.parent)
