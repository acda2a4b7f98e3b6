"""A disk that loses what was not synced when the power fails, as a SQLite VFS (APSW).

Files are real files in a real directory, so that SQLite reads what it wrote. Beside them the model keeps what a disk surely
holds (what was synced) and what it may hold (every write, truncation, creation and removal since). `Disk.image` writes what
could be found after a power loss: the sure part and a random part of the rest, in which each write may be torn at sectors.

Covered: unsynced data, lost or reordered; torn writes, also of a sector that holds garbage; files whose name was not synced;
full disks; failing disks. Not covered: a disk that lies about syncs, and bits that rot later.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import apsw

SECTOR = 512
_REAL = "unix"


@dataclass
class Inode:
    """A file's content: what is surely on disk, and what was done to it since, in order."""

    synced: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)  # (offset, data), or (size, None) for a truncation

    def sync(self) -> None:
        for offset, data in self.pending:
            _apply(self.synced, offset, data)
        self.pending.clear()

    def after_power_loss(self, random: Random) -> bytes:
        """The sure part, and a random part of the rest."""
        content = bytearray(self.synced)
        survival = random.choice((0.0, 0.5, 0.5, 0.9, 1.0))
        for offset, data in self.pending:
            if random.random() >= survival:
                continue
            if data is None or random.random() < 0.5:
                _apply(content, offset, data)
            else:
                _apply_torn(content, offset, data, random)
        return bytes(content)


class Disk:
    """The disk under one directory; `name` is the VFS that opens files on it. What is in the directory now is taken as synced.

    `watch` is called with ("write" | "sync" | "truncate" | "delete" | "synced", the file's name) before each operation is sure
    to be on disk, and after each sync; it may call `image`, or raise apsw.FullError or apsw.IOError to fail the operation.
    All calls come on the thread that uses the connection.
    """

    def __init__(self, directory: Path, name: str = "power-loss", *, default: bool = False) -> None:
        """default: every connection that names no VFS opens its files on this one, until `close`."""
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory.resolve()
        self.name = name
        self.watch: Callable[[str, str], None] = lambda operation, file: None
        self._live = {path.name: Inode(bytearray(path.read_bytes())) for path in _files(self.directory)}
        self._durable = dict(self._live)  # what the directory holds on disk, by name
        self._vfs = _Vfs(self, default)

    def close(self) -> None:
        self._vfs.unregister()

    def inode(self, path: str) -> Inode | None:
        return self._live.get(self._name(path))

    def opened(self, path: str) -> None:
        """A file was opened, and made if it was not there."""
        self._live.setdefault(self._name(path), Inode())

    def write(self, path: str, offset: int, data: bytes) -> None:
        self._change("write", self._name(path), offset, data)

    def truncate(self, path: str, size: int) -> None:
        self._change("truncate", self._name(path), size, None)

    def sync(self, path: str, *, with_name: bool) -> None:
        name = self._name(path)
        self.watch("sync", name)
        self._live[name].sync()
        if with_name:
            self.sync_directory()
        self.watch("synced", name)

    def delete(self, path: str, *, sync: bool) -> None:
        self.watch("delete", self._name(path))
        self._live.pop(self._name(path), None)
        if sync:
            self.sync_directory()

    def sync_directory(self) -> None:
        self._durable = dict(self._live)

    def image(self, target: Path, random: Random) -> None:
        """Writes what a reader could find after a power loss now."""
        target.mkdir(parents=True)
        for name in sorted(self._live.keys() | self._durable.keys()):
            durable, live = self._durable.get(name), self._live.get(name)
            found = durable if durable is live or random.random() < 0.5 else live
            if found is not None:
                (target / name).write_bytes(found.after_power_loss(random))

    @contextmanager
    def seeing_directory_syncs(self) -> Iterator[None]:
        """Sees the fsyncs of the directory that are done by Python rather than by SQLite."""
        real = os.fsync

        def fsync(descriptor: int) -> None:
            real(descriptor)
            if Path(f"/proc/self/fd/{descriptor}").resolve() == self.directory:
                self.sync_directory()

        os.fsync = fsync  # type: ignore[assignment]
        try:
            yield
        finally:
            os.fsync = real

    def _change(self, operation: str, name: str, offset: int, data: bytes | None) -> None:
        pending = self._live[name].pending
        pending.append((offset, data))
        try:
            self.watch(operation, name)
        except BaseException:
            pending.pop()  # the operation failed and changed nothing
            raise

    def _name(self, path: str) -> str:
        return Path(path).name


class _Vfs(apsw.VFS):
    def __init__(self, disk: Disk, default: bool) -> None:
        self._disk = disk
        super().__init__(disk.name, _REAL, default)

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:
        if name is None:  # a temporary file, which nothing needs after a power loss
            return apsw.VFSFile(_REAL, None, flags)
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        file = _File(self._disk, path, name, flags)
        self._disk.opened(path)
        return file

    def xDelete(self, filename: str, syncdir: bool) -> None:
        self._disk.delete(filename, sync=syncdir)
        super().xDelete(filename, syncdir)


class _File(apsw.VFSFile):
    def __init__(self, disk: Disk, path: str, name: str | apsw.URIFilename, flags: list[int]) -> None:
        # As SQLite's unix VFS does: the first sync of a new log or journal syncs the directory too, a database's does not.
        logs = apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_MAIN_JOURNAL | apsw.SQLITE_OPEN_SUPER_JOURNAL
        self._name_to_sync = bool(flags[0] & apsw.SQLITE_OPEN_CREATE and flags[0] & logs)
        self._disk = disk
        self._path = path
        super().__init__(_REAL, name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:
        self._disk.write(self._path, offset, bytes(data))
        super().xWrite(data, offset)

    def xTruncate(self, newsize: int) -> None:
        self._disk.truncate(self._path, newsize)
        super().xTruncate(newsize)

    def xSync(self, flags: int) -> None:
        self._disk.sync(self._path, with_name=self._name_to_sync)
        self._name_to_sync = False
        # The real file needs no sync: only the model's disk loses power.


def _files(directory: Path) -> list[Path]:
    return [path for path in directory.iterdir() if path.is_file() and not path.name.endswith(("-shm", "lock"))]


def _apply(content: bytearray, offset: int, data: bytes | None) -> None:
    if data is None:
        if len(content) > offset:
            del content[offset:]
        return
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(data)] = data


def _apply_torn(content: bytearray, offset: int, data: bytes, random: Random) -> None:
    """Some of the sectors that a write touches: each was written, was not, or holds garbage where the write was to go."""
    start = offset
    while start < offset + len(data):
        end = min(start // SECTOR * SECTOR + SECTOR, offset + len(data))
        chance = random.random()
        if chance < 0.5:
            _apply(content, start, data[start - offset : end - offset])
        elif chance < 0.6:
            _apply(content, start, random.randbytes(end - start))
        start = end
