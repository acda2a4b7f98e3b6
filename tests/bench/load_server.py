"""Small servers on loopback for bench.load to find something out about, and bench.load itself, run in this process."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from towerbridge import v1

from bench.load.__main__ import main
from bench.load.mix import METHODS

RELEASE = "/towerbridge.v1.ReleaseService/GetRelease"
Answer = Callable[[v1.RecommendRequest, grpc.ServicerContext], v1.RecommendResponse]


def load(target: str, ids: Path, folder: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """The exit code and the JSON of a run of a second; `folder` gets r.json and r.html."""
    common = ["--target", target, "--ids", str(ids), "--json", str(folder / "r.json"), "--html", str(folder / "r.html")]
    common += ["--warm-up", "0.2", "--recall-queries", "5", "--processes", "1", "--limit", "5", "--p99-ms", "5000"]
    if "--duration" not in arguments:
        common += ["--duration", "1"]
    status = main([*common, "--deadline-ms", "10000", *arguments])
    return status, json.loads((folder / "r.json").read_text(encoding="utf-8"))


@contextmanager
def answering(
    recommend: Answer, credentials: grpc.ServerCredentials | None = None, seen: list[Mapping[str, Any]] | None = None
) -> Iterator[str]:
    """A server of GetRelease, and Recommend by a function. seen: gets the metadata of every call."""

    def handler(request_type: Any, answer: Callable[[Any, grpc.ServicerContext], Any]) -> grpc.RpcMethodHandler:
        def call(request: Any, context: grpc.ServicerContext) -> Any:
            if seen is not None:
                seen.append(dict(context.invocation_metadata()))
            return answer(request, context)

        return grpc.unary_unary_rpc_method_handler(call, request_type.FromString, lambda reply: reply.SerializeToString())

    methods = {
        RELEASE: handler(v1.GetReleaseRequest, lambda request, context: v1.GetReleaseResponse(release_id="r1", dim=8)),
        METHODS["recommend"]: handler(v1.RecommendRequest, recommend),
    }

    class Handlers(grpc.GenericRpcHandler):
        def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
            return methods.get(str(handler_call_details.method))

    server = grpc.server(futures.ThreadPoolExecutor(8), (Handlers(),))
    address = "localhost:0"
    port = server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)
    server.start()
    try:
        yield f"localhost:{port}"
    finally:
        server.stop(None).wait()


def same(*item_ids: str, release_id: str = "r1") -> Answer:
    """Always this answer."""
    return lambda request, context: v1.RecommendResponse(item_ids=item_ids, release_id=release_id)


class AtMost:
    """Sheds what comes faster than a rate, but for a little at once."""

    def __init__(self, rate: float, at_once: float) -> None:
        self._rate, self._at_once = rate, at_once
        self._left, self._when = at_once, time.monotonic()
        self._lock = threading.Lock()

    def __call__(self, request: v1.RecommendRequest, context: grpc.ServicerContext) -> v1.RecommendResponse:
        with self._lock:
            now = time.monotonic()
            self._left = min(self._at_once, self._left + (now - self._when) * self._rate)
            self._when = now
            shed = self._left < 1
            self._left -= 0 if shed else 1
        if shed:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many")
        return v1.RecommendResponse(item_ids=["item-1"], release_id="r1")
