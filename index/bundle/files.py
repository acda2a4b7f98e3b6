"""The bundle as files: what lies in its directory, its digests, and bytes that are read once."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from index.bundle.errors import BundleInvalidError, BundleTornError, BundleUnsafeError
from index.bundle.format import INNER_PATH, MANIFEST, MODEL_CARD, MODEL_CARD_BYTES, UNLISTED_FILES, FileEntry

_COPY_AGAIN = "copy the bundle again from where it was written"


def inner_files(root: Path) -> list[str]:
    """Relative POSIX paths of all files under `root`, sorted; BundleUnsafeError for a link or a special file."""
    names = []
    for folder, folders, files in os.walk(root):
        for name in [*folders, *files]:
            path = Path(folder, name)
            inner = path.relative_to(root).as_posix()
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                raise BundleUnsafeError(inner, "is a link or a special file", "copy the file itself into the bundle")
            if path.is_file():
                names.append(inner)
    return sorted(names)


def file_sha256(path: Path) -> str:
    """Hex digest of a file, read in blocks."""
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def file_entries(root: Path) -> dict[str, FileEntry]:
    """Digest and size of every file under `root` but the manifest and the model card, sorted by path."""
    return {
        name: FileEntry(sha256=file_sha256(root / name), bytes=(root / name).stat().st_size)
        for name in inner_files(root)
        if name not in UNLISTED_FILES
    }


def check_listing(root: Path, entries: Mapping[str, FileEntry]) -> None:
    """Refuse a directory whose files are not exactly those listed, by name and size, and at most a model card."""
    for name in entries:
        if not INNER_PATH.fullmatch(name) or name in UNLISTED_FILES:
            raise BundleInvalidError(MANIFEST, f"lists {name[:80]!r}, which is no path of a bundle", _COPY_AGAIN)
    present = set(inner_files(root))
    if MODEL_CARD in present and (root / MODEL_CARD).stat().st_size > MODEL_CARD_BYTES:
        raise BundleInvalidError(MODEL_CARD, f"has more than {MODEL_CARD_BYTES} bytes", "remove it, or write less")
    present -= set(UNLISTED_FILES)
    for name in sorted(set(entries) - present):
        raise BundleTornError(name, "is missing", _COPY_AGAIN)
    for name in sorted(present - set(entries)):
        raise BundleTornError(name, "is not listed in the manifest", "remove it, or write the bundle again")
    for name, entry in entries.items():
        size = (root / name).stat().st_size
        if size != entry.bytes:
            raise BundleTornError(name, f"has {size} bytes, the manifest says {entry.bytes}", _COPY_AGAIN)


def read_checked(root: Path, name: str, entry: FileEntry, *, verify: bool) -> bytes:
    """The bytes of a file, read once: what is hashed here is what the caller parses."""
    data = (root / name).read_bytes()
    if verify and hashlib.sha256(data).hexdigest() != entry.sha256:
        raise _edited(name)
    return data


def check_digest(root: Path, name: str, entry: FileEntry) -> None:
    """Refuse a file whose digest is not the manifest's, without keeping its bytes."""
    if file_sha256(root / name) != entry.sha256:
        raise _edited(name)


def copy_tree(source: Path, target: Path) -> None:
    """Copy the files of `source` to the new directory `target`, with fresh times and permissions."""
    for name in inner_files(source):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)


def sync_tree(root: Path) -> None:
    """Force every file and directory under `root`, and `root` itself, to disk."""
    for folder, _, files in os.walk(root):
        for name in files:
            _sync(Path(folder, name))
        _sync(Path(folder))


def sync_directory(path: Path) -> None:
    """Force the entries of one directory to disk, so that a rename in it survives a crash."""
    _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _edited(name: str) -> BundleTornError:
    return BundleTornError(name, "is not the file the manifest was written for (sha256 differs)", _COPY_AGAIN)
