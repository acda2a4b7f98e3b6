"""The writer thread: group commit, publication in commit order, and what is left after a failure."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

import apsw
import pytest

from server.errors import Unavailable
from server.journal.database import JournalFile, open_journal
from server.journal.events import USER, Event, Outcome, Person, RecordEvents, Status, StoredEvent
from server.journal.migrations import event_hash
from server.journal.writer import JournalWriter, Transaction
from tests.server.people_world import Everyone

PATIENCE_S = 10.0


class Note:
    """A write that leaves one event behind and says what happens to it, in order."""

    def __init__(self, name: str, log: list[str], *, rows: int = 1, person: str = "p") -> None:
        self.rows = rows
        self.alone = False
        self.name = name
        self.log = log
        self._write = RecordEvents([event(name, person=person)], 0, Everyone(), accept_all)

    def commit(self, transaction: Transaction) -> None:
        self.log.append(f"commit {self.name}")
        self._write.commit(transaction)

    def publish(self) -> int:
        self.log.append(f"publish {self.name}")
        return self._write.publish()[0].position


class Held(Note):
    """Occupies the writer inside its commit until it is let go, so that others queue up behind it."""

    def __init__(self, log: list[str]) -> None:
        super().__init__("held", log)
        self.reached = threading.Event()
        self.let_go = threading.Event()

    def commit(self, transaction: Transaction) -> None:
        super().commit(transaction)
        self.reached.set()
        self.let_go.wait(PATIENCE_S)


class Failing(Note):
    """Writes, then fails: inside the transaction, or when it is published."""

    def __init__(self, name: str, log: list[str], *, error: BaseException, in_publish: bool = False) -> None:
        super().__init__(name, log)
        self._error = error
        self._in_publish = in_publish

    def commit(self, transaction: Transaction) -> None:
        super().commit(transaction)
        if not self._in_publish:
            raise self._error

    def publish(self) -> int:
        if self._in_publish:
            raise self._error
        return super().publish()


def event(event_id: str, *, person: str = "p", item: str = "i", occurred_us: int = 5) -> Event:
    return Event(event_id, Person(USER, person), item, "view", occurred_us)


def accept_all(new: Sequence[tuple[StoredEvent, Person]]) -> list[Status]:
    return [Status.ACCEPTED] * len(new)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[JournalFile]:
    opened = open_journal(tmp_path / "tenant")
    yield opened
    opened.close()


class Commits:
    """Counts the transactions that were committed."""

    count = 0

    def __call__(self) -> bool:
        self.count += 1
        return False


@pytest.fixture
def commits(file: JournalFile) -> Commits:
    counter = Commits()
    file.connection.set_commit_hook(counter)
    return counter


@pytest.fixture
def writer(file: JournalFile, commits: Commits) -> Iterator[JournalWriter]:
    started = JournalWriter(file)
    started.start()
    yield started
    started.close()


def hold(writer: JournalWriter, log: list[str]) -> tuple[Held, Future[int]]:
    held = Held(log)
    future = writer.submit(held)
    assert held.reached.wait(PATIENCE_S)
    return held, future


def stored(file: JournalFile) -> dict[bytes, int]:
    """Positions by hash of event_id."""
    rows = file.connection.execute("SELECT event_hash, events.position FROM event_ids JOIN events USING (event_hash)")
    return {row[0]: row[1] for row in rows}


def hashed(file: JournalFile, positions: dict[str, int]) -> dict[bytes, int]:
    return {event_hash(file.event_key, event_id): position for event_id, position in positions.items()}


def test_writes_that_arrive_during_a_commit_become_one_transaction_in_order(writer: JournalWriter, commits: Commits):
    log: list[str] = []
    held, first = hold(writer, log)
    futures = [writer.submit(Note(name, log)) for name in "abcde"]
    held.let_go.set()
    assert [future.result(PATIENCE_S) for future in [first, *futures]] == [1, 2, 3, 4, 5, 6]
    assert commits.count == 2, "one for the write that was alone, one for the five behind it"
    assert log == ["commit held", "publish held", *(f"commit {n}" for n in "abcde"), *(f"publish {n}" for n in "abcde")]


def test_a_group_is_bounded_by_rows_and_a_larger_write_goes_alone(file: JournalFile, commits: Commits):
    writer = JournalWriter(file, max_group_rows=4)
    writer.start()
    log: list[str] = []
    held, _ = hold(writer, log)
    futures = [writer.submit(Note(name, log, rows=rows)) for name, rows in (("a", 2), ("b", 2), ("c", 1), ("d", 9), ("e", 4))]
    held.let_go.set()
    assert [future.result(PATIENCE_S) for future in futures] == [2, 3, 4, 5, 6]
    assert commits.count == 1 + 4, "held; a and b; c; d; e"
    assert log[2:6] == ["commit a", "commit b", "publish a", "publish b"]
    writer.close()


def test_nothing_is_published_before_it_is_committed_and_the_revision_follows_publication(
    file: JournalFile, commits: Commits, writer: JournalWriter
):
    seen: list[tuple[int, int, str]] = []

    class Watching(Note):
        def publish(self) -> int:
            reader = apsw.Connection(str(file.path), flags=apsw.SQLITE_OPEN_READONLY)
            [row] = reader.execute(
                "SELECT count(*) FROM event_ids WHERE event_hash = ?", (event_hash(file.event_key, self.name),)
            )
            reader.close()
            seen.append((row[0], writer.revision, self.name))
            return super().publish()

    position = writer.submit(Watching("first", [])).result(PATIENCE_S)
    assert seen == [(1, 0, "first")]
    assert writer.revision == position == 1


@pytest.mark.parametrize("where", [0, 1, 2])
def test_a_failing_write_keeps_nothing_of_itself_and_does_not_fail_its_neighbours(
    file: JournalFile, writer: JournalWriter, where: int, caplog: pytest.LogCaptureFixture
):
    log: list[str] = []
    held, _ = hold(writer, log)
    notes: list[Note] = [Note(name, log) for name in "abc"]
    notes[where] = Failing("bad", log, error=ValueError("refused by the test"))
    futures = [writer.submit(note) for note in notes]
    held.let_go.set()
    with pytest.raises(ValueError, match="refused by the test"):
        futures[where].result(PATIENCE_S)
    good = [future.result(PATIENCE_S) for place, future in enumerate(futures) if place != where]
    assert good == [2, 3], "a write that failed takes no position"
    kept = {note.name: future.result(0) for note, future in zip(notes, futures, strict=True) if note.name != "bad"}
    assert stored(file) == hashed(file, {"held": 1, **kept})
    assert [line for line in log if line.startswith("publish")][1:] == [
        f"publish {note.name}" for note in notes if note.name != "bad"
    ]
    assert "a write failed" in caplog.text


def test_positions_are_never_reused_and_stay_in_step_with_the_file(file: JournalFile, writer: JournalWriter):
    positions = []
    for number in range(20):
        failing = Failing(f"bad-{number}", [], error=ValueError("no"))
        with pytest.raises(ValueError, match="no"):
            writer.submit(failing).result(PATIENCE_S)
        positions.append(writer.submit(Note(f"good-{number}", [])).result(PATIENCE_S))
    assert positions == sorted(set(positions))
    assert file.head == writer.revision == positions[-1]
    assert sorted(stored(file).values()) == positions


def test_a_write_that_stands_alone_shares_its_transaction_with_no_other(writer: JournalWriter, commits: Commits):
    log: list[str] = []
    held, _ = hold(writer, log)
    notes = [Note(name, log) for name in "abcd"]
    notes[1].alone = True
    futures = [writer.submit(note) for note in notes]
    held.let_go.set()
    assert [future.result(PATIENCE_S) for future in futures] == [2, 3, 4, 5]
    assert commits.count == 4, "held; a; b; c and d"
    assert log[2:] == ["commit a", "publish a", "commit b", "publish b", "commit c", "commit d", "publish c", "publish d"]


def test_a_duplicate_of_an_uncommitted_event_waits_for_it_and_gets_its_revision(writer: JournalWriter):
    held, _ = hold(writer, [])
    original = writer.submit(RecordEvents([event("once")], 0, Everyone(), accept_all))
    repeat = writer.submit(RecordEvents([event("other"), event("once")], 0, Everyone(), accept_all))
    clash = writer.submit(RecordEvents([event("once", item="another item")], 0, Everyone(), accept_all))
    assert not repeat.done()
    held.let_go.set()
    assert original.result(PATIENCE_S) == [Outcome(Status.ACCEPTED, 2)]
    assert repeat.result(PATIENCE_S) == [Outcome(Status.ACCEPTED, 3), Outcome(Status.DUPLICATE, 2)]
    assert clash.result(PATIENCE_S) == [Outcome(Status.CLASH, 0)]


def test_a_repeat_of_an_event_that_was_rolled_back_is_the_original(writer: JournalWriter):
    class Rolled(RecordEvents):
        def commit(self, transaction: Transaction) -> None:
            super().commit(transaction)
            raise ValueError("after the insert")

    held, _ = hold(writer, [])
    lost = writer.submit(Rolled([event("again")], 0, Everyone(), accept_all))
    kept = writer.submit(RecordEvents([event("again")], 0, Everyone(), accept_all))
    held.let_go.set()
    with pytest.raises(ValueError, match="after the insert"):
        lost.result(PATIENCE_S)
    assert kept.result(PATIENCE_S) == [Outcome(Status.ACCEPTED, 2)]


def test_what_is_published_is_exactly_what_is_new(writer: JournalWriter):
    published: list[str] = []

    def publish(new: Sequence[tuple[StoredEvent, Person]]) -> list[Status]:
        published.extend(one.item_id for one, _ in new)
        return [Status.UNKNOWN_ITEM] * len(new)

    first = [event("e1", item="a"), event("e1", item="a"), event("e2", item="b"), event("e1", item="c")]
    outcomes = writer.submit(RecordEvents(first, 0, Everyone(), publish)).result(PATIENCE_S)
    assert [one.status for one in outcomes] == [Status.UNKNOWN_ITEM, Status.DUPLICATE, Status.UNKNOWN_ITEM, Status.CLASH]
    assert published == ["a", "b"]


def test_a_failed_publication_fails_its_group_and_all_that_wait_and_is_told(
    file: JournalFile, commits: Commits, caplog: pytest.LogCaptureFixture
):
    died = threading.Event()
    writer = JournalWriter(file, max_group_rows=2, on_death=died.set)
    writer.start()
    held, first = hold(writer, [])
    bad = writer.submit(Failing("bad", [], error=RuntimeError("views are broken"), in_publish=True))
    neighbour = writer.submit(Note("neighbour", []))
    behind = writer.submit(Note("behind", []))
    held.let_go.set()
    assert died.wait(PATIENCE_S)
    assert first.result(PATIENCE_S) == 1
    for future in (bad, neighbour, behind):
        with pytest.raises(Unavailable, match="must be restarted"):
            future.result(PATIENCE_S)
    with pytest.raises(Unavailable, match="takes no more writes"):
        writer.submit(Note("later", []))
    assert stored(file).keys() == hashed(file, dict.fromkeys(("held", "bad", "neighbour"), 0)).keys(), (
        "on disk, so a restart publishes it"
    )
    assert "the journal's writer died" in caplog.text


def test_close_writes_what_is_queued_and_takes_nothing_more(file: JournalFile, commits: Commits):
    writer = JournalWriter(file, max_group_rows=2)
    writer.start()
    held, _ = hold(writer, [])
    futures = [writer.submit(Note(name, [])) for name in "abcde"]
    closing = threading.Thread(target=writer.close)
    closing.start()
    held.let_go.set()
    closing.join(PATIENCE_S)
    assert not closing.is_alive()
    assert [future.result(0) for future in futures] == [2, 3, 4, 5, 6]
    with pytest.raises(Unavailable):
        writer.submit(Note("late", []))
    JournalWriter(file).close()  # nor does closing what never started do harm


def test_concurrent_writers_get_every_position_exactly_once(file: JournalFile, writer: JournalWriter):
    futures: list[Future[int]] = []
    lock = threading.Lock()

    def submit(thread: int) -> None:
        for number in range(50):
            future = writer.submit(Note(f"{thread}-{number}", [], person=f"person-{thread}"))
            with lock:
                futures.append(future)

    threads = [threading.Thread(target=submit, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert sorted(future.result(PATIENCE_S) for future in futures) == list(range(1, 201))


@pytest.mark.parametrize(("error", "says"), [(apsw.FullError("x"), "disk is full")])
def test_a_disk_that_fails_is_reported_as_unavailable_with_what_to_do(
    writer: JournalWriter, error: Exception, says: str, caplog: pytest.LogCaptureFixture
):
    with pytest.raises(Unavailable, match=says):
        writer.submit(Failing("bad", [], error=error)).result(PATIENCE_S)
    assert writer.submit(Note("after", [])).result(PATIENCE_S) == 1
    [said] = [record for record in caplog.records if "a write failed" in record.message]
    assert says in said.message and not said.exc_info  # a traceback for every write would fill what is full already
