"""The audit log: on disk before anybody is answered, whole lines, and no person's id in clear."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from server.errors import StartupError
from server.security.audit import FILE_NAME, SALT_NAME, AuditLog
from server.security.keys import Caller
from server.security.roles import Role

ERASE = "/towerbridge.v1.UserService/EraseUser"
OPERATOR = Caller("acme", "operator", frozenset({Role.ADMIN}), "k_0123456789ab")
PEER = "ipv4:127.0.0.1:4711"
NOW_US = 1_800_000_000_123_456
PATIENCE_S = 60.0


@contextmanager
def audit(folder: Path) -> Iterator[AuditLog]:
    log = AuditLog(folder, lambda: NOW_US)
    try:
        yield log
    finally:
        log.close()


def lines(folder: Path) -> list[dict[str, object]]:
    text = (folder / FILE_NAME).read_text(encoding="utf-8")
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def erased(log: AuditLog, user: str) -> None:
    log.write(OPERATOR, ERASE, PEER, "OK", {"user_id": user}).result(PATIENCE_S)


def test_a_line_says_who_did_what_from_where_and_how_it_ended(tmp_path: Path):
    with audit(tmp_path) as log:
        log.write(OPERATOR, "/towerbridge.v1.ReleaseService/PromoteRelease", PEER, "OK", {"release_id": "r-1"}).result(
            PATIENCE_S
        )
        [line] = lines(tmp_path)  # while the log is open: the line is on disk when its future is done
    assert line == {
        "time": "2027-01-15T08:00:00.123456Z",
        "tenant": "acme",
        "name": "operator",
        "key_id": "k_0123456789ab",
        "method": "/towerbridge.v1.ReleaseService/PromoteRelease",
        "peer": PEER,
        "code": "OK",
        "details": {"release_id": "r-1"},
    }


def test_of_a_call_without_a_valid_key_nobody_is_named(tmp_path: Path):
    with audit(tmp_path) as log:
        log.write(None, ERASE, PEER, "UNAUTHENTICATED", {}).result(PATIENCE_S)
    [line] = lines(tmp_path)
    assert (line["tenant"], line["name"], line["key_id"], line["code"]) == (None, None, None, "UNAUTHENTICATED")


def test_ids_of_people_are_hashed_alike_over_restarts_and_otherwise_in_every_installation(tmp_path: Path):
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, here, there):
        with audit(folder) as log:
            log.write(OPERATOR, ERASE, PEER, "OK", {"user_id": "anna", "anything": "anna"}).result(PATIENCE_S)
    assert b"anna" not in b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    first, again = (line["details"] for line in lines(here))
    [elsewhere] = (line["details"] for line in lines(there))
    assert first == again != elsewhere
    assert isinstance(first, dict) and first["user_id"] != first["anything"]  # a user and a visitor may have the same id


def test_the_hash_of_an_id_can_be_made_with_openssl(tmp_path: Path):
    with audit(tmp_path) as log:
        log.write(OPERATOR, ERASE, PEER, "OK", {"user_id": "Zoë 1"}).result(PATIENCE_S)
    salt = (tmp_path / SALT_NAME).read_bytes().hex()
    command = ["openssl", "dgst", "-sha256", "-mac", "HMAC", "-macopt", f"hexkey:{salt}"]
    done = subprocess.run(command, input="user_id:Zoë 1".encode(), capture_output=True, check=True)
    assert lines(tmp_path)[0]["details"] == {"user_id": "hmac-sha256:" + done.stdout.split()[-1].decode()}


def test_files_are_their_owners_alone_whatever_they_were(tmp_path: Path):
    (tmp_path / FILE_NAME).touch(mode=0o644)
    with audit(tmp_path) as log:
        erased(log, "anna")
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in (FILE_NAME, SALT_NAME)] == [0o600, 0o600]


def test_nothing_that_is_sent_can_make_a_line_of_its_own(tmp_path: Path):
    sent = 'x"}\n{"time": "forged"}\r\u2028\udcff' + "y" * 10_000
    with audit(tmp_path) as log:
        log.write(OPERATOR, ERASE, sent, "OK", {"bundle": sent, sent: sent}).result(PATIENCE_S)
    assert len((tmp_path / FILE_NAME).read_bytes().splitlines()) == 1
    details = lines(tmp_path)[0]["details"]
    assert isinstance(details, dict) and sent.startswith(details["bundle"]) and len(details["bundle"]) == 512


def test_lines_of_many_threads_are_whole_and_none_is_missing(tmp_path: Path):
    with audit(tmp_path) as log:
        threads = [threading.Thread(target=lambda n=n: [erased(log, f"{n}-{m}") for m in range(50)]) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        expected = {f"hmac-sha256:{log.hashed('user_id', f'{n}-{m}')}" for n in range(8) for m in range(50)}
    assert len(lines(tmp_path)) == 400
    assert {line["details"]["user_id"] for line in lines(tmp_path)} == expected  # type: ignore[index]


def test_closing_writes_what_waits_and_later_lines_are_refused(tmp_path: Path):
    with audit(tmp_path) as log:
        waiting = [log.write(OPERATOR, ERASE, PEER, "OK", {"user_id": str(n)}) for n in range(200)]
    assert all(one.done() and one.exception() is None for one in waiting) and len(lines(tmp_path)) == 200
    with pytest.raises(OSError, match="closed"):
        erased(log, "late")
    log.close()  # again does nothing


def test_a_caller_who_is_gone_cannot_take_a_line_back(tmp_path: Path):
    with audit(tmp_path) as log:
        waiting = log.write(OPERATOR, ERASE, PEER, "CANCELLED", {})
        assert not waiting.cancel()
        erased(log, "the next one")
    assert [line["code"] for line in lines(tmp_path)] == ["CANCELLED", "OK"]


def test_a_killed_process_leaves_every_line_that_was_acknowledged(tmp_path: Path):
    script = f"""
import sys
from pathlib import Path
from server.security.audit import AuditLog
log = AuditLog(Path({str(tmp_path)!r}), lambda: 0)
for n in range(10**9):
    log.write(None, "m", "p", "OK", {{"release_id": str(n)}}).result()
    print(n, flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        last = [int(process.stdout.readline()) for _ in range(100)][-1]
        process.send_signal(signal.SIGKILL)
        last = max([last, *(int(line) for line in process.stdout.read().splitlines())])
    with audit(tmp_path) as log:
        erased(log, "after")
    *before, after = lines(tmp_path)
    assert [line["details"]["release_id"] for line in before][: last + 1] == [str(n) for n in range(last + 1)]  # type: ignore[index]
    assert after["method"] == ERASE


@pytest.mark.parametrize("whole", [0, 1, 3])
def test_half_a_line_that_a_crash_left_is_removed(tmp_path: Path, whole: int, caplog: pytest.LogCaptureFixture):
    line = json.dumps({"details": {"bundle": "x" * 50_000}}) + "\n"
    (tmp_path / FILE_NAME).write_text(line * whole + line[:-1], encoding="utf-8")
    with audit(tmp_path) as log:
        erased(log, "anna")
    assert len(lines(tmp_path)) == whole + 1
    assert "half a line" in caplog.text


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file may grow beyond this: the kernel's way to make a disk full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_on_a_full_disk_lines_are_refused_whole_until_there_is_space(tmp_path: Path):
    with audit(tmp_path) as log:
        erased(log, "before")
        with room_for((tmp_path / FILE_NAME).stat().st_size + 20):
            with pytest.raises(OSError, match="File too large"):
                erased(log, "refused")
            assert len(lines(tmp_path)) == 1
        erased(log, "after")
    assert len(lines(tmp_path)) == 2


def test_after_a_failed_sync_every_line_is_refused(tmp_path: Path):
    path, good, pipe = tmp_path / FILE_NAME, tmp_path / "good", tmp_path / "pipe"
    with audit(tmp_path) as log:
        erased(log, "before")
        whole = os.dup(log._descriptor)
        os.mkfifo(pipe)
        broken = os.open(pipe, os.O_RDWR)  # takes bytes, and cannot sync them
        path.rename(good)
        pipe.rename(path)
        os.dup2(broken, log._descriptor)
        with pytest.raises(OSError, match="Invalid argument"):
            erased(log, "lost")
        good.rename(path)
        os.dup2(whole, log._descriptor)
        with pytest.raises(OSError, match="restart the server"):
            erased(log, "who knows what is on disk")
        os.close(whole)
        os.close(broken)
    with audit(tmp_path) as log:
        erased(log, "after the restart")
    assert len(lines(tmp_path)) == 2


def test_a_renamed_file_is_left_alone_and_another_begins(tmp_path: Path):
    with audit(tmp_path) as log:
        erased(log, "before")
        (tmp_path / FILE_NAME).rename(tmp_path / "audit.1.jsonl")
        erased(log, "after")
        assert len(lines(tmp_path)) == 1
        assert (tmp_path / FILE_NAME).stat().st_mode & 0o777 == 0o600
    assert len((tmp_path / "audit.1.jsonl").read_text(encoding="utf-8").splitlines()) == 1


def test_a_folder_or_salt_that_cannot_be_used_keeps_the_server_from_starting(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(StartupError, match="cannot write the audit log"):
        AuditLog(tmp_path / "file", lambda: NOW_US)
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / FILE_NAME).symlink_to(tmp_path / "file")  # its mode would be changed
    with pytest.raises(StartupError, match="cannot write the audit log"):
        AuditLog(tmp_path / "link", lambda: NOW_US)
    (tmp_path / SALT_NAME).write_bytes(b"short")
    with pytest.raises(StartupError, match="must have 32 bytes"):
        AuditLog(tmp_path, lambda: NOW_US)
