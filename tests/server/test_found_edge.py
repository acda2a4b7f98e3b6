"""What a review of the edge found."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import towerbridge
from grpc_health.v1 import health_pb2, health_pb2_grpc
from towerbridge import v1

from server.api.health import LIVE
from server.security.roles import Role
from tests.server.conftest import Serve, Served
from tests.server.security.keyring import eventually
from tests.server.security.secured import bearer, secured
from tests.server.test_lifecycle import NOT_SERVING, PATIENCE_S, SERVING, Busy, channel_to, health_of

CHECK = "/grpc.health.v1.Health/Check"
ERASE = "/towerbridge.v1.UserService/EraseUser"


def watch(channel: grpc.Channel, service: str = "") -> Any:
    return health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE_S)


def test_those_who_watch_health_do_not_keep_those_out_who_ask(serve: Serve):
    served = serve(overload={"max_admins": 1})
    with channel_to(served) as channel:
        watches = [watch(channel) for _ in range(20)]
        assert [next(one).status for one in watches] == [SERVING] * 20
        assert health_of(channel, "") == SERVING


def test_a_watcher_hears_of_a_change_after_another_one_has_left(serve: Serve):
    served = serve()
    with channel_to(served) as channel:
        first, second = watch(channel), watch(channel)
        assert next(first).status == next(second).status == SERVING
        first.cancel()
        eventually(lambda: served.app._edge._calls._guard._watches.__len__() == 1)
        served.app._edge.not_serving()
        assert next(second).status == NOT_SERVING


def test_the_process_lives_although_it_serves_no_more(serve: Serve):
    served = serve()
    served.app._edge.not_serving()
    with channel_to(served) as channel:
        eventually(lambda: health_of(channel, "") == NOT_SERVING)
        assert health_of(channel, LIVE) == SERVING


def test_a_health_call_whose_message_never_comes_is_ended(serve: Serve, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("server.api.guard._MESSAGE_SECONDS", 0.1)
    served = serve()
    silent = Busy(served)  # an event to wait for, which nobody sets before the end

    def nothing() -> Iterator[bytes]:
        silent._let_go.wait(PATIENCE_S)
        yield from ()

    with channel_to(served) as channel:
        call = channel.stream_unary(CHECK).future(nothing(), timeout=PATIENCE_S)
        assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED and "message" in call.details()
        assert health_of(channel, "") == SERVING
    silent.let_go()


def test_a_health_call_without_a_message_is_the_callers_error(shared: Served):
    with channel_to(shared) as channel:
        call = channel.stream_unary(CHECK).future(iter(()), timeout=PATIENCE_S)
        assert call.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_an_answer_that_is_too_large_says_to_ask_for_fewer(serve: Serve):
    served = serve(listen={"max_message_bytes": 1024})
    row = towerbridge.recommend_request(user_id="ann", limit=50)
    for field, ask in {
        "item_ids": lambda: served.client.get_items([f"item-{n}" for n in range(50)]),
        "limit": lambda: served.client.recommend(user_id="ann", limit=50, attributes=["colour", "kind", "year", "title"]),
        "requests": lambda: served.client.batch_recommend([row, row]),
    }.items():
        with pytest.raises(towerbridge.InvalidArgument, match=f"{field}: the answer would have .*ask for fewer"):
            ask()
    assert len(served.client.get_items(["item-1"]).items) == 1


def test_an_erasure_whose_caller_has_left_is_in_the_audit_log_as_what_became_of_it(bundle_path: Path, tmp_path: Path):
    with secured(bundle_path, tmp_path) as server:
        event = towerbridge.event("view", "item-1", user_id="ann")
        with server.client("default", Role.INGEST) as client:
            client.record_events([event])
        log = server.keys_file.parent / "data" / "default" / "audit.jsonl"

        def codes() -> list[str]:
            lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []
            return [line["code"] for line in lines if line["method"] == ERASE]

        busy = Busy(Served(server.app, client, server.clock))
        request = v1.EraseUserRequest(person=v1.Person(user_id="ann")).SerializeToString()
        metadata = bearer(server.keys["default", Role.ADMIN])
        call = server.channel.unary_unary(ERASE).future(request, timeout=PATIENCE_S, metadata=metadata)
        eventually(lambda: codes() == ["STARTED"])
        call.cancel()
        busy.let_go()
        eventually(lambda: codes() == ["STARTED", "OK"])
        with server.client("default", Role.READ) as client, pytest.raises(towerbridge.NotFound):
            client.get_user(user_id="ann")


def test_an_error_that_nobody_foresaw_in_audited_work_is_logged_once(
    bundle_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with secured(bundle_path, tmp_path) as server:

        def broken(*_: object, **__: object) -> None:
            raise ZeroDivisionError("hunter2")

        server.app.tenant.control.rollback = broken  # type: ignore[assignment, method-assign]
        answer = server.answer("/towerbridge.v1.ReleaseService/RollbackRelease", role=Role.ADMIN)
        assert answer.code is grpc.StatusCode.INTERNAL and "hunter2" not in answer.message
    assert caplog.text.count("ZeroDivisionError: hunter2") == 1


def test_a_broken_message_to_a_method_that_is_audited_leaves_its_lines(bundle_path: Path, tmp_path: Path):
    with secured(bundle_path, tmp_path) as server:
        assert server.answer(ERASE, b"\xff\xff", role=Role.ADMIN).code is grpc.StatusCode.INVALID_ARGUMENT
        log = (server.keys_file.parent / "data" / "default" / "audit.jsonl").read_text(encoding="utf-8")
        assert [json.loads(line)["code"] for line in log.splitlines()] == ["STARTED", "INVALID_ARGUMENT"]


def test_a_stop_while_the_server_loads_ends_it(tmp_path: Path, bundle_path: Path):
    command = [sys.executable, "-m", "server", "--bundle", str(bundle_path), "--data", str(tmp_path / "data"), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    status = Path(f"/proc/{process.pid}/status")

    def listens_to_sigterm() -> bool:
        [caught] = [line.split()[1] for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("SigCgt:")]
        return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)

    eventually(listens_to_sigterm)
    process.send_signal(signal.SIGTERM)  # torch alone takes seconds from here
    out, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0 and "ready" not in out and "stopped while loading" in errors
