"""python -m bench.people: what freshness and memory of people cost; JSON and a table.

lag: events and Recommend calls at Poisson rates against a real server. How long does it take from an event's commit until it is
in the person's vector, for people whom nobody asks about? By the server's own metric towerbridge_event_visible_lag_seconds.
memory: a journal with many people's events is made, and loaded as a server does at start: seconds and bytes.
"""

import argparse
import asyncio
import json
import random
import re
import resource
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import numpy as np
import towerbridge

from bench.hardware import hardware
from bench.process import ServerProcess, running_server
from index.bundle import Bundle, BundleError, read_bundle
from server.journal.database import open_journal
from server.journal.items import ItemContent, load_items, seed_items
from server.releases.loading import item_places
from server.users.directory import Directory
from server.users.people import People

_METRIC = re.compile(r'towerbridge_event_visible_lag_seconds_bucket\{le="([^"]+)"\} ([0-9.e+]+)')
_READY = re.compile(r"metrics on port (\d+)")
_DEADLINE_S = 5.0


def main() -> int:
    arguments = _parser().parse_args()
    if arguments.people is None:
        arguments.people = 5_000 if arguments.what == "lag" else 1_000_000
    if arguments.what == "lag":
        try:
            bundle = read_bundle(arguments.bundle)
        except BundleError as error:
            print(f"error: {error} (make demo makes one)", file=sys.stderr)
            return 2
        result = measure_lag(
            bundle, arguments.events, arguments.recommends, arguments.seconds, arguments.people, arguments.seed
        )
    else:
        with tempfile.TemporaryDirectory() as folder:
            result = measure_memory(Path(folder), arguments.people, arguments.events_each, arguments.items, arguments.seed)
    result["hardware"] = hardware()
    for name, value in result.items():
        print(f"  {name:32} {value}")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def measure_lag(bundle: Bundle, events: float, recommends: float, seconds: float, people: int, seed: int) -> dict[str, Any]:
    """Half of the people have events recorded and are never asked about; the others are asked about, with fresh vectors."""
    with (
        tempfile.TemporaryDirectory() as data,
        running_server(
            bundle.path, Path(data), "--consent", "opt_out", "--metrics-port", "0", "--log-level", "warning"
        ) as server,
    ):
        return asyncio.run(_load(server, bundle, events, recommends, seconds, people, random.Random(seed)))


async def _load(
    server: ServerProcess, bundle: Bundle, events: float, recommends: float, seconds: float, people: int, random_: random.Random
) -> dict[str, Any]:
    kind = min(bundle.manifest.event_types)
    async with towerbridge.AsyncClient(server.target, timeout_s=_DEADLINE_S) as client:

        async def record() -> None:
            item_id, person = random_.choice(bundle.item_ids), f"writer-{random_.randrange(people)}"
            await client.record_events([towerbridge.event(kind, item_id, user_id=person)])

        async def recommend() -> None:
            await client.recommend(user_id=f"reader-{random_.randrange(people)}", limit=100)

        for who in ("writer", "reader"):
            for start in range(0, people, 50):
                batch = [
                    towerbridge.event(
                        kind, random_.choice(bundle.item_ids), user_id=f"{who}-{start + n}", event_id=uuid.uuid4().hex
                    )
                    for n in range(50)
                    for _ in range(20)
                ]
                await client.record_events(batch, timeout_s=60)
        await asyncio.sleep(2)
        metrics = int(_READY.search(server.ready_line)[1])  # type: ignore[index]
        before = _buckets(metrics)
        recorded, asked = await asyncio.gather(
            _poisson(record, events, seconds, random_), _poisson(recommend, recommends, seconds, random_)
        )
        await asyncio.sleep(2)
        after = _buckets(metrics)
    counts = {bound: after[bound] - before.get(bound, 0.0) for bound in after}
    return {
        "what": "from commit to stored vector, of people nobody asked about",
        "events_per_second": events,
        "recommends_per_second": recommends,
        "seconds": seconds,
        "lags_observed": int(counts[float("inf")]),
        "lag_p50_ms_at_most": _percentile(counts, 0.5),
        "lag_p99_ms_at_most": _percentile(counts, 0.99),
        "lag_p99_9_ms_at_most": _percentile(counts, 0.999),
        "record_ms": _summary(recorded),
        "recommend_ms": _summary(asked),
    }


async def _poisson(call: Callable[[], Awaitable[None]], rate: float, seconds: float, random_: random.Random) -> list[float]:
    """Calls at random times, however long they take; milliseconds of each, from the time when it was due."""
    taken: list[float] = []
    begin = time.perf_counter()

    async def one(due: float) -> None:
        await call()
        taken.append((time.perf_counter() - due) * 1e3)

    due = begin
    async with asyncio.TaskGroup() as tasks:
        while (due := due + random_.expovariate(rate)) < begin + seconds:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.create_task(one(due))
    return taken


def _buckets(port: int) -> dict[float, float]:
    """Cumulative counts by upper bound, seconds."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=_DEADLINE_S) as reply:
        return {float(bound): float(count) for bound, count in _METRIC.findall(reply.read().decode())}


def _percentile(counts: dict[float, float], share: float) -> float:
    """Milliseconds: the upper bound of the bucket that the percentile lies in."""
    wanted = share * counts[float("inf")]
    return round(next(bound for bound in sorted(counts) if counts[bound] >= wanted) * 1e3, 3)


def _summary(taken: list[float]) -> dict[str, float]:
    p50, p99 = np.percentile(taken, [50, 99])
    return {"calls": len(taken), "p50": round(float(p50), 2), "p99": round(float(p99), 2)}


def measure_memory(folder: Path, people: int, events_each: int, items: int, seed: int) -> dict[str, Any]:
    """Loads the histories of everyone. The bytes are those of the whole process, and of what the histories added."""
    file = open_journal(folder)
    _fill(file.connection, people, events_each, seed_items(file, _items(items)), items, seed)
    file.head += people * events_each
    places = item_places(list(load_items(file.connection)))
    before = _resident_mb()
    started = time.perf_counter()
    view = People(["view"], Directory(), limit=1000, capacity=people + people // 10)
    view.load(file.connection, places, published=file.head)
    seconds = time.perf_counter() - started
    after = _resident_mb()
    file.close()
    return {
        "what": "everyone's history, links and consent, from the journal into memory",
        "people": people,
        "events_each": events_each,
        "in_memory": view.in_memory,
        "load_seconds": round(seconds, 1),
        "added_mb": round(after - before),
        "bytes_a_person": round((after - before) * 1e6 / people),
        "process_peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3),
        "journal_mb": round((folder / "journal.sqlite").stat().st_size / 1e6),
    }


def _items(count: int) -> Iterator[tuple[ItemContent, float]]:
    return ((ItemContent(f"item-{number:07d}"), float(number)) for number in range(count))


def _fill(connection: apsw.Connection, people: int, events_each: int, head: int, items: int, seed: int) -> None:
    """People who consented, each with events at random positions, in the order of their keys."""
    random_ = np.random.default_rng(seed)
    keys = np.sort(random_.choice(2**40, people, replace=False) + 1).tolist()
    connection.pragma("synchronous", "off")

    def events() -> Iterator[tuple[Any, ...]]:
        for place, key in enumerate(keys):
            for number in range(events_each):
                position = head + 1 + number * people + place
                item_id = f"item-{random_.integers(items):07d}"
                yield key, position, position.to_bytes(16), item_id, "view", 1_700_000_000_000_000 + position, 0

    with connection:
        names = ((key, f"user-{place:08d}") for place, key in enumerate(keys))
        connection.executemany("INSERT INTO people (person_key, kind, subject_id) VALUES (?, 0, ?)", names)
        agreed = ((key, head) for key in keys)
        connection.executemany("INSERT INTO consents VALUES (?, ?, 1, 1, 'bench', 0, 0)", agreed)
        connection.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)", events())


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 1e6


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.people", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("what", choices=("lag", "memory"))
    add("--bundle", type=Path, default=Path("demo-data/bundle"), help="lag: the bundle to serve (demo-data/bundle)")
    add("--events", type=float, default=300.0, help="lag: events a second (300)")
    add("--recommends", type=float, default=150.0, help="lag: Recommend calls a second (150)")
    add("--seconds", type=float, default=60.0, help="lag: how long (60)")
    add("--people", type=int, default=None, help="lag: writers, and as many readers (5000); memory: people (1000000)")
    add("--events-each", type=int, default=20, help="memory: events of each person (20)")
    add("--items", type=int, default=200_000, help="memory: items (200000)")
    add("--seed", type=int, default=0, help="of everything random (0)")
    add("--json", type=Path, metavar="FILE", help="where the result goes")
    return parser


if __name__ == "__main__":
    sys.exit(main())
