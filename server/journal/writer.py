"""The one writer thread: group commit, then publication in commit order."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any, Generic, Protocol, TypeVar

import apsw

from server.errors import ServiceError, Unavailable
from server.journal.database import JournalFile
from server.telemetry.stages import StageFigures

_log = logging.getLogger(__name__)
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Transaction:
    """What a write may do inside a transaction: run SQL and take positions in the journal's one sequence.

    `head` is the last position taken, `event_key` what event_ids are hashed with, `created` the people whom this transaction
    wrote: no view knows them before it is committed. `withdrawn` is the file's.
    """

    def __init__(self, file: JournalFile) -> None:
        self.connection = file.connection
        self.head = file.head
        self.event_key = file.event_key
        self.created: dict[Any, int] = {}
        self.withdrawn = file.withdrawn

    def execute(self, sql: str, values: tuple[Any, ...] = ()) -> apsw.Cursor:
        return self.connection.execute(sql, values)

    def changed(self, sql: str, values: tuple[Any, ...]) -> bool:
        """Runs an INSERT, UPDATE or DELETE; whether it changed a row."""
        self.connection.execute(sql, values)
        return self.connection.changes() > 0

    def next_position(self) -> int:
        self.head += 1
        return self.head


class Write(Protocol[T_co]):
    """Something to be written. `rows` is its weight in a group.

    alone: True for what changes who may be written about (consent, links, erasure): it gets a group of its own, so that the
    views that other writes ask while they are committed include it.
    """

    rows: int
    alone: bool

    def commit(self, transaction: Transaction) -> None:
        """Writes inside the transaction. It may be run again from the start, if the group's first attempt failed."""
        ...

    def publish(self) -> T_co:
        """Applies what was committed to the in-memory views; called once, in commit order.

        It must not fail: if it does, because the engine has died for example, the journal stops too, since views that lag
        behind what is on disk can be mended by a restart only.
        """
        ...


class _Waiting(Generic[T]):
    def __init__(self, write: Write[T]) -> None:
        self.write = write
        self.since = time.monotonic()
        self.future: Future[T] = Future()


class JournalWriter:
    """Commits what is waiting as one transaction, as soon as the one before is done; nothing waits for a timer.

    So a lone write costs one fsync, and under load a group shares one. Order: validate (the caller) -> commit -> publish to the
    views -> complete the futures. `revision` is the last position whose effects the views show.
    """

    def __init__(
        self,
        file: JournalFile,
        *,
        max_group_rows: int = 4096,
        on_death: Callable[[], None] = lambda: None,
        waited: Callable[[float], None] = lambda seconds: None,
        stages: StageFigures | None = None,
    ) -> None:
        """waited: told, for each group, how many seconds its first write waited to be written."""
        self._file = file
        self._waited = waited
        self._stages = stages if stages is not None else StageFigures()
        self._max_group_rows = max_group_rows
        self._on_death = on_death
        self._queue: deque[_Waiting[Any]] = deque()
        self._taken: list[_Waiting[Any]] = []  # the group that is being written
        self._wake = threading.Condition()
        self._stopping = False
        self._dead = False
        self.epoch = file.epoch
        self.revision = file.head
        self._thread = threading.Thread(target=self._run, name="journal-writer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, write: Write[T]) -> Future[T]:
        """Queues a write. The future ends after the commit is on disk and the views show it."""
        waiting = _Waiting(write)
        with self._wake:
            if self._stopping or self._dead:
                raise Unavailable("the journal takes no more writes: the server is stopping or its disk failed")
            self._queue.append(waiting)
            self._wake.notify()
        return waiting.future

    def close(self) -> None:
        """Writes what is queued and stops the thread; the file stays open."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            while group := self._next_group():
                self._taken = group
                self._write(group)
        except BaseException:
            _log.critical("the journal's writer died; the server must be restarted", exc_info=True)
            self._die()

    def _next_group(self) -> list[_Waiting[Any]]:
        """What is waiting, up to the size of a group; nothing means stop."""
        group: list[_Waiting[Any]] = []
        rows = 0
        with self._wake:
            while not group:
                while not self._queue:
                    if self._stopping:
                        return []
                    self._wake.wait()
                while self._queue and self._fits(group, rows):
                    waiting = self._queue.popleft()
                    if waiting.future.set_running_or_notify_cancel():  # false if its caller left before it was begun
                        rows += waiting.write.rows
                        group.append(waiting)
        self._waited(time.monotonic() - group[0].since)
        return group

    def _fits(self, group: list[_Waiting[Any]], rows: int) -> bool:
        """Whether the next write may go into the group."""
        if not group:
            return True
        following = self._queue[0].write
        return not (following.alone or group[-1].write.alone) and rows + following.rows <= self._max_group_rows

    def _write(self, group: list[_Waiting[Any]]) -> None:
        try:
            self._commit(group)
        except Exception as error:
            if _is_fatal(error) or self._file.connection.in_transaction:
                raise
            if len(group) == 1:
                if not isinstance(error, ServiceError):  # which is the caller's to know
                    # Of a full disk no traceback: it says nothing more, and would go to a disk that may be the same.
                    is_full = isinstance(error, apsw.FullError)
                    _log.error("a write failed; nothing of it was kept: %s", _for_caller(error), exc_info=not is_full)
                group[0].future.set_exception(_for_caller(error))
                return
            # One bad write must not fail its neighbours: each gets a transaction of its own.
            for waiting in group:
                self._write([waiting])
            return
        self._publish(group)

    def _commit(self, group: list[_Waiting[Any]]) -> None:
        connection = self._file.connection
        transaction = Transaction(self._file)
        connection.execute("BEGIN IMMEDIATE")
        try:
            for waiting in group:
                waiting.write.commit(transaction)
            transaction.execute("UPDATE meta SET value = ? WHERE key = 'head'", (transaction.head,))
            started = time.monotonic()
            connection.execute("COMMIT")
            self._stages.fsync.observe(time.monotonic() - started)
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        self._file.head = transaction.head

    def _publish(self, group: list[_Waiting[Any]]) -> None:
        results: list[Any] = []
        try:
            results.extend(waiting.write.publish() for waiting in group)
        except BaseException:
            # On disk but not in the views: only a restart, which rebuilds them, can be trusted now.
            for waiting in group:
                waiting.future.set_exception(Unavailable("the server must be restarted; repeat the call then"))
            raise
        self.revision = self._file.head
        for waiting, result in zip(group, results, strict=True):
            waiting.future.set_result(result)

    def _die(self) -> None:
        with self._wake:
            self._dead = True
            waiting = [*self._taken, *self._queue]
            self._queue.clear()
        try:
            for one in waiting:
                with suppress(InvalidStateError):  # it is done, or its caller has just left
                    one.future.set_exception(Unavailable("the journal's writer died; the server must be restarted"))
        finally:
            self._on_death()


def _is_fatal(error: Exception) -> bool:
    """Whether what is on disk is unknown, so that only a restart, which reads it, can be trusted.

    After a failed fsync the kernel may drop what was not written and say of the next one that all is well. A failed write is
    not of this kind: nothing was asked to be on disk yet.
    """
    if isinstance(error, apsw.IOError):
        return getattr(error, "extendedresult", 0) != apsw.SQLITE_IOERR_WRITE
    return isinstance(error, (apsw.CorruptError, apsw.NotADBError))


def _for_caller(error: Exception) -> Exception:
    if isinstance(error, apsw.FullError):
        return Unavailable("the disk is full: nothing was written; free space and repeat the call")
    if isinstance(error, apsw.IOError):
        return Unavailable("the disk takes no writes: nothing was written; mend it and repeat the call")
    return error
