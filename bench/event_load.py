"""A process that sends events as fast as it may, and prints how many a second were acknowledged.

python -m bench.event_load KIND TARGET SECONDS SEED ITEM_ID...

Kinds: streams (single events, 4 streams with 64 outstanding each), echo (the same bytes to bench.echo), batches (RecordEvents
of 100 events, 4 calls at once), journal (the same batches to a JournalWriter in this process; TARGET is its directory).
The requests are made before the clock starts, and the first second does not count.
"""

import asyncio
import json
import random
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import uvloop
from towerbridge import v1

from bench.echo import STREAM

STREAMS = 4
OUTSTANDING = 64
BATCH = 100
CALLS = 4
PEOPLE = 10_000
_WARM_UP_S = 1.0
_EVENTS_A_SECOND = 30_000  # made ahead; more than any of these take
_SERVICE = "/towerbridge.v1.EventService"


class Clock:
    """Counts what was acknowledged between the end of the warm-up and the end."""

    def __init__(self, seconds: float) -> None:
        self._begin = time.perf_counter() + _WARM_UP_S
        self._end = self._begin + seconds
        self._seconds = seconds
        self._count = 0

    def add(self, count: int) -> bool:
        """Counts; whether there is time left."""
        now = time.perf_counter()
        if self._begin <= now < self._end:
            self._count += count
        return now < self._end

    @property
    def rate(self) -> float:
        """Events a second."""
        return self._count / self._seconds


def make_events(count: int, item_ids: Sequence[str], seed: str) -> list[v1.Event]:
    """Events of random people on random items, of the type "view", with ids that no other run has."""
    random_ = random.Random(seed)
    run = uuid.uuid4().hex[:16]
    return [
        v1.Event(
            event_id=f"{run}-{number:x}",
            user_id=f"person-{random_.randrange(PEOPLE)}",
            item_id=random_.choice(item_ids),
            type="view",
        )
        for number in range(count)
    ]


async def stream_rate(
    target: str, method: str, messages: list[list[bytes]], clock: Clock, results: Callable[[bytes], int]
) -> None:
    """Keeps OUTSTANDING messages without a result on each of STREAMS streams."""
    async with grpc.aio.insecure_channel(target) as channel:
        await asyncio.gather(*(_one_stream(channel, method, part, clock, results) for part in messages))


async def _one_stream(
    channel: grpc.aio.Channel, method: str, messages: list[bytes], clock: Clock, results: Callable[[bytes], int]
) -> None:
    call: Any = channel.stream_stream(method)()
    room = asyncio.Semaphore(OUTSTANDING)
    remaining = iter(messages)

    async def send() -> None:
        for message in remaining:
            await room.acquire()
            await call.write(message)

    sender = asyncio.ensure_future(send())
    while (reply := await call.read()) is not grpc.aio.EOF:
        count = results(reply)
        for _ in range(count):
            room.release()
        if not clock.add(count):
            break
    sender.cancel()
    call.cancel()


async def batch_rate(target: str, batches: list[bytes], clock: Clock) -> None:
    """Has CALLS calls of RecordEvents under way at any time."""
    async with grpc.aio.insecure_channel(target) as channel:
        record: Any = channel.unary_unary(f"{_SERVICE}/RecordEvents")
        remaining = iter(batches)

        async def work() -> None:
            for batch in remaining:
                reply = v1.RecordEventsResponse.FromString(await record(batch))
                _check(reply.results)
                if not clock.add(len(reply.results)):
                    return

        await asyncio.gather(*(work() for _ in range(CALLS)))


def _check(results: Sequence[v1.EventResult]) -> None:
    if any(result.HasField("error") for result in results):
        raise SystemExit(f"error: events were refused: {next(one for one in results if one.HasField('error'))}")


def _results(reply: bytes) -> int:
    response = v1.StreamEventsResponse.FromString(reply)
    _check(response.results)
    return len(response.results)


def main() -> None:
    kind, target, seconds, seed, *item_ids = sys.argv[1:]
    events = make_events(int((float(seconds) + _WARM_UP_S) * _EVENTS_A_SECOND), item_ids, seed)
    batches = [v1.RecordEventsRequest(events=events[start : start + BATCH]) for start in range(0, len(events), BATCH)]
    if kind == "journal":
        from bench.bare_journal import journal_rate  # imports the server's journal

        clock = journal_rate(Path(target), batches, float(seconds), CALLS)
    elif kind == "batches":
        requests = [batch.SerializeToString() for batch in batches]
        clock = Clock(float(seconds))
        uvloop.run(batch_rate(target, requests, clock))
    else:
        messages = [
            [v1.StreamEventsRequest(events=[event]).SerializeToString() for event in events[place::STREAMS]]
            for place in range(STREAMS)
        ]
        clock = Clock(float(seconds))
        method = STREAM if kind == "echo" else f"{_SERVICE}/StreamEvents"
        uvloop.run(stream_rate(target, method, messages, clock, (lambda reply: 1) if kind == "echo" else _results))
    print(json.dumps(clock.rate))


if __name__ == "__main__":
    main()
