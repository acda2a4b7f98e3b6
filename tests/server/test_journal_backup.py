"""Backups while a server writes, and restoring them: whole, once, and without those who were erased."""

import shutil
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from random import Random

import apsw
import pytest
import towerbridge
from towerbridge import v1

from server.errors import StartupError
from server.journal.backup import back_up
from server.journal.database import FILE_NAME, RESTORING, open_journal
from server.journal.events import Person
from server.journal.restore import restore
from server.journal.tombstones import open_tombstones
from server.journal.verify import verify
from tests.server.conftest import NOW_US, Serve
from tests.server.power_loss import Disk
from tests.server.producer import PATIENCE_S, Producer, journal, problems
from tests.server.releasing import wait_until

GOLDEN = Path(__file__).parent / "golden_journal_v1" / FILE_NAME
DUPLICATE, ACCEPTED = v1.EventStatus.EVENT_STATUS_DUPLICATE, v1.EventStatus.EVENT_STATUS_ACCEPTED


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "data" / "default"


def produce(directory: Path, producer: Producer, batches: int = 3) -> None:
    with journal(directory) as (_, writer, people):
        for _ in range(batches):
            producer.submit(writer, people, producer.batch()).result(PATIENCE_S)


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "server.journal", *(str(argument) for argument in arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def meta(path: Path) -> dict[str, object]:
    with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
        return dict(connection.execute("SELECT key, value FROM meta"))


class Sending:
    """Sends events from two threads, one after the other in each, until it is stopped; notes those that were acknowledged."""

    def __init__(self, client: towerbridge.Client) -> None:
        self.sent: list[v1.Event] = []
        self.revisions: dict[str, str] = {}
        self._client = client
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(number,)) for number in range(2)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)

    def _send(self, thread: int) -> None:
        number = 0
        while not self._stopping.is_set():
            event = towerbridge.event("view", f"item-{number % 50}", user_id=f"user-{thread}", event_id=f"{thread}-{number}")
            self.sent.append(event)
            [result] = self._client.record_events([event]).results
            self.revisions[event.event_id] = result.revision
            number += 1


def test_a_backup_made_while_events_come_in_is_whole_and_holds_all_that_was_acknowledged_before(serve: Serve, tmp_path: Path):
    served = serve()
    sending = Sending(served.client)
    while len(sending.revisions) < 50:
        pass
    before, backup = dict(sending.revisions), tmp_path / "copy.sqlite"
    made = run("backup", "--data", tmp_path / "data", "--out", backup)
    sending.stop()
    assert made.returncode == 0, made.stderr
    assert len(sending.revisions) > len(before), "the server went on"
    assert [path.name for path in tmp_path.glob("copy*")] == ["copy.sqlite"], "one file, with nothing beside it"
    found = verify(backup)
    assert not found.problems
    assert len(before) <= found.counts["events"] <= len(sending.sent)

    serve.stop(served)  # type: ignore[attr-defined]
    restored = run("restore", backup, "--data", tmp_path / "data", "--replace")
    assert restored.returncode == 0, restored.stderr
    again = serve()
    in_backup = found.counts["events"]
    results = again.client.record_events(sending.sent).results
    statuses = [result.status for result in results]
    assert statuses.count(DUPLICATE) == in_backup
    assert statuses.count(ACCEPTED) == len(sending.sent) - in_backup
    known = {event.event_id for event, status in zip(sending.sent, statuses, strict=True) if status == DUPLICATE}
    assert before.keys() <= known
    counts = [again.client.get_user(user_id=f"user-{thread}").event_count for thread in range(2)]
    assert sum(counts) == len(sending.sent), "each once"


def test_a_revision_from_before_the_restore_is_refused_and_new_ones_are_not(serve: Serve, tmp_path: Path):
    served = serve()
    served.client.record_events([towerbridge.event("view", "item-1", user_id="u", event_id="first")])
    assert run("backup", "--data", tmp_path / "data", "--out", tmp_path / "copy.sqlite").returncode == 0
    lost = served.client.record_events([towerbridge.event("view", "item-2", user_id="u", event_id="lost")]).results[0]
    running = run("restore", tmp_path / "copy.sqlite", "--data", tmp_path / "data", "--replace")
    assert running.returncode == 2
    assert "in use by another process" in running.stderr
    serve.stop(served)  # type: ignore[attr-defined]
    assert run("restore", tmp_path / "copy.sqlite", "--data", tmp_path / "data", "--replace").returncode == 0
    client = serve().client
    new = client.record_events([towerbridge.event("view", "item-3", user_id="u", event_id="new")]).results[0]
    assert new.revision.rpartition("-")[2] == lost.revision.rpartition("-")[2], "the position is given out again"
    with pytest.raises(towerbridge.FailedPrecondition, match="of another journal"):
        client.recommend(user_id="u", limit=1, min_revision=lost.revision)
    assert client.recommend(user_id="u", limit=1, min_revision=new.revision).item_ids
    assert sorted(client.get_user(user_id="u").item_ids) == ["item-1", "item-3"]


def test_what_only_the_log_holds_is_in_the_backup(tmp_path: Path, directory: Path):
    """The server was killed: its last commits are in the log, and nobody has opened the journal since."""
    producer, disk = Producer(Random(0)), Disk(tmp_path / "alive")
    with journal(disk.directory, disk.name) as (file, writer, people):
        file.connection.wal_autocheckpoint(0)
        producer.submit(writer, people, producer.batch()).result(PATIENCE_S)
        disk.image(directory, Random(0))
    disk.close()
    assert (directory / f"{FILE_NAME}-wal").stat().st_size
    restore(back_up(directory).path, tmp_path / "other" / "default", without_tombstones=True)
    assert not problems(tmp_path / "other" / "default", producer.sent, producer.acknowledged)


def test_repeats_are_known_after_a_restore_and_the_epoch_is_new(tmp_path: Path, directory: Path):
    producer, path = Producer(Random(0)), directory / FILE_NAME
    produce(directory, producer)
    backup = back_up(directory)
    before = meta(path)
    held = dict(producer.acknowledged)
    produce(directory, producer)
    with pytest.raises(StartupError, match="holds a journal; --replace deletes it"):
        restore(backup.path, directory)
    restored = restore(backup.path, directory, replace=True)
    after = meta(path)
    assert after["event_key"] == before["event_key"]
    assert after["epoch"] != before["epoch"]
    assert after["earlier_epochs"] == f'{{"{before["epoch"]}": {before["head"]}}}'
    assert restored.counts["events"] == backup.counts["events"] == len(held)
    assert not problems(directory, producer.sent, held)


def test_a_log_that_was_left_behind_does_not_meet_the_restored_file(tmp_path: Path, directory: Path):
    producer = Producer(Random(0))
    produce(directory, producer)
    backup, held = back_up(directory).path, dict(producer.acknowledged)
    with journal(directory) as (_, writer, people):
        producer.submit(writer, people, producer.batch()).result(PATIENCE_S)
        for suffix in ("", "-wal"):
            shutil.copy(directory / (FILE_NAME + suffix), tmp_path / f"killed{suffix}")
    for suffix in ("", "-wal"):
        shutil.copy(tmp_path / f"killed{suffix}", directory / (FILE_NAME + suffix))
    (directory / "index").mkdir()
    restore(backup, directory, replace=True)
    assert not (directory / f"{FILE_NAME}-wal").exists()
    assert not (directory / "index").exists(), "snapshots of the index belong to another catalogue"
    assert not problems(directory, producer.sent, held)


def test_a_damaged_backup_is_refused_and_the_journal_stays_as_it_is(directory: Path):
    produce(directory, Producer(Random(0)))
    backup = back_up(directory).path
    content = bytearray(backup.read_bytes())
    content[8192:12288] = Random(0).randbytes(4096)
    backup.write_bytes(content)
    before = (directory / FILE_NAME).read_bytes()
    with pytest.raises(StartupError, match=r"cannot be restored .*; use another backup"):
        restore(backup, directory, replace=True)
    assert (directory / FILE_NAME).read_bytes() == before
    assert not (directory / RESTORING).exists()


def test_a_restore_that_was_cut_off_keeps_the_server_from_starting_until_it_is_run_again(directory: Path):
    producer = Producer(Random(0))
    produce(directory, producer)
    backup = back_up(directory).path
    shutil.copy(backup, directory / RESTORING)
    with pytest.raises(StartupError, match=r"a restore into .* was cut off; run it again"):
        open_journal(directory)
    restore(backup, directory, replace=True)
    assert not problems(directory, producer.sent, producer.acknowledged)


def test_a_backup_of_an_older_version_is_brought_up_to_date(directory: Path):
    restored = restore(GOLDEN, directory)
    assert restored.counts["events"] > 0
    assert not verify(directory / FILE_NAME).problems


def test_people_who_were_erased_are_in_no_new_backup_and_do_not_come_back_from_an_old_one(directory: Path):
    producer, erased = Producer(Random(0)), Person(0, "person-1")
    produce(directory, producer, batches=10)
    old = back_up(directory)
    with closing(open_tombstones(directory)) as tombstones:
        tombstones.add([(erased, None)], NOW_US)
    new = back_up(directory)
    assert new.counts["people"] == old.counts["people"] - 1
    assert b"person-1" in old.path.read_bytes()
    restored = restore(old.path, directory, replace=True)
    assert restored.erased == 1
    assert restored.counts == verify(new.path).counts
    with closing(apsw.Connection(str(directory / FILE_NAME))) as connection:
        assert not connection.execute("SELECT 1 FROM people WHERE (kind, subject_id) = (?, ?)", erased).fetchall()


def test_without_its_tombstones_a_backup_is_restored_only_if_told_so(tmp_path: Path, directory: Path):
    produce(directory, Producer(Random(0)))
    backup, other = back_up(directory).path, tmp_path / "other" / "default"
    with pytest.raises(StartupError, match=r"lacks the tombstones\.sqlite of where the backup was made"):
        restore(backup, other)
    assert not (other / FILE_NAME).exists()
    assert restore(backup, other, without_tombstones=True).counts["events"]


def test_only_the_latest_backups_are_kept_and_remains_of_one_that_was_cut_off_are_removed(directory: Path):
    produce(directory, Producer(Random(0)))
    made = [back_up(directory).path for _ in range(3)]
    cut_off = directory / "backups" / "journal-x.sqlite.partial"
    cut_off.write_bytes(b"half of it")
    last = back_up(directory, keep=2)
    assert last.deleted == made[:2]
    assert sorted((directory / "backups").glob("*")) == [made[2], last.path, directory / "backups" / "lock"]


def test_a_backup_that_cannot_be_written_leaves_nothing_and_says_so(tmp_path: Path, directory: Path):
    produce(directory, Producer(Random(0)))
    with pytest.raises(StartupError, match="cannot write"):
        back_up(directory, tmp_path / "nowhere" / "copy.sqlite")
    there = back_up(directory, tmp_path / "copy.sqlite").path
    with pytest.raises(StartupError, match="exists; choose another --out"):
        back_up(directory, there)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.sqlite", "data", "data.erasure-key"]


def test_the_verbs_say_what_they_did_and_leave_with_status_2_if_they_could_not(tmp_path: Path, directory: Path):
    missing = run("backup", "--data", tmp_path / "nothing")
    assert (missing.returncode, missing.stderr) == (2, f"error: {tmp_path}/nothing/default holds no journal; check --data\n")
    produce(directory, Producer(Random(0)))
    whole = run("verify", "--data", tmp_path / "data")
    assert (whole.returncode, whole.stderr) == (0, "")
    assert whole.stdout.startswith(f"{directory / FILE_NAME} is whole, schema 2: ")
    with closing(apsw.Connection(str(directory / FILE_NAME))) as connection:
        connection.execute("DELETE FROM people; DELETE FROM meta WHERE key = 'head'")
    damaged = run("verify", "--data", tmp_path / "data")
    assert damaged.returncode == 2
    *found, remedy = damaged.stderr.splitlines()
    assert len(found) == 3
    assert "restore a backup: python -m server.journal restore" in remedy


def test_a_backup_onto_a_full_disk_says_so_and_leaves_nothing(directory: Path, monkeypatch: pytest.MonkeyPatch):
    produce(directory, Producer(Random(0)))

    def fill(source: Path, target: Path) -> None:
        target.write_bytes(b"a part")
        raise apsw.FullError("not an error")  # the very text that SQLite has for it on a full tmpfs

    monkeypatch.setattr("server.journal.backup.copy", fill)
    with pytest.raises(StartupError, match=r"out\.sqlite: the disk is full; check"):
        back_up(directory, directory / "out.sqlite")
    assert not list(directory.glob("out*"))


def test_verify_tells_a_missing_file_and_a_bad_backup_from_a_damaged_journal(tmp_path: Path, directory: Path):
    produce(directory, Producer(Random(0)))
    missing, bad = tmp_path / "missing.sqlite", tmp_path / "bad.sqlite"
    bad.write_text("not a database, but long enough to be taken for the head of one")
    for arguments, last in (
        (("--data", tmp_path / "nothing"), f"error: {tmp_path}/nothing/default holds no journal; check --data and --tenant"),
        (("--data", tmp_path / "data", "--file", missing), f"error: {missing} is not a file; check --file"),
        (("--data", tmp_path / "data", "--file", bad), f"error: {bad} is not whole; use another backup"),
    ):
        done = run("verify", *arguments)
        assert (done.returncode, done.stderr.splitlines()[-1]) == (2, last)


def test_a_person_who_is_erased_while_a_backup_is_made_is_in_none_when_the_erasure_is_done(serve: Serve, directory: Path):
    client, stopping, made = serve().client, threading.Event(), []
    for _ in range(20):
        events = [towerbridge.event("view", "item-1", user_id=f"zebra-{number % 50}-q") for number in range(500)]
        client.record_events(events)

    def back_up_all_the_time() -> None:
        while not stopping.is_set():
            made.append(back_up(directory, keep=3))

    backups = threading.Thread(target=back_up_all_the_time)
    backups.start()
    for number in range(10):
        client.erase_user(user_id=f"zebra-{number}-q")
    wait_until(lambda: len(made) > 3)  # so that the oldest are gone
    stopping.set()
    backups.join(PATIENCE_S)
    contents = [path.read_bytes() for path in directory.rglob("*") if path.is_file()]
    assert any(b"zebra-11-q" in content for content in contents)
    assert not [number for number in range(10) for content in contents if f"zebra-{number}-q".encode() in content]
