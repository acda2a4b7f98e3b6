"""Sync thread pool or asyncio at the gRPC edge? The same handler behind both, under an open-loop Poisson load.

Usage (from the checkout): python docs/decisions/sync_or_aio.py BUNDLE [--seconds 10] [--repeats 3] > sync_or_aio.json
BUNDLE has items named item-0 to item-9999, 64 components: tests.tiny.write_tiny_bundle(path, 10000, 64, history_length=50).

Each server is a process of its own; the load is another; latency counts from the intended send time. Half of the calls are
for a person whose history changed just before, so that their vector must be encoded. Runs are interleaved.
"""

import argparse
import asyncio
import json
import multiprocessing
import random
import signal
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import uvloop
from towerbridge.v1 import common_pb2, recommendation_pb2, recommendation_pb2_grpc

from bench.hardware import hardware
from server.api.recommendations import RecommendationServicer
from server.api.wire import deadline_of
from server.recommend.flow import Recommender

EDGES = ("sync", "aio", "aio+uvloop", "sync, switch 0.2 ms", "aio+uvloop, switch 0.2 ms")
RATES = (200, 1000)
PEOPLE = 500


def serve(edge: str, bundle: str, ready: Connection) -> None:
    """One server, until its pipe closes."""
    from server.app import App
    from server.config import Config

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with tempfile.TemporaryDirectory() as data:
        app = App(Config(bundle=Path(bundle), data=Path(data), listen={"port": 0}))  # type: ignore[arg-type]
        app.start()  # its own edge listens too, and gets no calls
        edge, _, switch = edge.partition(", switch ")
        if switch:  # how long a thread may hold the interpreter's lock while others wait; 5 ms by default
            sys.setswitchinterval(float(switch.removesuffix(" ms")) / 1e3)
        if edge == "sync":
            serve_sync(app, ready)
        elif edge == "aio":
            asyncio.run(serve_aio(app, ready))
        else:
            uvloop.run(serve_aio(app, ready))
        app.stop()


def parts_of(app: Any) -> tuple[Recommender, RecommendationServicer]:
    """The flow, and the servicer that decodes and encodes, over a loaded server."""
    tenant = app.tenant
    recommender = Recommender(tenant.people, tenant.catalogue, tenant._engine, tenant._release)
    servicer = RecommendationServicer(
        recommender, tenant.people, tenant.catalogue, tenant._journal, tenant._release, tenant._config
    )
    return recommender, servicer


def finished(coroutine: Any) -> Any:
    """What a coroutine that waits for nothing returns."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise RuntimeError("it waited")


def serve_sync(app: Any, ready: Connection) -> None:
    """A thread pool: decode, wait for the engine, encode."""
    recommender, servicer = parts_of(app)

    class SyncServicer(recommendation_pb2_grpc.RecommendationServiceServicer):
        def Recommend(self, request: Any, context: Any) -> Any:
            deadline = deadline_of(context, 10_000)
            revision = servicer._journal.revision
            ask = finished(servicer._decode(request, revision, deadline))
            answer = recommender.start(ask, deadline).answer.result(timeout=10)
            return servicer._encode(recommender.rank(ask, answer, final=True), request.attributes, revision)  # type: ignore[arg-type]

    server = grpc.server(ThreadPoolExecutor(16))
    recommendation_pb2_grpc.add_RecommendationServiceServicer_to_server(SyncServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    ready.send(port)
    wait_for_end(ready)
    server.stop(1).wait()


async def serve_aio(app: Any, ready: Connection) -> None:
    """The same decode, engine and encode, with the wait as an await."""
    recommender, servicer = parts_of(app)

    class AioServicer(recommendation_pb2_grpc.RecommendationServiceServicer):
        async def Recommend(self, request: Any, context: Any) -> Any:
            deadline = deadline_of(context, 10_000)
            revision = servicer._journal.revision
            ask = await servicer._decode(request, revision, deadline)
            answer = await asyncio.wrap_future(recommender.start(ask, deadline).answer)
            return servicer._encode(recommender.rank(ask, answer, final=True), request.attributes, revision)  # type: ignore[arg-type]

    server = grpc.aio.server()
    recommendation_pb2_grpc.add_RecommendationServiceServicer_to_server(AioServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    ready.send(port)
    await asyncio.get_running_loop().run_in_executor(None, wait_for_end, ready)
    await server.stop(1)


def wait_for_end(ready: Connection) -> None:
    try:
        ready.recv()
    except EOFError:
        return


def load(port: int, rate: int, seconds: float, items: int, seed: int) -> dict[str, float]:
    """Open-loop Poisson arrivals; latencies in milliseconds from the intended send time."""
    random_ = random.Random(seed)
    channels = [grpc.insecure_channel(f"127.0.0.1:{port}", options=[("n", number)]) for number in range(4)]
    stubs = [recommendation_pb2_grpc.RecommendationServiceStub(channel) for channel in channels]
    histories = [[f"item-{random_.randrange(items)}" for _ in range(20)] for _ in range(PEOPLE)]
    latencies: list[float] = []
    failed = 0
    done = threading.Semaphore(0)
    begin = time.perf_counter() + 0.2
    at, count = begin, 0
    while at < begin + seconds:
        at += random_.expovariate(rate)
        count += 1
        subject = common_pb2.Subject(history=common_pb2.InlineHistory(item_ids=histories[random_.randrange(PEOPLE)]))
        if count % 2:
            subject = common_pb2.Subject(vector=common_pb2.UserVector(values=[1.0] * 64))
        request = recommendation_pb2.RecommendRequest(subject=subject, limit=100)
        pause = at - time.perf_counter()
        if pause > 0:
            time.sleep(pause)
        intended = at

        def finish(call: Any, intended: float = intended) -> None:
            nonlocal failed
            if call.code() is grpc.StatusCode.OK:
                latencies.append((time.perf_counter() - intended) * 1e3)
            else:
                failed += 1
            done.release()

        stubs[count % 4].Recommend.future(request, timeout=5).add_done_callback(finish)
    for _ in range(count):
        done.acquire()
    kept = np.array(latencies[len(latencies) // 10 :])  # warm-up thrown away
    p50, p99 = np.percentile(kept, [50, 99])
    return {
        "achieved_rps": round(count / seconds, 1),
        "p50_ms": round(float(p50), 2),
        "p99_ms": round(float(p99), 2),
        "failed": failed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--edges", nargs="+", default=EDGES, choices=EDGES)
    arguments = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    runs = []
    for repeat in range(arguments.repeats):
        for edge in arguments.edges:
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=serve, args=(edge, arguments.bundle, theirs))
            process.start()
            theirs.close()
            port = ours.recv()
            for rate in RATES:
                load(port, rate, 1.0, 10_000, seed=99)
                figures = load(port, rate, arguments.seconds, 10_000, seed=repeat)
                runs.append({"edge": edge, "rate": rate, **figures})
                print(runs[-1], file=sys.stderr)
            ours.close()
            process.join(20)
            process.kill()
    print(json.dumps({"hardware": hardware(), "grpcio": grpc.__version__, "runs": runs}, indent=1))


if __name__ == "__main__":
    main()
