"""`python -m bench.fuzz`: a server bears it, and one that does not is found out."""

import json
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from towerbridge import v1

from bench.fuzz.__main__ import main, read_requests
from bench.fuzz.methods import all_methods
from bench.fuzz.requests import ALL_ROLES, Request, Requests
from bench.fuzz.soak import fuzz, send
from bench.fuzz.values import Known

RECOMMEND = "/towerbridge.v1.RecommendationService/Recommend"
SEED = 7
KNOWN = Known(
    items=("item-1", "item-2"),
    users=("ann", "ben"),
    event_types=("view",),
    categories=("shelf-1",),
    attributes=("price",),
    dim=4,
    text_dim=0,
    release_ids=("r1",),
    bundles=("/bundles/one",),
    services=("towerbridge.v1.EventService",),
    revision="",
    now_s=1_800_000_000,
)


def request(**changes: Any) -> Request:
    message = v1.RecommendRequest(subject=v1.Subject(user_id="ann"), limit=3).SerializeToString()
    metadata = (("authorization", f"Bearer {ALL_ROLES}"), ("x-odd-bin", b"\xff\x00"))
    whole = Request(0, RECOMMEND, "sane", (message,), deadline_s=10.0, cancel_after_s=None, metadata=metadata)
    return replace(whole, **changes)


@contextmanager
def answering(answer: Callable[[bytes, grpc.ServicerContext], bytes]) -> Iterator[str]:
    """A server on loopback that does nothing but Recommend."""
    server = grpc.server(futures.ThreadPoolExecutor(2))
    service, method = RECOMMEND.strip("/").split("/")
    handlers = {method: grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def test_a_server_bears_a_quick_run_and_every_method_was_reached(tmp_path: Path):
    result = fuzz(tmp_path, 1_500, SEED)
    assert result["passed"], (result["wrong"], result["problems"])
    assert result["requests"] == 1_500
    assert result["codes"].keys() >= all_methods().keys() - {"/towerbridge.v1.ReleaseService/LoadRelease"}
    assert not [name for name in result["never_ok"] if not name.endswith(("Release", "/Watch", "/List"))]


def fail_internal(data: bytes, context: grpc.ServicerContext) -> bytes:
    context.abort(grpc.StatusCode.INTERNAL, "an internal error")
    return b""


def fail_unexpectedly(data: bytes, context: grpc.ServicerContext) -> bytes:
    raise ValueError("nobody thought of it")


def answer_not_finite(data: bytes, context: grpc.ServicerContext) -> bytes:
    return v1.RecommendResponse(item_ids=["a"], scores=[float("nan")]).SerializeToString()


def answer_half(data: bytes, context: grpc.ServicerContext) -> bytes:
    return v1.RecommendResponse(item_ids=["a", "b"], scores=[1.0]).SerializeToString()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (fail_internal, "INTERNAL: an internal error"),
        (fail_unexpectedly, "UNKNOWN"),
        (answer_not_finite, "not finite"),
        (answer_half, "2 and 1 entries"),
        (lambda data, context: b"\x0a\xff", "no RecommendResponse"),
    ],
)
def test_a_server_that_fails_is_caught(answer: Callable[[bytes, grpc.ServicerContext], bytes], says: str):
    with answering(answer) as target:
        answers = send(target, {ALL_ROLES: "tb_key"}, [request()])
    [(whose, found)] = answers.problems
    assert whose == request()
    assert says in found


def test_a_server_that_answers_without_a_key_is_caught():
    with answering(lambda data, context: b"") as target:
        keyed = send(target, {ALL_ROLES: "tb_key"}, [request()])
        keyless = send(target, {}, [request(metadata=())])
    assert not keyed.problems
    assert [found for _, found in keyless.problems] == ["answered without a key"]


def test_a_server_that_went_away_is_caught():
    with answering(lambda data, context: b"") as target:
        pass
    answers = send(target, {}, [request(number=number) for number in range(100)])
    assert "UNAVAILABLE" in answers.problems[0][1]
    assert answers.ended < 100  # it is not asked for ever


def test_a_key_goes_out_in_place_of_its_name():
    seen: list[str] = []

    def answer(data: bytes, context: grpc.ServicerContext) -> bytes:
        seen.extend(str(value) for name, value in context.invocation_metadata() if name == "authorization")
        return b""

    with answering(answer) as target:
        send(target, {ALL_ROLES: "tb_key"}, [request()])
    assert seen == ["Bearer tb_key"]


def test_what_went_wrong_is_kept_and_can_be_sent_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file, again = tmp_path / "fuzz.json", tmp_path / "again.json"
    file.write_text(json.dumps({"problems": [{"problem": "INTERNAL", **request().to_json()}]}), encoding="utf-8")
    assert read_requests(file) == [request()]
    assert main(["--replay", str(file), "--json", str(again)]) == 0
    result = json.loads(again.read_text(encoding="utf-8"))
    assert (result["requests"], result["problems"], list(result["codes"])) == (1, [], [RECOMMEND])
    assert capsys.readouterr().out == "passed: 1 requests\n"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"problems": [{"messages": 1}]}'])
def test_a_file_without_requests_is_one_line_and_exit_code_2(tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "fuzz.json"
    file.write_text(content, encoding="utf-8")
    assert main(["--replay", str(file)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_request_is_made_again_from_seed_and_number():
    methods = list(all_methods().values())
    one, again, other = (Requests(methods, KNOWN, seed) for seed in (SEED, SEED, SEED + 1))
    made = [one.make(number) for number in range(300)]
    assert made == [again.make(number) for number in range(300)]
    assert made != [other.make(number) for number in range(300)]
    assert {request.method for request in made} >= {name for name in all_methods() if not name.endswith(("Release", "/List"))}
    assert len({request.kind for request in made}) == 7
