"""The disk is full, takes no writes, or fails at a sync: nothing is half done, and nobody is told that it is well."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from random import Random

import apsw
import grpc
import pytest
import towerbridge
from grpc_health.v1 import health_pb2, health_pb2_grpc

from server.errors import StartupError, Unavailable
from server.journal.database import open_journal
from server.journal.writer import JournalWriter
from tests.server.conftest import Serve, Served
from tests.server.power_loss import Disk
from tests.server.producer import PATIENCE_S, Everyone, Producer, journal, problems


class Failing:
    """Fails operations of one kind from now on, until `failing` is set to false; or only one of them."""

    def __init__(self, disk: Disk, operation: str, error: apsw.Error, *, after: int = 0, once: bool = False) -> None:
        self.failing = True
        self._once = once
        self._operation, self._error, self._left = operation, error, after
        disk.watch = self

    def __call__(self, operation: str, file: str) -> None:
        if self.failing and operation == self._operation:
            self._left -= 1
            if self._left < 0:
                self.failing = not self._once
                raise self._error


def io_error(extended: int) -> apsw.IOError:
    error = apsw.IOError("by the test")
    error.extendedresult = extended
    return error


FULL = apsw.FullError("by the test")
NO_WRITES = io_error(apsw.SQLITE_IOERR_WRITE)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path / "tenant")
    yield made
    made.close()


@pytest.mark.parametrize(("error", "says"), [(FULL, "disk is full"), (NO_WRITES, "takes no writes")])
@pytest.mark.parametrize("after", [0, 1, 5, 9])
def test_a_full_disk_keeps_nothing_of_a_write_and_the_journal_goes_on_when_there_is_space(
    disk: Disk, error: apsw.Error, says: str, after: int
):
    producer = Producer(Random(after))
    with journal(disk.directory, disk.name) as (file, writer, people):
        producer.submit(writer, people, producer.batch()).result(PATIENCE_S)
        before = file.head
        disk_fails = Failing(disk, "write", error, after=after)
        for _ in range(3):
            futures = [producer.submit(writer, people, producer.batch(60)) for _ in range(3)]
            for future in futures:
                with pytest.raises(Unavailable, match=says):
                    future.result(PATIENCE_S)
            disk_fails._left = after
        assert file.head == writer.revision == before
        disk_fails.failing = False
        producer.submit(writer, people, producer.batch()).result(PATIENCE_S)
        assert writer.revision > before
    assert not problems(disk.directory, producer.sent, producer.acknowledged)


@pytest.mark.parametrize(
    ("operation", "error"),
    [
        ("sync", io_error(apsw.SQLITE_IOERR_FSYNC)),
        ("sync", io_error(apsw.SQLITE_IOERR_DIR_FSYNC)),
        ("write", apsw.CorruptError("by the test")),
    ],
)
def test_after_a_failed_sync_the_journal_stops_since_nobody_knows_what_is_on_disk(
    disk: Disk, operation: str, error: apsw.Error
):
    producer, died = Producer(Random(1)), threading.Event()
    file = open_journal(disk.directory, vfs=disk.name)
    people = Everyone(file)
    writer = JournalWriter(file, on_death=died.set)
    writer.start()
    producer.submit(writer, people, producer.batch()).result(PATIENCE_S)
    disk_fails = Failing(disk, operation, error)
    with pytest.raises(Unavailable, match="must be restarted"):
        producer.submit(writer, people, producer.batch()).result(PATIENCE_S)
    assert died.wait(PATIENCE_S)
    disk_fails.failing = False  # the next sync would say that all is well
    with pytest.raises(Unavailable, match="takes no more writes"):
        producer.submit(writer, people, producer.batch())
    writer.close()
    file.close()
    assert not problems(disk.directory, producer.sent, producer.acknowledged)


_CHILD = """
import json, resource, sys
from pathlib import Path
from random import Random
from server.errors import StartupError, Unavailable
from tests.server.producer import PATIENCE_S, Producer, journal

producer, directory = Producer(Random(0)), Path(sys.argv[1])
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
refused = 0
with journal(directory) as (file, writer, people):
    file.connection.wal_autocheckpoint(int(sys.argv[2]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    while refused < 3:
        try:
            producer.submit(writer, people, producer.batch()).result(PATIENCE_S)
        except Unavailable as error:
            refused, head = refused + 1, file.head
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    producer.submit(writer, people, producer.batch()).result(PATIENCE_S)
    assert file.head > head
print(json.dumps(producer.acknowledged))
"""


@pytest.mark.parametrize("checkpoint_pages", [0, 5], ids=["the log is full", "the main file is full, then the log"])
def test_a_real_file_that_may_not_grow_refuses_writes_and_takes_them_when_it_may(tmp_path: Path, checkpoint_pages: int):
    command = [sys.executable, "-c", _CHILD, str(tmp_path), str(checkpoint_pages)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert child.returncode == 0, child.stderr
    same = Producer(Random(0))
    acknowledged = json.loads(child.stdout)
    while not acknowledged.keys() <= same.sent.keys():
        same.batch()
    assert not problems(tmp_path, same.sent, acknowledged)


def test_a_clock_that_jumps_by_days_neither_loses_nor_doubles_nor_reorders(tmp_path: Path):
    producer, random, day_us = Producer(Random(2)), Random(2), 86_400_000_000
    positions: list[int] = []
    with journal(tmp_path) as (file, writer, people):
        for _ in range(30):
            received_us = 1_800_000_000_000_000 + random.randint(-400, 400) * day_us
            outcomes = producer.submit(writer, people, producer.batch(), received_us).result(PATIENCE_S)
            positions += [outcome.position for outcome in outcomes if outcome.position > writer.revision - len(outcomes)]
            assert writer.revision == file.head
        received = [row[0] for row in file.connection.execute("SELECT received_us FROM events ORDER BY position")]
    assert received != sorted(received)
    assert sorted(producer.acknowledged.values()) == list(range(1, len(producer.sent) + 1))
    assert not problems(tmp_path, producer.sent, producer.acknowledged)


@pytest.fixture
def server_disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk that can fail, for all files of the servers that start on it."""
    disk = Disk(tmp_path / "data" / "default", default=True)
    try:
        yield disk
    finally:
        disk.watch = lambda operation, file: None
        disk.close()


@pytest.fixture
def served_on_a_disk(server_disk: Disk, serve: Serve) -> Iterator[tuple[Served, Disk]]:
    yield serve(), server_disk
    server_disk.watch = lambda operation, file: None


def test_a_server_with_a_full_disk_refuses_events_and_answers_and_takes_them_when_there_is_space(
    served_on_a_disk: tuple[Served, Disk],
):
    served, disk = served_on_a_disk
    events = [towerbridge.event("view", f"item-{number}", user_id="u", event_id=f"e{number}") for number in range(3)]
    served.client.record_events(events[:1])
    disk_fails = Failing(disk, "write", FULL)
    with pytest.raises(towerbridge.Unavailable, match="the disk is full: nothing was written"):
        served.client.record_events(events[1:2])
    assert served.client.recommend(user_id="u", limit=1).item_ids
    assert health(served) == health_pb2.HealthCheckResponse.SERVING
    disk_fails.failing = False
    served.client.record_events(events)
    assert list(served.client.get_user(user_id="u").item_ids) == ["item-2", "item-1", "item-0"]


def test_a_server_whose_disk_failed_at_a_sync_is_not_serving_and_takes_no_more_events(served_on_a_disk: tuple[Served, Disk]):
    served, disk = served_on_a_disk
    served.client.record_events([towerbridge.event("view", "item-1", user_id="u", event_id="kept")])
    Failing(disk, "sync", io_error(apsw.SQLITE_IOERR_FSYNC))
    with pytest.raises(towerbridge.Unavailable):
        served.client.record_events([towerbridge.event("view", "item-2", user_id="u", event_id="unsure")])
    assert health(served) == health_pb2.HealthCheckResponse.NOT_SERVING
    disk.watch = lambda operation, file: None
    with pytest.raises(towerbridge.Unavailable):
        served.client.record_events([towerbridge.event("view", "item-3", user_id="u", event_id="late")])


def health(served: Served) -> int:
    with grpc.insecure_channel(f"127.0.0.1:{served.app.port}") as channel:
        response: health_pb2.HealthCheckResponse = health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(), timeout=PATIENCE_S
        )
    return response.status


@pytest.mark.parametrize("after", [0, 20, 60])
def test_a_disk_that_fills_up_during_the_first_start_is_said_in_one_line_and_leaves_nothing_half_done(
    server_disk: Disk, serve: Serve, after: int
):
    # Once: SQLite does not mind that its clearing up at the end fails, but APSW does if it was Python that failed.
    Failing(server_disk, "write", FULL, after=after, once=True)
    with pytest.raises(StartupError, match="check the d") as caught:
        serve()
    assert "\n" not in str(caught.value)
    assert len(serve().client.recommend(vector=[1.0] * 8, limit=50).item_ids) == 50
