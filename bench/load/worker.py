"""python -m bench.load.worker: one process of the load. A Job on standard input, then a line with the time to start at.

It writes a record for every call into the job's file, and prints what else it found as JSON. It says "ready" when it is
connected and its requests are made, and then waits for the time: of time.monotonic(), which all processes of a machine share.
"""

import asyncio
import gc
import heapq
import json
import resource
import sys
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import IO, Any

import grpc
import numpy as np
import uvloop
from towerbridge import v1

from bench.load.arrivals import REPLAYED, Arrival, arrivals, replay_arrivals
from bench.load.job import PAIR, PAIR_EVENTS, PAIR_RECOMMEND, RECORD, REFUSED, UNSENT, Job
from bench.load.mix import KINDS, METHODS, Replay, read_replay
from bench.load.pacing import Pacer
from bench.load.probe import Freshness, shows_everything
from bench.load.releases import ReleaseCheck, read_owners
from bench.load.requests import Requests
from bench.world.ids import read_ids

MOST_IN_FLIGHT = 20_000
_CONNECT_S = 20.0
_BUFFERED = 1 << 16
_PAIR_SAMPLE = 8  # one in so many pairs has its answer looked at
_EVENTS, _RECOMMEND = KINDS.index("events"), KINDS.index("recommend")
_KEPT = (
    v1.EventStatus.EVENT_STATUS_ACCEPTED,
    v1.EventStatus.EVENT_STATUS_DUPLICATE,
    v1.EventStatus.EVENT_STATUS_ACCEPTED_UNKNOWN_ITEM,
    v1.EventStatus.EVENT_STATUS_ACCEPTED_UNKNOWN_TYPE,
)


class Sender:
    """Sends calls when they are due, whatever became of earlier ones, and records each."""

    def __init__(self, job: Job, channels: list[grpc.aio.Channel], requests: Requests, file: IO[bytes]) -> None:
        self._load = job.load
        self._requests = requests
        self._file = file
        self._buffer = bytearray()
        self._metadata = job.load.reach.metadata
        stubs: list[list[Any]] = [[channel.unary_unary(METHODS[kind]) for kind in KINDS] for channel in channels]
        self._stubs: Iterator[list[Any]] = cycle(stubs)
        self._tasks: set[asyncio.Task[None]] = set()
        self._pairs = 0
        self.begin = 0.0
        self.check = ReleaseCheck(read_owners(Path(job.load.releases))) if job.load.releases else None
        self.lags: list[float] = []  # seconds, of pairs that were looked at
        self.behind = 0  # of those, answers that did not show the event

    async def run(self, due: Iterator[Arrival], replay: Replay | None) -> None:
        """Sends all, and waits until each is answered or out of time."""
        with Pacer() as pacer:
            for arrival in due:
                await pacer.until(self.begin + arrival.due)
                if len(self._tasks) >= MOST_IN_FLIGHT:
                    self._record(arrival.due, 0.0, 0.0, _kind(arrival), UNSENT)
                    continue
                task = asyncio.ensure_future(self._send(arrival, replay))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=2 * self._load.deadline_s + 1)
        self.flush()

    def flush(self) -> None:
        self._file.write(self._buffer)
        self._buffer.clear()

    def call(self, kind: int, request: bytes) -> Any:
        return next(self._stubs)[kind](request, timeout=self._load.deadline_s, metadata=self._metadata)

    async def _send(self, arrival: Arrival, replay: Replay | None) -> None:
        if arrival.kind == PAIR:
            await self._send_pair(arrival)
            return
        if arrival.kind == REPLAYED:
            assert replay is not None
            number = arrival.pick
            request = self._requests.replayed(replay.user_ids[number], replay.item_ids[number], replay.types[number])
        elif arrival.kind == _EVENTS:
            _, request = self._requests.event(arrival.pick)
        else:
            request = self._requests.ready(arrival.kind, arrival.pick)
        kind, due = _kind(arrival), self.begin + arrival.due
        late = time.monotonic() - due
        code, reply = await _outcome(self.call(kind, request))
        taken = time.monotonic() - due
        if code == 0 and not self._load.is_echo:
            code = self._look(kind, reply)
        self._record(arrival.due, taken, late, kind, code)

    async def _send_pair(self, arrival: Arrival) -> None:
        """An event, and when it is acknowledged, Recommend for the same person."""
        user_id, request = self._requests.event(arrival.pick)
        due = self.begin + arrival.due
        late = time.monotonic() - due
        code, reply = await _outcome(self.call(_EVENTS, request))
        acknowledged = time.monotonic()
        revision = ""
        if code == 0 and not self._load.is_echo:
            code = self._look(_EVENTS, reply)
            revision = v1.RecordEventsResponse.FromString(reply).revision
        self._record(arrival.due, acknowledged - due, late, PAIR_EVENTS, code)
        if code == 0:
            code, reply = await _outcome(self.call(_RECOMMEND, self._requests.recommend_after(user_id, revision)))
            answered = time.monotonic()
            self._record(acknowledged - self.begin, answered - acknowledged, 0.0, PAIR_RECOMMEND, code)
            if code == 0 and not self._load.is_echo:
                self._look_at_pair(arrival, answered - acknowledged, reply)
        self._record(arrival.due, time.monotonic() - due, late, PAIR, code)

    def _look_at_pair(self, arrival: Arrival, lag_s: float, reply: bytes) -> None:
        if self.check is not None:
            self.check.look("pair_recommend", reply)
        self._pairs += 1
        if self._pairs % _PAIR_SAMPLE == 1 and arrival.due >= self._load.warm_up_s:
            if shows_everything(v1.RecommendResponse.FromString(reply)):
                self.lags.append(lag_s)
            else:
                self.behind += 1

    def _look(self, kind: int, reply: bytes) -> int:
        """The code of a reply that was OK: REFUSED if its event was."""
        if kind == _EVENTS:
            [result] = v1.RecordEventsResponse.FromString(reply).results
            return 0 if result.status in _KEPT else REFUSED
        if self.check is not None:
            self.check.look(KINDS[kind], reply)
        return 0

    def _record(self, due: float, taken: float, late: float, kind: int, code: int) -> None:
        self._buffer += RECORD.pack(due, taken, late, kind, code)
        if len(self._buffer) >= _BUFFERED:
            self.flush()


async def _outcome(call: Any) -> tuple[int, bytes]:
    """The gRPC code, and the reply's bytes if it is OK."""
    try:
        return 0, await call
    except grpc.aio.AioRpcError as error:
        code: int = error.code().value[0]
        return code, b""


def _kind(arrival: Arrival) -> int:
    return _EVENTS if arrival.kind == REPLAYED else arrival.kind


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def work(job: Job) -> dict[str, Any]:
    """Does the job; what the records do not say."""
    load = job.load
    seeds = np.random.SeedSequence(load.seed, spawn_key=(job.part,)).spawn(2)
    rates = {name: rate / job.parts for name, rate in load.rates.items()}
    kinds = [name for name in KINDS if rates.get(name)] + (["recommend"] if rates.get("pair") else [])
    seed = int(seeds[0].generate_state(1)[0])
    requests = Requests(read_ids(Path(load.ids)), kinds, limit=load.limit, dim=load.dim, seed=seed, run=f"{job.run}-{job.part}")
    due = arrivals(rates, load.phases, np.random.default_rng(seeds[1]))
    replay = None
    if load.replay is not None:
        replay = read_replay(Path(load.replay), load.replay_speed)
        due = heapq.merge(due, replay_arrivals(replay, job.part, job.parts, load.seconds))
    channels = [load.reach.connect_aio() for _ in range(load.connections)]
    await asyncio.wait_for(asyncio.gather(*(channel.channel_ready() for channel in channels)), _CONNECT_S)
    with Path(job.records).open("wb") as file:
        sender = Sender(job, channels, requests, file)
        result = await _measured(job, sender, due, replay, Freshness(sender.call, requests))
    await asyncio.gather(*(channel.close() for channel in channels))
    return result


async def _measured(
    job: Job, sender: Sender, due: Iterator[Arrival], replay: Replay | None, freshness: Freshness
) -> dict[str, Any]:
    load = job.load
    print("ready", flush=True)
    sender.begin = float(await asyncio.to_thread(sys.stdin.readline))
    gc.collect()
    gc.freeze()
    gc.disable()  # a collection in here would look like the server's latency
    used: list[float] = []
    warm = sender.begin + load.warm_up_s
    asyncio.get_running_loop().call_later(max(0.0, warm - time.monotonic()), lambda: used.append(_cpu_s()))
    probing = None
    if job.part == 0 and load.probes_per_s and not load.is_echo:
        probing = asyncio.ensure_future(freshness.probe(warm, sender.begin + load.seconds, load.probes_per_s))
    await sender.run(due, replay)
    cpu_s, wall_s = _cpu_s() - (used[0] if used else 0.0), time.monotonic() - warm
    if probing is not None:
        await probing
    return {
        "cpu_s": cpu_s,
        "wall_s": wall_s,
        "lags_s": freshness.lags + sender.lags,
        "behind": freshness.behind + sender.behind,
        "probe_failures": freshness.failures,
        "releases": sender.check.result() if sender.check is not None else None,
    }


def main() -> None:
    job = Job.from_json(sys.stdin.readline())
    print(json.dumps(uvloop.run(work(job))), flush=True)


if __name__ == "__main__":
    main()
