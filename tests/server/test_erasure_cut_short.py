"""Erasures that a crash, a full disk or a killed process cut short."""

import shutil

import apsw
import grpc
import pytest

from server.journal.backup import back_up
from tests.server.about_people import About, refused
from tests.server.conftest import Serve
from tests.server.erasing import NOT_FOUND, Somebody, crowd, directory, erase, found


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


def test_bytes_that_a_crash_left_go_at_the_next_start(serve: Serve):
    served = crowd(serve())
    somebody = Somebody(served).live()
    everything = [*somebody.words, *somebody.hashes]
    path = directory(served)
    # A crash right after the commit: the log is not emptied, no free space is cleared.
    served.app.tenant._erasure._clear_free_space = lambda: 0  # type: ignore[method-assign]
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
    assert found(served.app.tenant._config.data, somebody.words) == ""
    assert sorted(path.name for path in backup.parent.iterdir()) == [backup.name, "lock"]
