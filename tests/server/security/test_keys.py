"""Whose key came with a call, also while the file of keys changes."""

import logging
import secrets
import threading
import time
from pathlib import Path

import pytest

from server.errors import StartupError
from server.security.key_file import create, revoke
from server.security.keys import Caller, KeyRing
from server.security.roles import Role
from tests.server.security.keyring import bearer, eventually

READ = (Role.READ,)
LOOK_S = 0.1


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the file, so that the tests need not wait for seconds."""
    monkeypatch.setattr("server.security.keys.CHECKED_EVERY_S", LOOK_S)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def test_a_key_says_whose_it_is_and_what_it_may_do(path: Path):
    key, stored = create(path, "acme", "shop", (Role.READ, Role.INGEST))
    ring = KeyRing(path)
    assert ring.caller(bearer(key)) == Caller("acme", "shop", frozenset({Role.READ, Role.INGEST}), stored.id)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_schemes_case_does_not_matter(path: Path, scheme: str):
    key, _ = create(path, "acme", "shop", READ)
    assert KeyRing(path).caller([("authorization", f"{scheme} {key}")]) is not None


def test_whatever_is_not_exactly_one_valid_key_is_nobody(path: Path):
    key, stored = create(path, "acme", "shop", READ)
    other, _ = create(path, "acme", "shop", READ)
    ring = KeyRing(path)
    header = "authorization"
    nobody: list[list[tuple[str, str | bytes]] | None] = [
        *(None, [], [("authorisation", f"Bearer {key}")]),
        *([(header, value)] for value in ("", key, "Bearer", "Bearer ", f"Basic {key}", f"Bearer  {key}", f"Bearer {key} ")),
        *([(header, f"Bearer {value}")] for value in (key[:-1], key + "A", key.swapcase(), "tb_" + "A" * 43, "é", "\udcff")),
        [(header, f"Bearer {stored.sha256}")],
        [(header, f"Bearer {stored.id}")],
        [(header, f"Bearer {key}".encode())],
        [(header, f"Bearer {key}"), (header, f"Bearer {key}")],  # which of several counts is not for us to guess
        [(header, f"Bearer {key}"), (header, f"Bearer {other}")],
    ]
    assert [ring.caller(metadata) for metadata in nobody] == [None] * len(nobody)
    assert ring.caller(bearer(key)) is not None


def test_changes_count_while_the_server_runs(path: Path):
    old, stored = create(path, "acme", "shop", READ)
    ring = KeyRing(path)
    new, _ = create(path, "acme", "shop", READ)
    eventually(lambda: ring.caller(bearer(new)) is not None)
    assert ring.caller(bearer(old)) is not None  # both work, so that nobody is cut off in between
    revoke(path, stored.id)
    eventually(lambda: ring.caller(bearer(old)) is None)
    assert ring.caller(bearer(new)) is not None


@pytest.mark.parametrize("how", ["{", "MODE", "GONE"])
def test_a_new_file_that_cannot_be_used_is_logged_once_and_the_old_keys_stay(
    path: Path, how: str, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, logger="server.security.keys")
    key, _ = create(path, "acme", "shop", READ)
    ring, whole = KeyRing(path), path.read_bytes()
    if how == "MODE":
        path.chmod(0o644)
    elif how == "GONE":
        path.unlink()
    else:
        path.write_text(how, encoding="utf-8")
    eventually(lambda: ring.caller(bearer(key)) is not None and bool(caplog.records))
    again = time.monotonic() + 2.5 * LOOK_S  # it is looked at twice more
    while time.monotonic() < again:
        assert ring.caller(bearer(key)) is not None
        time.sleep(LOOK_S / 10)
    [record] = caplog.records
    assert record.levelno == logging.ERROR and "the keys that were read before stay valid" in record.message
    path.write_bytes(whole)
    path.chmod(0o600)
    new, _ = create(path, "acme", "shop", READ)
    eventually(lambda: ring.caller(bearer(new)) is not None)


def test_a_file_that_could_not_be_read_for_once_is_read_again(path: Path, monkeypatch: pytest.MonkeyPatch):
    key, stored = create(path, "acme", "shop", READ)
    ring = KeyRing(path)

    def no_descriptors(path: Path) -> None:
        raise StartupError(f"cannot read {path}: Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("server.security.keys.read_keys", no_descriptors)
        revoke(path, stored.id)
        again = time.monotonic() + 1.5 * LOOK_S  # it is looked at once
        while time.monotonic() < again:
            assert ring.caller(bearer(key)) is not None
            time.sleep(LOOK_S / 10)
    eventually(lambda: ring.caller(bearer(key)) is None)


def test_many_threads_ask_while_the_file_changes(path: Path):
    kept, _ = create(path, "acme", "kept", READ)
    ring = KeyRing(path)
    stopping = threading.Event()
    wrong: list[object] = []

    def ask() -> None:
        while not stopping.is_set():
            if ring.caller(bearer(kept)) is None or ring.caller(bearer("tb_" + secrets.token_urlsafe(32))) is not None:
                wrong.append("a valid key was refused, or an unknown one was taken")

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for n in range(30):
        key, stored = create(path, "acme", f"app-{n}", READ)
        revoke(path, stored.id)
    last, _ = create(path, "acme", "last", READ)
    eventually(lambda: ring.caller(bearer(last)) is not None)
    stopping.set()
    for thread in threads:
        thread.join()
    assert not wrong and ring.caller(bearer(key)) is None
