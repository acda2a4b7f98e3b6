"""All of it: a world, its requests, their answers, and whether the server bore it."""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import towerbridge
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tqdm import tqdm

from bench.fuzz.calls import Answer, Caller, send_all
from bench.fuzz.methods import all_methods
from bench.fuzz.requests import Request, Requests
from bench.fuzz.verdicts import problem
from bench.fuzz.world import World, running_world
from bench.process import ServerError

AT_ONCE = 16
"""Calls in flight."""
MAX_GROWTH_BYTES = 64 * 1024 * 1024
"""How much more resident memory the server may have at the end than after a fifth of the requests.

By then caches, pools and histories are full, and every method was called thousands of times in a long run. What is left is how
the allocator's heaps lie, which large messages and loads of a release move up and down by tens of MiB. In 100,000 requests the
bound finds a leak of 840 bytes a request.
"""
_WARM_SHARE = 0.2
_ENOUGH = 20  # problems, after which no more is sent
_TOLERANCE = 1e-4  # of a score


class Answers:
    """What came back, and what is wrong with it."""

    def __init__(self) -> None:
        self.ended = 0
        self.codes: dict[str, Counter[str]] = {}
        self.problems: list[tuple[Request, str]] = []

    def note(self, request: Request, answer: Answer) -> None:
        self.ended += 1
        method = all_methods().get(request.method)
        name = "none such" if method is None else request.method
        self.codes.setdefault(name, Counter())[answer.code.name if answer.code else "none"] += 1
        found = problem(request, answer, method)
        if found is not None:
            self.problems.append((request, f"{found}: {answer.details}" if answer.details else found))


def send(target: str, keys: dict[str, str], requests: Iterable[Request], watch: Callable[[int], None] | None = None) -> Answers:
    """Sends the requests, until there is enough that is wrong. `watch` is told how many have ended, after each."""
    answers = Answers()

    def wanted() -> Iterator[Request]:
        for request in requests:
            if len(answers.problems) >= _ENOUGH:
                return
            yield request

    def ended(request: Request, answer: Answer) -> None:
        answers.note(request, answer)
        if watch is not None:
            watch(answers.ended)

    async def run() -> None:
        caller = Caller(target, all_methods(), keys)
        try:
            await send_all(caller, wanted(), AT_ONCE, ended)
        finally:
            await caller.close()

    asyncio.run(run())
    return answers


def fuzz(folder: Path, count: int, seed: int, replay: list[Request] | None = None) -> dict[str, Any]:
    """Fuzzes a server in the folder with `count` requests of the seed, or with those to replay. The result, for JSON."""
    wrong: list[str] = []
    result: dict[str, Any] = {}
    log = None
    try:
        with running_world(folder, seed) as world:
            log = world.log
            made = Requests(list(all_methods().values()), world.known, seed)
            requests = (made.make(number) for number in range(count)) if replay is None else iter(replay)
            result = _fuzz(world, requests, count if replay is None else len(replay), wrong)
    except (ServerError, towerbridge.TowerbridgeError, psutil.Error) as error:
        wrong.append(f"{type(error).__name__}: {error}")
    if log is not None:
        said = log.read_text(encoding="utf-8", errors="replace")
        result["log_bytes"] = len(said)
        if "Traceback" in said:
            place = said.index("Traceback")
            wrong.append("the server's log has a traceback: " + said[max(0, place - 200) : place + 1_500])
    return {"passed": not wrong and not result.get("problems"), "wrong": wrong, "seed": seed, **result}


def _fuzz(world: World, requests: Iterable[Request], count: int, wrong: list[str]) -> dict[str, Any]:
    process = psutil.Process(world.server.pid)
    before = world.probe()
    resident: dict[int, int] = {0: process.memory_info().rss}
    each = max(1, count // 20)
    started = time.monotonic()
    with tqdm(total=count, unit=" requests", disable=None) as bar:

        def watch(ended: int) -> None:
            bar.update()
            if (ended % each == 0 or ended == count) and process.is_running():
                resident[ended] = process.memory_info().rss

        answers = send(world.server.target, world.keys, requests, watch)
    seconds = time.monotonic() - started
    warm = next((size for ended, size in resident.items() if ended >= count * _WARM_SHARE), resident[0])
    if (growth := process.memory_info().rss - warm) > MAX_GROWTH_BYTES:
        wrong.append(f"resident memory grew by {growth >> 20} MiB, more than {MAX_GROWTH_BYTES >> 20}")
    if (status := _health(world.server.target)) != "SERVING":
        wrong.append(f"health is {status}")
    after = world.probe()
    if before.keys() != after.keys() or not all(math.isclose(before[name], after[name], abs_tol=_TOLERANCE) for name in before):
        wrong.append(f"a Recommend that nothing should change answered {before} before and {after} after")
    return {
        "requests": answers.ended,
        "requests_per_s": round(answers.ended / seconds, 1),
        "resident_mib": {str(ended): size >> 20 for ended, size in resident.items()},
        "resident_growth_mib": round(growth / 2**20, 1),
        "resident_growth_allowed_mib": MAX_GROWTH_BYTES >> 20,
        "never_ok": sorted(set(all_methods()) - {name for name, codes in answers.codes.items() if codes["OK"]}),
        "codes": {name: dict(sorted(codes.items())) for name, codes in sorted(answers.codes.items())},
        "problems": [{"problem": found, **request.to_json()} for request, found in answers.problems],
    }


def _health(target: str) -> str:
    with grpc.insecure_channel(target) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        answer = health.Check(health_pb2.HealthCheckRequest(), timeout=30)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
