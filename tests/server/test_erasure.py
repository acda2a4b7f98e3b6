"""EraseUser and ExportUser through a real server: what is erased is nowhere on disk, and nothing brings it back."""

import json
import secrets
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path

import apsw
import grpc
import pytest
from towerbridge.v1 import common_pb2, event_pb2, user_pb2

from index.bundle import Watermark
from server.journal.backup import back_up
from server.journal.restore import restore
from tests.server.about_people import TRAINING, About, decision, refused, timestamp, user, visitor
from tests.server.conftest import DAY_US, NOW_US, Serve, Served
from tests.tiny import write_tiny_bundle

ACCEPTED = event_pb2.EVENT_STATUS_ACCEPTED
ERASED = event_pb2.EVENT_STATUS_DROPPED_ERASED
NOT_FOUND = grpc.StatusCode.NOT_FOUND
SECOND_US = 1_000_000
_numbers = count()

# In a process of its own: closing a file that SQLite has open in this one would give up SQLite's locks on it.
_SEARCH = """
import sys, pathlib
words = [bytes.fromhex(word) for word in sys.argv[2:]]
for path in pathlib.Path(sys.argv[1]).rglob("*"):
    if path.is_file():
        data = path.read_bytes()
        print(*(f"{path.name}:{word!r}" for word in words if word in data), sep="\\n", end="")
"""


def found(directory: Path, words: Iterable[str | bytes]) -> str:
    """Where any of the words is, byte by byte, in any file of a directory."""
    as_hex = [(word.encode() if isinstance(word, str) else word).hex() for word in words]
    command = [sys.executable, "-c", _SEARCH, str(directory), *as_hex]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def event(person: common_pb2.Person, item: str, occurred_us: int | None = None, event_id: str = "") -> event_pb2.Event:
    made = event_pb2.Event(event_id=event_id or f"event-{next(_numbers)}", item_id=item, type="view")
    if person.user_id:
        made.user_id = person.user_id
    else:
        made.visitor_id = person.visitor_id
    if occurred_us is not None:
        made.occurred_at.CopyFrom(timestamp(occurred_us))
    return made


def record(served: Served, *events: event_pb2.Event) -> list[int]:
    request = event_pb2.RecordEventsRequest(events=events)
    return [result.status for result in served.client._events.RecordEvents(request, timeout=20).results]


def erase(served: Served, person: common_pb2.Person) -> user_pb2.EraseUserResponse:
    return served.client._users.EraseUser(user_pb2.EraseUserRequest(person=person), timeout=60)


def export(served: Served, person: common_pb2.Person) -> list[dict[str, object]]:
    parts = served.client._users.ExportUser(user_pb2.ExportUserRequest(person=person), timeout=60)
    return [json.loads(line) for part in parts for line in part.json_lines.splitlines()]


def receipts(reply: user_pb2.EraseUserResponse) -> dict[str, int]:
    return {receipt.store: receipt.count for receipt in reply.receipts}


def directory(served: Served) -> Path:
    return served.app._config.data / "default"


@pytest.fixture
def crowd(serve: Serve) -> Iterator[Callable[..., Served]]:
    """A server with a journal of enough people that SQLite has moved rows between pages."""

    def start(**sections: object) -> Served:
        served = serve(**sections)
        for _ in range(40):
            record(served, *(event(user(f"other-{secrets.randbelow(300)}"), f"item-{n % 50}") for n in range(50)))
        return served

    yield start


class Somebody:
    """A user with a visitor, everything that can be held about both, and words that occur nowhere else."""

    def __init__(self, served: Served) -> None:
        self.served = served
        mark = secrets.token_hex(8)
        self.user, self.visitor = user(f"zebra-user-{mark}"), visitor(f"zebra-visitor-{mark}")
        self.item, self.like, self.source = (f"zebra-{name}-{mark}" for name in ("item", "like", "source"))
        self.attribute = f"zebra-attribute-{mark}"
        self.events = [
            event(self.user, "item-3", NOW_US - DAY_US, f"zebra-event-1-{mark}"),
            event(self.user, self.item, NOW_US - SECOND_US, f"zebra-event-2-{mark}"),
            event(self.visitor, "item-4", None, f"zebra-event-3-{mark}"),
            event(self.user, "item-5", NOW_US + DAY_US // 2, f"zebra-event-4-{mark}"),
        ]
        self.words = [
            *(self.user.user_id, self.visitor.visitor_id, self.item, self.like, self.source, self.attribute),
            *(one.event_id for one in self.events),
        ]

    def live(self) -> "Somebody":
        about = About(self.served)
        about.decide(self.user, decision(True, source=self.source), decision(True, TRAINING, source=self.source))
        record(self.served, *self.events)
        about.profile(
            self.user, attributes={"colour": common_pb2.AttributeValue(string_value=self.attribute)}, likes=[self.like]
        )
        about.link(self.visitor, self.user)
        about.get(self.user)
        return self

    @property
    def hashes(self) -> list[bytes]:
        """What the journal keeps instead of event_ids."""
        with_ids = apsw.Connection(str(directory(self.served) / "journal.sqlite"), flags=apsw.SQLITE_OPEN_READONLY)
        query = "SELECT event_hash FROM events JOIN people USING (person_key) WHERE subject_id LIKE 'zebra%'"
        found_there = [row[0] for row in with_ids.execute(query)]
        with_ids.close()
        return found_there


def test_after_an_erasure_no_file_holds_a_trace_of_the_person(crowd: Callable[..., Served]):
    served = crowd()
    for _ in range(5):
        somebody = Somebody(served).live()
        everything = [*somebody.words, *somebody.hashes]
        assert len(somebody.hashes) == 4
        back_up(directory(served))
        assert found(served.app._config.data, everything)
        erase(served, somebody.user)
        assert found(served.app._config.data, everything) == ""
        for _ in range(3):  # what is in memory must not be written again
            record(served, *(event(user(f"other-{secrets.randbelow(300)}"), "item-1") for _ in range(50)))
        assert found(served.app._config.data, everything) == ""


def test_nobody_else_loses_anything(crowd: Callable[..., Served]):
    served = crowd()
    before = {key: served.app.people.history(key) for key in list(served.app.people.directory.keys())}
    somebody = Somebody(served).live()
    erase(served, somebody.visitor)
    assert set(before) == set(served.app.people.directory.keys())
    connection = apsw.Connection(str(directory(served) / "journal.sqlite"), flags=apsw.SQLITE_OPEN_READONLY)
    assert connection.execute("SELECT count(*) FROM events").get == 2000
    assert connection.execute("PRAGMA integrity_check").get == "ok"
    connection.close()


def test_receipts_say_what_was_removed_from_each_store(serve: Serve):
    served = serve()
    somebody = Somebody(served).live()
    backup = back_up(directory(served)).path
    reply = erase(served, somebody.visitor)
    assert list(reply.erased) == [somebody.user, somebody.visitor]
    counts = receipts(reply)
    assert counts.pop("journal checkpoint") >= 0
    assert counts.pop(backup.name) > 0
    assert counts == {
        "tombstones": 2,
        "events": 4,
        "event_ids": 4,
        "consents": 2,
        "profiles": 1,
        "links": 1,
        "people": 2,
        "histories": 1,
        "vectors": 1,
    }
    assert reply.erased_at == timestamp(NOW_US)
    assert reply.revision
    again = erase(served, somebody.user)
    assert receipts(again)["events"] == 0
    assert list(again.erased) == [somebody.user]


def test_an_erased_person_is_unknown(serve: Serve):
    served = serve()
    somebody = Somebody(served).live()
    erase(served, somebody.user)
    for person in (somebody.user, somebody.visitor):
        with refused(NOT_FOUND, "nothing"):
            About(served).get(person)
        with refused(NOT_FOUND, "nothing is held"):
            export(served, person)
    assert not About(served).consent(somebody.user).decisions


def test_a_producers_retry_brings_nothing_back(serve: Serve):
    served = serve()
    somebody = Somebody(served).live()
    erase(served, somebody.user)
    served.clock.now_us += SECOND_US
    assert record(served, *somebody.events) == [ERASED] * 4  # with a time, without one, and with one in the future
    serve.stop(served)  # type: ignore[attr-defined]
    served = serve()
    served.clock.now_us += SECOND_US
    assert record(served, *somebody.events) == [ERASED] * 4
    with refused(NOT_FOUND, "nothing"):
        About(served).get(somebody.user)


def test_events_of_an_unknown_person_are_refused_after_their_erasure(serve: Serve):
    served = serve()
    reply = erase(served, user("late"))
    assert receipts(reply)["tombstones"] == 1
    assert receipts(reply)["events"] == 0
    served.clock.now_us += SECOND_US
    assert record(served, event(user("late"), "item-1", NOW_US - 1)) == [ERASED]


def test_a_person_who_comes_back_starts_anew(serve: Serve):
    served = serve()
    somebody = Somebody(served).live()
    erase(served, somebody.user)
    served.clock.now_us += SECOND_US
    assert record(served, event(somebody.user, "item-9")) == [ACCEPTED]
    for _ in range(2):
        now = About(served).get(somebody.user)
        assert list(now.item_ids) == ["item-9"]
        assert not now.HasField("profile")
        assert list(now.linked) == [somebody.user]
        serve.stop(served)  # type: ignore[attr-defined]
        served = serve()


def test_an_old_backup_does_not_bring_the_person_back(serve: Serve, tmp_path: Path):
    served = serve(erasure={"backups": "keep"})
    somebody = Somebody(served).live()
    everything = [*somebody.words, *somebody.hashes]
    backup = back_up(directory(served)).path
    reply = erase(served, somebody.user)
    assert "kept" in {receipt.store: receipt.detail for receipt in reply.receipts}[backup.name]
    elsewhere = shutil.move(backup, tmp_path / "kept.sqlite")
    path = directory(served)
    serve.stop(served)  # type: ignore[attr-defined]
    assert restore(Path(elsewhere), path, replace=True).erased == 2
    assert found(path, everything) == ""
    served = serve()
    served.clock.now_us += SECOND_US
    with refused(NOT_FOUND, "nothing"):
        About(served).get(somebody.user)
    assert record(served, *somebody.events) == [ERASED] * 4


def test_a_journal_copied_back_by_hand_is_cleaned_before_it_serves(serve: Serve, tmp_path: Path):
    served = serve()
    somebody = Somebody(served).live()
    everything = [*somebody.words, *somebody.hashes]
    copy = tmp_path / "copy.sqlite"
    back_up(directory(served), copy)
    erase(served, somebody.user)
    path = directory(served)
    serve.stop(served)  # type: ignore[attr-defined]
    shutil.copy(copy, path / "journal.sqlite")
    assert found(path, everything)
    served = serve()
    assert found(path, everything) == ""
    with refused(NOT_FOUND, "nothing"):
        About(served).get(somebody.user)


def test_another_bundle_does_not_bring_the_person_back(serve: Serve, tmp_path: Path):
    served = serve()
    somebody = Somebody(served).live()
    erase(served, somebody.user)
    serve.stop(served)  # type: ignore[attr-defined]
    write_tiny_bundle(tmp_path / "other", seed=1)
    served = serve(bundle=tmp_path / "other")
    with refused(NOT_FOUND, "nothing"):
        About(served).get(somebody.user)
    assert found(served.app._config.data, somebody.words) == ""


def test_the_releases_that_saw_a_person_are_named(serve: Serve, tmp_path: Path):
    served = serve()  # its bundle does not say what it was trained on
    unknown = served.app.live.release_id
    somebody = Somebody(served).live()
    epoch = served.app._journal.epoch
    serve.stop(served)  # type: ignore[attr-defined]
    journal = apsw.Connection(str(directory(served) / "journal.sqlite"))
    journal.execute("UPDATE people SET first_exported = 10")
    journal.close()
    before = write_tiny_bundle(tmp_path / "before", watermark=Watermark(epoch=epoch, position=9))
    saw = write_tiny_bundle(tmp_path / "saw", watermark=Watermark(epoch=epoch, position=10), seed=2)
    other = write_tiny_bundle(tmp_path / "other", watermark=Watermark(epoch="other", position=99), seed=3)
    for name in ("before", "saw", "other"):
        served = serve(bundle=tmp_path / name)
        serve.stop(served)  # type: ignore[attr-defined]
    served = serve(bundle=tmp_path / "saw")
    for _ in range(2):  # also when the call is repeated, after the journal has forgotten
        reply = erase(served, somebody.user)
        assert list(reply.trained_release_ids) == [saw]
        assert sorted(reply.unknown_release_ids) == sorted([unknown, other])
    assert before not in (*reply.trained_release_ids, *reply.unknown_release_ids)
    never = erase(served, user("never seen"))
    assert not never.trained_release_ids


def test_erasure_goes_on_while_others_write(crowd: Callable[..., Served]):
    served = crowd()
    everybody = [Somebody(served).live() for _ in range(5)]
    stop = threading.Event()
    recorded: list[int] = []

    def write() -> None:
        while not stop.is_set():
            recorded.extend(record(served, *(event(user(f"other-{secrets.randbelow(300)}"), "item-2") for _ in range(20))))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for somebody in everybody:
            everything = [*somebody.words, *somebody.hashes[:4]]
            erase(served, somebody.user)
            assert found(served.app._config.data, everything[: len(somebody.words)]) == ""
    finally:
        stop.set()
        writer.join()
    assert set(recorded) == {ACCEPTED}


def test_a_long_reader_is_told_and_the_call_can_be_repeated(serve: Serve, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("server.users.erasure._READERS_SECONDS", 0.3)
    served = serve()
    somebody = Somebody(served).live()
    reader = apsw.Connection(str(directory(served) / "journal.sqlite"), flags=apsw.SQLITE_OPEN_READONLY)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM events").fetchall()
    with refused(grpc.StatusCode.UNAVAILABLE, "erased, but not yet cleaned: the journal's log"):
        erase(served, somebody.user)
    with refused(NOT_FOUND, "nothing"):
        About(served).get(somebody.user)
    reader.close()
    erase(served, somebody.user)
    assert found(served.app._config.data, somebody.words) == ""


def test_a_backup_that_cannot_be_cleaned_is_named(serve: Serve):
    served = serve()
    somebody = Somebody(served).live()
    (directory(served) / "backups").mkdir(exist_ok=True)
    (directory(served) / "backups" / "strange.sqlite").write_text("not SQLite at all, but long enough to be read" * 100)
    with refused(grpc.StatusCode.UNAVAILABLE, "the backup strange.sqlite"):
        erase(served, somebody.user)


def test_an_export_holds_everything_about_a_person_and_their_ids(serve: Serve):
    served = serve()
    somebody = Somebody(served).live()
    lines = export(served, somebody.visitor)
    kinds = [line["kind"] for line in lines]
    assert kinds == ["person"] * 2 + ["link"] + ["consent"] * 2 + ["profile"] + ["event"] * 4 + ["vector"]
    assert lines[0] == {"kind": "person", "id": {"user_id": somebody.user.user_id}, "is_root": True}
    assert lines[2]["source"] == {"visitor_id": somebody.visitor.visitor_id}
    assert lines[2]["target"] == {"user_id": somebody.user.user_id}
    assert [line["purpose"] for line in lines[3:5]] == ["personalisation", "training"]
    assert lines[5]["profile"] == {"attributes": {"colour": somebody.attribute}, "liked_item_ids": [somebody.like]}
    events = lines[6:10]
    assert [line["item_id"] for line in events] == ["item-3", somebody.item, "item-4", "item-5"]
    assert [line["occurred_at"] for line in events] == sorted(str(line["occurred_at"]) for line in events)
    assert len(lines[10]["values"]) == 8  # type: ignore[arg-type]


def test_a_long_history_is_exported_whole_in_parts(serve: Serve):
    served = serve(journal={"max_events_per_person": 5000})
    for start in range(0, 2500, 500):
        record(served, *(event(user("busy"), f"item-{n % 50}", NOW_US - n % 7 * SECOND_US) for n in range(start, start + 500)))
    parts = list(served.client._users.ExportUser(user_pb2.ExportUserRequest(person=user("busy")), timeout=60))
    assert len(parts) >= 3
    events = [line for line in export(served, user("busy")) if line["kind"] == "event"]
    assert len({str(line["event_id_hash"]) for line in events}) == len(events) == 2500
    times = [str(line["occurred_at"]) for line in events]
    assert times == sorted(times)


def test_an_erasure_that_was_cut_short_is_ended_by_the_next_start(serve: Serve, monkeypatch: pytest.MonkeyPatch):
    served = serve()
    somebody, another = Somebody(served).live(), Somebody(served).live()
    everything = [*somebody.words, *somebody.hashes]

    def full(*_: object) -> None:
        raise apsw.FullError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr("server.journal.erase.remove_people", full)  # after the tombstones, before anything is removed
        with refused(grpc.StatusCode.UNAVAILABLE, "the disk is full"):
            erase(served, somebody.user)
    assert About(served).get(somebody.user).item_ids
    erase(served, another.user)  # must not hide that the other one is not done
    path = directory(served)
    serve.stop(served)  # type: ignore[attr-defined]
    served = serve()
    with refused(NOT_FOUND, "nothing"):
        About(served).get(somebody.user)
    assert found(path, everything) == ""


def test_bytes_that_a_crash_left_go_at_the_next_start(crowd: Callable[..., Served], serve: Serve):
    served = crowd()
    somebody = Somebody(served).live()
    everything = [*somebody.words, *somebody.hashes]
    path = directory(served)
    # A crash right after the commit: the log is not emptied, no free space is cleared.
    served.app._erasure._clear_free_space = lambda: 0  # type: ignore[method-assign]
    erase(served, somebody.user)
    crashed = path.parent.with_name("crashed") / "default"
    shutil.copytree(path, crashed)
    shutil.copy(path.parent.with_name("data.erasure-key"), crashed.parent.with_name("crashed.erasure-key"))
    assert found(crashed, everything)
    serve.stop(served)  # type: ignore[attr-defined]
    serve(data=crashed.parent)
    assert found(crashed, everything) == ""


def test_what_a_killed_backup_or_scrub_left_is_removed(serve: Serve):
    served = serve()
    somebody = Somebody(served).live()
    backup = back_up(directory(served)).path
    for name in ("journal-1.sqlite.partial", f"{backup.name}.partial"):
        shutil.copy(backup, backup.with_name(name))
    erase(served, somebody.user)
    assert found(served.app._config.data, somebody.words) == ""
    assert sorted(path.name for path in backup.parent.iterdir()) == [backup.name, "lock"]
