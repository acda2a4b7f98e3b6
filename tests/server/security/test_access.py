"""Who may call what, of a real server: without a key nothing, with a key what its roles say, and health always."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from towerbridge import v1

from server.security.key_file import create, read_keys, revoke
from server.security.roles import GRANTED, ROLE_OF, Role
from tests.server.security.keyring import eventually
from tests.server.security.secured import CALL_S, OURS, Secured, answer, bearer, secured

Code = grpc.StatusCode
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
RECORD, LIST = "/towerbridge.v1.EventService/RecordEvents", "/towerbridge.v1.ReleaseService/ListReleases"
UNKNOWN = ("/towerbridge.v1.EventService/Forget", "/towerbridge.v2.EventService/RecordEvents", "/no/where", "/")
REFLECTION_V1 = REFLECTION.replace("v1alpha", "v1")
LIST_SERVICES = reflection_pb2.ServerReflectionRequest(list_services="*")


@pytest.fixture(scope="module")
def server(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    with secured(bundle_path, tmp_path_factory.mktemp("access"), audience={"enabled": True}) as running:
        yield running


@pytest.mark.parametrize("method", [*OURS, REFLECTION, REFLECTION_V1])
def test_without_a_valid_key_no_method_is_reached(server: Secured, method: str):
    stranger = "tb_" + "A" * 43
    key = server.keys["default", ROLE_OF[method]]
    for metadata in (
        [],
        bearer(""),
        bearer(stranger),
        bearer(key[:-1]),
        bearer(key + "A"),
        bearer(key, key),
        bearer(stranger, key),
        [("authorization", key)],
        [("authorization", f"Basic {key}")],
        [("x-api-key", key)],
    ):
        refused = answer(server.channel, method, metadata=metadata)
        assert refused.code is Code.UNAUTHENTICATED and "authorization: Bearer KEY" in refused.message and not refused.data


@pytest.mark.parametrize("method", [*OURS, REFLECTION, REFLECTION_V1])
def test_every_role_but_the_methods_own_is_denied_and_that_one_is_let_in(server: Secured, method: str):
    needed = ROLE_OF[method]
    for role in GRANTED:
        found = server.answer(method, role=role)
        if role is needed:
            assert found.code not in {Code.UNAUTHENTICATED, Code.PERMISSION_DENIED, Code.UNKNOWN, Code.INTERNAL}, found
        else:
            assert found.code is Code.PERMISSION_DENIED and not found.data
            assert found.message == f"{method} needs a key with the role {needed.value}"


def test_what_a_server_registers_is_what_the_role_map_names(server: Secured):
    served = server.app._edge._calls._tenants["default"]
    assert served.keys() == {*OURS, REFLECTION, REFLECTION_V1}
    assert {**server.app.tenant.handlers}.keys() == set(OURS), "a handler that is in no role is never reached"


@pytest.mark.parametrize("method", UNKNOWN)
def test_a_method_that_is_not_there_says_so_only_to_those_with_a_key(server: Secured, method: str):
    assert answer(server.channel, method).code is Code.UNAUTHENTICATED
    for role in GRANTED:
        assert server.answer(method, role=role).code is Code.UNIMPLEMENTED


def test_health_needs_no_key_and_is_not_hindered_by_a_wrong_one(server: Secured):
    for metadata in ([], bearer("wrong"), bearer(server.keys["default", Role.READ])):
        assert answer(server.channel, "/grpc.health.v1.Health/Check", metadata=metadata).code is Code.OK
        watch = server.channel.unary_stream("/grpc.health.v1.Health/Watch")(b"", metadata=metadata, timeout=CALL_S)
        assert health_pb2.HealthCheckResponse.FromString(next(watch)).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()


def test_reflection_is_for_admins(server: Secured):
    found = server.answer(REFLECTION, LIST_SERVICES, role=Role.ADMIN)
    assert found.code is Code.OK and b"towerbridge.v1.EventService" in found.data


def test_reflection_that_is_turned_off_is_not_there(bundle_path: Path, tmp_path: Path):
    with secured(bundle_path, tmp_path, security={"reflection": False}) as server:
        assert server.answer(REFLECTION, LIST_SERVICES, role=Role.ADMIN).code is Code.UNIMPLEMENTED
        assert server.answer(LIST, role=Role.ADMIN).code is Code.OK


def test_a_key_with_several_roles_has_them_all_and_no_other(server: Secured):
    key, _ = create(server.keys_file, "default", "both", [Role.READ, Role.INGEST])
    eventually(lambda: answer(server.channel, RECORD, metadata=bearer(key)).code is not Code.UNAUTHENTICATED)
    assert answer(server.channel, "/towerbridge.v1.ReleaseService/GetRelease", metadata=bearer(key)).code is Code.OK
    assert answer(server.channel, LIST, metadata=bearer(key)).code is Code.PERMISSION_DENIED


def test_keys_are_replaced_and_revoked_while_the_server_serves(server: Secured):
    """No call fails meanwhile that has a key which is valid before and after."""
    ends, failed = threading.Event(), []
    steady = bearer(server.keys["default", Role.ADMIN])

    def call_all_the_time() -> None:
        while not ends.is_set():
            found = answer(server.channel, LIST, metadata=steady)
            if found.code is not Code.OK:
                failed.append(found)
            time.sleep(0.01)

    caller = threading.Thread(target=call_all_the_time)
    caller.start()
    try:
        old, kept = create(server.keys_file, "default", "rotated", [Role.ADMIN])
        eventually(lambda: answer(server.channel, LIST, metadata=bearer(old)).code is Code.OK)
        new, _ = create(server.keys_file, "default", "rotated", [Role.ADMIN])
        eventually(lambda: answer(server.channel, LIST, metadata=bearer(new)).code is Code.OK)
        assert answer(server.channel, LIST, metadata=bearer(old)).code is Code.OK, "both are valid until one is revoked"
        revoke(server.keys_file, kept.id)
        eventually(lambda: answer(server.channel, LIST, metadata=bearer(old)).code is Code.UNAUTHENTICATED)
        assert answer(server.channel, LIST, metadata=bearer(new)).code is Code.OK
    finally:
        ends.set()
        caller.join()
    assert failed == []


def test_a_damaged_file_of_keys_changes_nothing_while_the_server_serves(bundle_path: Path, tmp_path: Path):
    with secured(bundle_path, tmp_path) as server:
        server.keys_file.write_text("{", encoding="utf-8")
        time.sleep(1.5)  # longer than changes may go unseen
        assert server.answer(LIST, role=Role.ADMIN).code is Code.OK
        assert answer(server.channel, LIST, metadata=bearer("tb_" + "A" * 43)).code is Code.UNAUTHENTICATED


@pytest.mark.parametrize("role", [None, Role.READ], ids=["without a key", "with a key of another role"])
def test_a_refused_caller_is_answered_before_the_message_has_come(server: Secured, role: Role | None):
    """Nor can the server be made to take in what they send."""
    over = threading.Event()

    def never() -> Iterator[bytes]:
        over.wait(CALL_S)
        yield b""

    metadata = [] if role is None else bearer(server.keys["default", role])
    try:
        call = server.channel.stream_unary(RECORD)
        with pytest.raises(grpc.RpcError) as refused:
            call(never(), metadata=metadata, timeout=CALL_S)
    finally:
        over.set()
    expected = Code.UNAUTHENTICATED if role is None else Code.PERMISSION_DENIED
    assert refused.value.code() is expected  # type: ignore[attr-defined]


def test_keys_are_kept_as_hashes_and_are_in_no_file_of_the_server(server: Secured):
    _, stored = read_keys(server.keys_file)
    assert len(stored) >= len(GRANTED)
    folder = server.keys_file.parent
    for path in folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert not [key for key in server.keys.values() if key.encode() in content], path


def test_the_message_of_a_denied_call_is_not_worked_on(server: Secured):
    event = v1.Event(event_id="denied", user_id="denied", item_id="item-1", type="view")
    request = v1.RecordEventsRequest(events=[event])
    assert server.answer(RECORD, request, role=Role.READ).code is Code.PERMISSION_DENIED
    asked = v1.GetUserRequest(user_id="denied")
    assert server.answer("/towerbridge.v1.UserService/GetUser", asked, role=Role.READ).code is Code.NOT_FOUND
