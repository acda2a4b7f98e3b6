"""EraseUser through a real server: what is erased is nowhere on disk, and nothing brings it back."""

import secrets
import shutil
import threading
from pathlib import Path

import apsw
import grpc
import pytest

from index.bundle import Watermark
from server.journal.backup import back_up
from server.journal.restore import restore
from tests.server.about_people import About, refused, timestamp, user
from tests.server.conftest import NOW_US, Serve
from tests.server.erasing import (
    ACCEPTED,
    ERASED,
    NOT_FOUND,
    SECOND_US,
    Somebody,
    crowd,
    directory,
    erase,
    event,
    export,
    found,
    receipts,
    record,
)
from tests.tiny import write_tiny_bundle


def test_after_an_erasure_no_file_holds_a_trace_of_the_person(serve: Serve):
    served = crowd(serve())
    for _ in range(5):
        somebody = Somebody(served).live()
        everything = [*somebody.words, *somebody.hashes]
        assert len(somebody.hashes) == 4
        back_up(directory(served))
        assert found(served.app.tenant._config.data, everything)
        erase(served, somebody.user)
        assert found(served.app.tenant._config.data, everything) == ""
        for _ in range(3):  # what is in memory must not be written again
            record(served, *(event(user(f"other-{secrets.randbelow(300)}"), "item-1") for _ in range(50)))
        assert found(served.app.tenant._config.data, everything) == ""


def test_nobody_else_loses_anything(serve: Serve):
    served = crowd(serve())
    before = {key: served.app.tenant.people.history(key) for key in list(served.app.tenant.people.directory.keys())}
    somebody = Somebody(served).live()
    erase(served, somebody.visitor)
    assert set(before) == set(served.app.tenant.people.directory.keys())
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
    assert found(served.app.tenant._config.data, somebody.words) == ""


def test_the_releases_that_saw_a_person_are_named(serve: Serve, tmp_path: Path):
    served = serve()  # its bundle does not say what it was trained on
    unknown = served.app.tenant.live.release_id
    somebody = Somebody(served).live()
    epoch = served.app.tenant._journal.epoch
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


def test_erasure_goes_on_while_others_write(serve: Serve):
    served = crowd(serve())
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
            assert found(served.app.tenant._config.data, everything[: len(somebody.words)]) == ""
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
    assert found(served.app.tenant._config.data, somebody.words) == ""


def test_a_backup_that_cannot_be_cleaned_is_named(serve: Serve):
    served = serve()
    somebody = Somebody(served).live()
    (directory(served) / "backups").mkdir(exist_ok=True)
    (directory(served) / "backups" / "strange.sqlite").write_text("not SQLite at all, but long enough to be read" * 100)
    with refused(grpc.StatusCode.UNAVAILABLE, "the backup strange.sqlite"):
        erase(served, somebody.user)
