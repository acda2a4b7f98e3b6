"""Calls of consequence leave their lines in the audit log before they are worked on, or are not worked on."""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from towerbridge import v1

from server.security.key_file import create, revoke
from server.security.roles import AUDITED, Role
from tests.server.security.keyring import eventually
from tests.server.security.secured import CALL_S, OURS, Secured, answer, bearer, secured
from tests.tiny import write_tiny_bundle

Code = grpc.StatusCode
USERS, RELEASES = "/towerbridge.v1.UserService", "/towerbridge.v1.ReleaseService"
ERASE, EXPORT = f"{USERS}/EraseUser", f"{USERS}/ExportUser"


@pytest.fixture
def server(bundle_path: Path, tmp_path: Path) -> Iterator[Secured]:
    with secured(bundle_path, tmp_path) as running:
        yield running


def lines(server: Secured) -> list[dict[str, Any]]:
    text = (server.keys_file.parent / "data" / "default" / "audit.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def left_by(server: Secured, method: str, request: Any, role: Role = Role.ADMIN) -> list[dict[str, Any]]:
    """The lines that a call has left when it is answered."""
    before = len(lines(server))
    server.answer(method, request, role=role)
    return lines(server)[before:]


def record(server: Secured, person: str) -> None:
    event = v1.Event(event_id=f"e-{person}", user_id=person, item_id="item-5", type="view")
    request = v1.RecordEventsRequest(events=[event])
    assert server.answer("/towerbridge.v1.EventService/RecordEvents", request, role=Role.INGEST).code is Code.OK


def is_known(server: Secured, person: str) -> bool:
    request = v1.GetUserRequest(user_id=person)
    return server.answer(f"{USERS}/GetUser", request, role=Role.READ).code is Code.OK


def of(person: str) -> v1.Person:
    return v1.Person(user_id=person)


@contextmanager
def full_disk(server: Secured) -> Iterator[None]:
    """What is written to the audit log meets a device that is always full."""
    log = server.app.tenant.audit
    assert log is not None
    path, descriptor = log._path, log._descriptor
    kept, full = os.dup(descriptor), os.open("/dev/full", os.O_RDWR)
    aside = path.with_name("aside")
    path.rename(aside)
    path.symlink_to("/dev/full")  # so that the log is not taken for one that was moved
    os.dup2(full, descriptor)
    try:
        yield
    finally:
        os.dup2(kept, descriptor)
        aside.replace(path)
        os.close(kept)
        os.close(full)


def test_an_erasure_leaves_a_line_before_and_one_after_and_nobodys_id(server: Secured):
    record(server, "ann-to-be-erased")
    started, ended = left_by(server, ERASE, v1.EraseUserRequest(person=of("ann-to-be-erased")))
    assert (started["code"], ended["code"]) == ("STARTED", "OK")
    log = server.app.tenant.audit
    assert log is not None
    for line in (started, ended):
        assert line.keys() == {"time", "tenant", "name", "key_id", "method", "peer", "code", "details"}
        assert (line["tenant"], line["name"], line["method"]) == ("default", "admin", ERASE)
        assert line["peer"].startswith("ipv4:127.0.0.1:") and line["key_id"].startswith("k_")
        hashed = log.hashed("person.user_id", "ann-to-be-erased")
        assert line["details"] == {"person.user_id": f"hmac-sha256:{hashed}"}
    folder = server.keys_file.parent / "data"
    assert not [path for path in folder.rglob("audit*") if b"ann-to-be-erased" in path.read_bytes()]


def test_an_export_and_one_of_nobody_leave_theirs(server: Secured):
    record(server, "ann")
    for person, code in {"ann": "OK", "nobody": "NOT_FOUND"}.items():
        left = left_by(server, EXPORT, v1.ExportUserRequest(person=of(person)))
        assert [line["code"] for line in left] == ["STARTED", code]
        assert person not in json.dumps(left)


def test_changes_of_releases_say_in_clear_which(server: Secured, bundle_path: Path):
    second = bundle_path.parent / "of-audit"
    release = write_tiny_bundle(second, n_items=50, dim=8, seed=8)
    for name, request, details in (
        ("ListReleases", v1.ListReleasesRequest(), {}),
        ("LoadRelease", v1.LoadReleaseRequest(bundle=str(second)), {"bundle": str(second)}),
        ("PromoteRelease", v1.PromoteReleaseRequest(release_id=release), {"release_id": release}),
        ("RollbackRelease", v1.RollbackReleaseRequest(expected_live_release_id=release), {"expected_live_release_id": release}),
    ):
        left = left_by(server, f"{RELEASES}/{name}", request)
        assert [(line["method"], line["code"]) for line in left] == [
            (f"{RELEASES}/{name}", "STARTED"),
            (f"{RELEASES}/{name}", "OK"),
        ]
        assert left[0]["details"] == left[1]["details"] == details
    [failed, said] = left_by(server, f"{RELEASES}/PromoteRelease", v1.PromoteReleaseRequest(release_id="no such"))
    assert (failed["code"], said["code"]) == ("STARTED", "NOT_FOUND")


@pytest.mark.parametrize("method", sorted(AUDITED & set(OURS)))
def test_a_try_with_a_key_of_another_role_leaves_a_line(server: Secured, method: str):
    for role in (Role.READ, Role.INGEST, Role.AUDIENCE):
        [line] = left_by(server, method, b"", role)
        assert (line["method"], line["code"], line["name"], line["details"]) == (method, "PERMISSION_DENIED", role.value, {})


def test_other_calls_and_calls_without_a_key_leave_none(server: Secured):
    record(server, "ann")
    assert is_known(server, "ann")
    assert answer(server.channel, ERASE, metadata=bearer("wrong")).code is Code.UNAUTHENTICATED
    assert lines(server) == [], "or anybody could fill the disk"


def test_a_key_that_is_revoked_before_the_message_has_come_does_nothing_under_no_other_name(server: Secured):
    """A caller may send the headers, wait, and send the rest when the key has been taken away."""
    record(server, "ann")
    key, stored = create(server.keys_file, "default", "leaver", [Role.ADMIN])
    eventually(lambda: answer(server.channel, f"{RELEASES}/ListReleases", metadata=bearer(key)).code is Code.OK)
    before, revoked = len(lines(server)), threading.Event()

    def late() -> Iterator[bytes]:
        revoked.wait(CALL_S)
        yield v1.EraseUserRequest(person=of("ann")).SerializeToString()

    call = server.channel.stream_unary(ERASE).future(late(), metadata=bearer(key), timeout=CALL_S)
    revoke(server.keys_file, stored.id)
    eventually(lambda: answer(server.channel, "/no/where", metadata=bearer(key)).code is Code.UNAUTHENTICATED)
    revoked.set()
    assert call.exception().code() is Code.UNAUTHENTICATED
    assert is_known(server, "ann") and len(lines(server)) == before


def test_without_room_for_its_line_a_call_is_refused_and_not_done(server: Secured, bundle_path: Path):
    record(server, "ann")
    second = bundle_path.parent / "of-audit-full"
    release = write_tiny_bundle(second, n_items=50, dim=8, seed=7)
    with full_disk(server):
        for method, request in (
            (ERASE, v1.EraseUserRequest(person=of("ann"))),
            (EXPORT, v1.ExportUserRequest(person=of("ann"))),
            (f"{RELEASES}/ListReleases", v1.ListReleasesRequest()),
            (f"{RELEASES}/LoadRelease", v1.LoadReleaseRequest(bundle=str(second))),
        ):
            refused = server.answer(method, request, role=Role.ADMIN)
            assert refused.code is Code.UNAVAILABLE and not refused.data
            assert "the audit log cannot be written: No space left on device; nothing was done" in refused.message
        denied = server.answer(ERASE, b"", role=Role.READ)
        assert denied.code is Code.PERMISSION_DENIED and not denied.data
        assert is_known(server, "ann"), "what is not audited goes on, and ann was not erased"
        record(server, "ben")
    listed = server.answer(f"{RELEASES}/ListReleases", v1.ListReleasesRequest(), role=Role.ADMIN)
    assert listed.code is Code.OK, "with room again it goes on"
    assert release not in {one.release_id for one in v1.ListReleasesResponse.FromString(listed.data).releases}
    assert server.answer(ERASE, v1.EraseUserRequest(person=of("ann")), role=Role.ADMIN).code is Code.OK
    assert not is_known(server, "ann")
    assert [line["code"] for line in lines(server)] == ["STARTED", "OK"] * 2
