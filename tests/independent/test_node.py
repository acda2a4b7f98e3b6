"""@grpc/grpc-js and @grpc/proto-loader, as somebody would use them who has the contract's files and docs/calling.md."""

import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import towerbridge
from towerbridge import v1

from bench.world.ids import FILE_NAME
from server.security.roles import Role
from tests.independent.conftest import NODE, Guarded
from tests.independent.serving import PATIENCE_S, PROTOS, ROOT

RECOMMEND = "/towerbridge.v1.RecommendationService/Recommend"


def client(node: Path, scene: str, target: str, **settings: object) -> dict[str, Any]:
    """What a scene of client.mjs saw."""
    environment = {name: value for name, value in os.environ.items() if name != "TOWERBRIDGE_API_KEY"}
    environment |= {name: str(value) for name, value in ({"TARGET": target, "PROTOS": PROTOS} | settings).items()}
    command = ["node", "client.mjs", scene]
    done = subprocess.run(command, cwd=node, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def service_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The service config that docs/calling.md asks people to copy, as it is there."""
    text = (ROOT / "docs" / "calling.md").read_text(encoding="utf-8")
    [block] = re.findall(r"^```json\n(\{\n  \"methodConfig\".*?)^```$", text, re.MULTILINE | re.DOTALL)
    file = tmp_path_factory.mktemp("config") / "service_config.json"
    file.write_text(block, encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def visit(node: Path, target: str, service_config: Path) -> dict[str, Any]:
    """A visitor who is answered, agrees, views something, and is answered again."""
    return client(node, "visit", target, SERVICE_CONFIG=service_config)


def test_nothing_is_kept_before_the_visitor_agrees(visit: Mapping[str, Any]):
    assert visit["before"]["degraded"] == ["DEGRADED_REASON_NO_CONSENT"]
    assert visit["dropped"]["results"][0]["status"] == "EVENT_STATUS_DROPPED_NO_CONSENT"


def test_an_acknowledged_event_is_in_the_next_answer(visit: Mapping[str, Any], target: str):
    assert [result["status"] for result in visit["accepted"]["results"]] == ["EVENT_STATUS_ACCEPTED"]
    after = visit["after"]
    assert after["degraded"] == [] and after["events_behind"] == 0 and after["vector_computed_at"] is not None
    assert len(after["item_ids"]) == 5 and "item-00000000" not in after["item_ids"]
    with towerbridge.Client(target, timeout_s=30) as python:
        ours = python.recommend(visitor_id=visit["visitor"], limit=5, exclude_seen=True)
    assert after["item_ids"] == list(ours.item_ids) and after["release_id"] == ours.release_id
    assert after["scores"] == pytest.approx(list(ours.scores), abs=1e-6)


def test_the_same_event_again_is_a_duplicate(visit: Mapping[str, Any]):
    assert visit["again"]["results"][0]["status"] == "EVENT_STATUS_DUPLICATE"


def test_integers_of_64_bits_are_strings_of_digits(visit: Mapping[str, Any]):
    timings = visit["after"]["timings"]
    assert timings.keys() == {"queue_us", "encode_us", "search_us"}
    assert all(isinstance(value, str) and value.isdecimal() for value in timings.values())
    assert int(visit["after"]["vector_computed_at"]["seconds"]) > 1_700_000_000


def test_errors_arrive_with_the_codes_and_messages_that_python_gets(node: Path, target: str):
    seen = client(node, "refusals", target)
    with towerbridge.Client(target, timeout_s=30) as python:
        with pytest.raises(towerbridge.InvalidArgument) as limit:
            python.recommend(visitor_id="somebody", limit=0)
        with pytest.raises(towerbridge.NotFound) as item:
            python.find_similar_items("no-such-item", limit=5)
    assert (seen["limit"]["code"], seen["limit"]["details"]) == ("INVALID_ARGUMENT", limit.value.message)
    assert seen["limit"]["details"].startswith("limit")
    assert (seen["nobody"]["code"], seen["nobody"]["details"].split(":")[0]) == ("INVALID_ARGUMENT", "subject")
    assert (seen["item"]["code"], seen["item"]["details"]) == ("NOT_FOUND", item.value.message)


def test_a_stream_that_is_shed_says_when_to_come_again_and_is_let_in_then(node: Path, narrow: str, service_config: Path):
    seen = client(node, "crowd", narrow, SERVICE_CONFIG=service_config)
    assert all(wait["pushback_ms"] > 0 and "repeat" in wait["details"] for wait in seen["waited"]) and seen["waited"]
    assert seen["first"][-1]["acknowledged"] == "3"
    assert [result["status"] for reply in seen["first"] for result in reply["results"]] == ["EVENT_STATUS_ACCEPTED"] * 3
    assert [result["status"] for reply in seen["second"] for result in reply["results"]] == ["EVENT_STATUS_ACCEPTED"]


@contextmanager
def refusing(*codes: grpc.StatusCode) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that ends Recommend with one code after the other and then answers; and the metadata of each attempt."""
    attempts: list[dict[str, Any]] = []

    def answer(request: v1.RecommendRequest, context: grpc.ServicerContext) -> v1.RecommendResponse:
        attempts.append(dict(context.invocation_metadata()))
        if len(attempts) <= len(codes):
            context.abort(codes[len(attempts) - 1], "not now")
        return v1.RecommendResponse(release_id="r1")

    class Handlers(grpc.GenericRpcHandler):
        def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
            if handler_call_details.method != RECOMMEND:
                return None
            return grpc.unary_unary_rpc_method_handler(
                answer, v1.RecommendRequest.FromString, v1.RecommendResponse.SerializeToString
            )

    server = grpc.server(ThreadPoolExecutor(2), (Handlers(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}", attempts
    finally:
        server.stop(None).wait()


def test_the_service_config_of_the_guide_repeats_what_is_unavailable(node: Path, service_config: Path):
    unavailable = grpc.StatusCode.UNAVAILABLE
    with refusing(unavailable, unavailable) as (target, attempts):
        assert client(node, "once", target, SERVICE_CONFIG=service_config)["answer"]["release_id"] == "r1"
        assert [one.get("grpc-previous-rpc-attempts") for one in attempts] == [None, "1", "2"]
    with refusing(*[unavailable] * 4) as (target, attempts):
        assert client(node, "once", target, SERVICE_CONFIG=service_config)["code"] == "UNAVAILABLE"
        assert len(attempts) == 3, "maxAttempts"


def test_the_service_config_of_the_guide_does_not_repeat_what_was_shed(node: Path, service_config: Path):
    with refusing(grpc.StatusCode.RESOURCE_EXHAUSTED) as (target, attempts):
        seen = client(node, "once", target, SERVICE_CONFIG=service_config)
    assert (seen["code"], seen["details"], len(attempts)) == ("RESOURCE_EXHAUSTED", "not now", 1)


def test_a_load_of_random_arrivals_is_answered(node: Path, target: str, world: Path):
    seen = client(node, "load", target, IDS=world / FILE_NAME, RATE=50, DURATION=1)
    assert seen["codes"] == {"OK": seen["calls"]} and seen["calls"] > 10
    assert 0 < seen["latency_ms"]["p50"] <= seen["latency_ms"]["p99"] <= seen["latency_ms"]["max"]


def test_over_tls_a_key_lets_in_for_its_roles_and_no_more(node: Path, guarded: Guarded):
    visit = client(node, "visit", guarded.target, ROOT=guarded.root, TOWERBRIDGE_API_KEY=guarded.both)
    assert visit["after"]["degraded"] == [] and len(visit["after"]["item_ids"]) == 5
    reader = client(node, "refusals", guarded.target, ROOT=guarded.root, TOWERBRIDGE_API_KEY=guarded.keys[Role.READ])
    assert "answer" in reader["read"] and reader["ingest"]["code"] == "PERMISSION_DENIED"
    assert "role ingest" in reader["ingest"]["details"]
    nobody = client(node, "refusals", guarded.target, ROOT=guarded.root)
    assert {end["code"] for end in nobody.values()} == {"UNAUTHENTICATED"}


def test_a_certificate_of_another_authority_is_not_trusted(node: Path, guarded: Guarded):
    seen = client(node, "once", guarded.target, ROOT=guarded.stranger, TOWERBRIDGE_API_KEY=guarded.both)
    assert seen["code"] == "UNAVAILABLE" and "certificate" in seen["details"]


def test_the_lock_file_names_no_host_to_fetch_from():
    packages = json.loads((NODE / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    assert all("resolved" not in package for package in packages.values())
    assert all(package["integrity"].startswith("sha512-") for name, package in packages.items() if name)
