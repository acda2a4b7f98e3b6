"""The audit log: who made which call of consequence, one JSON object a line, on disk before the caller is answered."""

import errno
import hmac
import json
import logging
import os
import queue
import secrets
import stat
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

from server.errors import StartupError
from server.journal.database import sync_directory
from server.security.keys import Caller

FILE_NAME = "audit.jsonl"
SALT_NAME = "audit.salt"
IN_CLEAR = frozenset({"bundle", "release_id", "expected_live_release_id"})
"""Details that say nothing about people. The value of any other is kept as a keyed hash."""
_SALT_BYTES = 32
_LONGEST = 512  # characters of a value in clear
_log = logging.getLogger(__name__)
_Waiting: TypeAlias = "tuple[bytes, Future[None]]"


class AuditLog:
    """Appends lines from a thread of its own, and syncs whatever waits at once. Any thread may write.

    A full disk refuses lines until there is space; after a failed sync every line is refused, since nobody knows what is on
    disk. The file may be renamed at any time: the next line begins another.
    """

    def __init__(self, folder: Path, clock: Callable[[], int]) -> None:
        """clock: microseconds since 1970, UTC. Makes the folder and its files. Raises StartupError."""
        self._path = folder / FILE_NAME
        self._clock = clock
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._salt = _salt(folder / SALT_NAME)
            self._descriptor = _open(self._path)
        except OSError as error:
            raise StartupError(f"cannot write the audit log {self._path}: {error.strerror}; check the directory") from None
        self._failed = False
        self._closed = False
        self._lock = threading.Lock()  # so that nothing is queued behind the end
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    def write(self, caller: Caller | None, method: str, peer: str, code: str, details: Mapping[str, str]) -> "Future[None]":
        """Appends a line; the result is there when it is on disk, and OSError if it is not to be had there.

        caller: None for a call without a valid key. code: such as "OK". details: what was asked for, hashed unless IN_CLEAR.
        """
        line = {
            "time": f"{datetime.fromtimestamp(self._clock() / 1e6, UTC):%Y-%m-%dT%H:%M:%S.%fZ}",
            "tenant": caller and caller.tenant,
            "name": caller and caller.name,
            "key_id": caller and caller.key_id,
            "method": method,
            "peer": peer,
            "code": code,
            "details": {name: self._shown(name, value) for name, value in details.items()},
        }
        done: Future[None] = Future()
        done.set_running_or_notify_cancel()  # a caller who is gone cannot take a line back
        with self._lock:
            if self._closed:
                done.set_exception(OSError("the audit log is closed"))
            else:
                self._queue.put((json.dumps(line).encode() + b"\n", done))
        return done

    def hashed(self, name: str, value: str) -> str:
        """What stands for a person's id in the log: with the salt one can tell whether it was this id, and no more."""
        return hmac.digest(self._salt, f"{name}:{value}".encode("utf-8", "surrogateescape"), "sha256").hex()

    def close(self) -> None:
        """Writes what waits, and ends."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._queue.put(None)
        self._thread.join()
        os.close(self._descriptor)

    def _shown(self, name: str, value: str) -> str:
        return value[:_LONGEST] if name in IN_CLEAR else f"hmac-sha256:{self.hashed(name, value)}"

    def _run(self) -> None:
        ended = False
        while not ended:
            waiting = [self._queue.get()]
            while not self._queue.empty():  # this thread alone takes from it
                waiting.append(self._queue.get())
            ended = waiting[-1] is None
            lines = [one for one in waiting if one is not None]
            if lines:
                self._answer(lines)

    def _answer(self, lines: list[_Waiting]) -> None:
        try:
            self._append(b"".join(line for line, _ in lines))
        except OSError as error:
            _log.error("the audit log %s cannot be written, and calls that belong into it are refused: %s", self._path, error)
            for _, done in lines:
                done.set_exception(error)
        else:
            for _, done in lines:
                done.set_result(None)

    def _append(self, text: bytes) -> None:
        if self._failed:
            raise OSError("an earlier write failed halfway; mend the disk and restart the server")
        self._follow()
        size = os.fstat(self._descriptor).st_size
        rest = memoryview(text)
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError:
            if len(rest) < len(text):
                self._or_fail(lambda: os.ftruncate(self._descriptor, size))  # half a line is none
            raise
        self._or_fail(lambda: os.fsync(self._descriptor))

    def _or_fail(self, step: Callable[[], None]) -> None:
        try:
            step()
        except OSError:
            self._failed = True
            raise

    def _follow(self) -> None:
        """Opens the file again if it was renamed or removed."""
        try:
            found, ours = self._path.stat(), os.fstat(self._descriptor)
            moved = (found.st_dev, found.st_ino) != (ours.st_dev, ours.st_ino)
        except FileNotFoundError:
            moved = True
        if moved:
            descriptor = _open(self._path)
            os.close(self._descriptor)
            self._descriptor = descriptor


def _open(path: Path) -> int:
    """Opens the log to append, and takes away half a line that a crash left: its call was not answered."""
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        os.fchmod(descriptor, 0o600)
        end = os.fstat(descriptor).st_size
        whole = _end_of_last_line(descriptor, end)
        if whole < end:
            _log.warning("%s ended in half a line, which a crash left; it is removed", path)
            os.ftruncate(descriptor, whole)
        os.fsync(descriptor)
        sync_directory(path.parent)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _end_of_last_line(descriptor: int, end: int) -> int:
    """Where the last whole line ends, in bytes."""
    while end:
        start = max(0, end - 65_536)
        at = os.pread(descriptor, end - start, start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        end = start
    return 0


def _salt(path: Path) -> bytes:
    """The key of the hashes, made if there is none."""
    if not path.exists():
        aside = path.with_name(f"{path.name}.{secrets.token_hex(6)}.new")
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(_SALT_BYTES))
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        sync_directory(path.parent)
    salt = path.read_bytes()
    if len(salt) != _SALT_BYTES:
        raise StartupError(f"{path} must have {_SALT_BYTES} bytes; put a copy back, or remove it: ids get other hashes then")
    return salt
