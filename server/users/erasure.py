"""A person is forgotten: from the journal, from memory and from backups, with a receipt for each."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from server.config import Config
from server.engine.engine import Engine
from server.errors import Unavailable
from server.fields import DAY_US
from server.journal.database import JournalFile
from server.journal.erase import Erased, ErasePeople, FreeSpace, OnWriter, Swept
from server.journal.events import HeldEvent, Person
from server.journal.removal import STORES
from server.journal.scrub import Scrubbed, list_backups, scrub_backups
from server.journal.tombstones import Tombstones
from server.journal.writer import JournalWriter
from server.releases.releases import Releases
from server.users.changes import PeopleChanges
from server.users.people import People

_AT_ONCE = 2_000  # pages cleared by one write, some 30 ms
_READERS_SECONDS = 30.0  # how long to wait for whoever reads the journal in one long transaction
_PAUSE_SECONDS = 0.1
_STOPPING = "the server is stopping; repeat the call elsewhere"


class Receipt(NamedTuple):
    """What was removed from one store."""

    store: str
    removed: int
    detail: str


class Forgotten(NamedTuple):
    """An erasure that is done."""

    erased: Erased
    receipts: list[Receipt]


class _InMemory(NamedTuple):
    erased: Erased
    histories: int
    vectors: int


class Erasure:
    """Erases people, one after the other, in a thread of its own: it waits for the journal, the engine and the disk."""

    def __init__(
        self,
        file: JournalFile,
        journal: JournalWriter,
        people: People,
        changes: PeopleChanges,
        engine: Engine,
        releases: Releases,
        tombstones: Tombstones,
        config: Config,
        clock_us: Callable[[], int],
    ) -> None:
        self._file = file
        self._journal = journal
        self._people = people
        self._changes = changes
        self._engine = engine
        self._releases = releases
        self._tombstones = tombstones
        self._retry_us = config.journal.event_id_days * DAY_US
        self._scrubs = config.erasure.backups == "scrub"
        self._clock_us = clock_us
        self._free_space = FreeSpace(file)
        self._waiting: dict[Person, Future[Forgotten]] = {}  # those whose turn has not come
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="erasure")

    def erase(self, person: Person) -> Future[Forgotten]:
        """Erases a person and all ids linked to them. Safe to repeat. It is done, too, if whoever waits for it leaves.

        The future cannot be cancelled; calls for a person whose turn has not come share one. It fails with Unavailable if
        something could not be cleaned; what is gone by then is gone, and stays so.
        """
        waiting = self._waiting.get(person)
        if waiting is not None:
            return waiting
        done: Future[Forgotten] = Future()
        done.set_running_or_notify_cancel()
        self._waiting[person] = done
        try:
            self._thread.submit(self._erase, person).add_done_callback(lambda work: self._hand_over(person, work, done))
        except RuntimeError:
            del self._waiting[person]
            raise Unavailable(_STOPPING) from None
        return done

    def close(self) -> None:
        """Ends what has begun; those who wait get Unavailable. Before the journal's writer is closed."""
        self._thread.shutdown(cancel_futures=True)

    def _hand_over(self, person: Person, work: Future[Forgotten], done: Future[Forgotten]) -> None:
        if work.cancelled():
            self._waiting.pop(person, None)
            done.set_exception(Unavailable(_STOPPING))
        elif (error := work.exception()) is not None:
            done.set_exception(error)
        else:
            done.set_result(work.result())

    def _erase(self, person: Person) -> Forgotten:
        self._waiting.pop(person, None)  # before anything is done: later calls are for what comes later
        write = ErasePeople(
            person,
            self._file,
            self._tombstones,
            self._people.directory,
            clock_us=self._clock_us,
            retry_us=self._retry_us,
            publish=self._forget,
        )
        done = self._journal.submit(write).result()
        self._engine.call(lambda: None).result()  # behind the call that drops the vectors
        problems = []
        pages = self._clear_free_space()
        if pages is None:
            problems.append("the journal's log, which somebody reads in one long transaction (a backup or an export)")
        scrubbed = self._scrub(done.erased)
        problems += [f"the backup {one.name} ({one.problem})" for one in scrubbed if one.problem]
        if problems:
            raise Unavailable(f"erased, but not yet cleaned: {'; '.join(problems)}. Repeat the call, which is safe")
        return Forgotten(done.erased, [*_receipts(done, pages or 0), *self._of_backups(scrubbed)])

    def _forget(self, erased: Erased, events: Sequence[HeldEvent]) -> _InMemory:
        """For the thread that writes, once the journal holds them no more."""
        held = sum(key in release.user_vectors for release in self._releases.held for key in erased.keys)
        before = self._people.in_memory
        keys = self._people.erased(list(zip(erased.people, erased.keys, strict=False)), events)
        self._changes.outdated(keys)
        return _InMemory(erased, max(0, before - self._people.in_memory), held)

    def _clear_free_space(self) -> int | None:
        """How many pages held something that was deleted; None if the log could not be emptied."""
        cleared = 0
        found: list[int] = []
        settled = False
        try:
            for some in self._free_space.find():
                found += some
                if len(found) >= _AT_ONCE:
                    if not self._until_done(self._free_space.clear, found):
                        return None
                    cleared, found = cleared + len(found), []
            settled = self._until_done(self._free_space.settle, found)
            if settled:
                self._journal.submit(Swept()).result()
        finally:
            if not settled:
                self._journal.submit(self._free_space.give_up()).result()
        return cleared + len(found) if settled else None

    def _until_done(self, step: Callable[[Sequence[int]], OnWriter], pages: Sequence[int]) -> bool:
        until = time.monotonic() + _READERS_SECONDS
        while not self._journal.submit(step(pages)).result():
            if time.monotonic() > until:
                return False
            time.sleep(_PAUSE_SECONDS)
        return True

    def _scrub(self, erased: Erased) -> list[Scrubbed]:
        directory = self._file.path.parent
        if not self._scrubs:
            return [Scrubbed(path.name, 0) for path in list_backups(directory)]
        return scrub_backups(directory, erased.people, erased.erased_us, self._tombstones)

    def _of_backups(self, scrubbed: Sequence[Scrubbed]) -> list[Receipt]:
        kept = "kept as it is (erasure.backups: keep); they are removed when it is restored"
        return [Receipt(one.name, one.rows, _scrubbed(one) if self._scrubs else kept) for one in scrubbed]


def _scrubbed(one: Scrubbed) -> str:
    return "rows removed" if one.rows else "held nothing of them"


def _receipts(done: _InMemory, pages: int) -> list[Receipt]:
    rows = done.erased.rows
    return [
        Receipt("tombstones", len(done.erased.people), "keyed hashes; events up to erased_at are refused"),
        *(Receipt(store, rows[store], "deleted from the journal") for store in STORES),
        Receipt("histories", done.histories, "dropped from memory"),
        Receipt("vectors", done.vectors, "dropped from memory"),
        Receipt("journal checkpoint", pages, "log emptied; pages whose free space was made zero"),
    ]
