"""python -m bench.people: what freshness and memory of people cost; JSON and a table.

lag: events and Recommend calls at Poisson rates against a real server. How long does it take from an event's commit until it is
in the person's vector, for people whom nobody asks about? By the server's own metric towerbridge_event_visible_lag_seconds.
memory: a server is started on a journal with many people's events: how long until it is ready, and how large is it?
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
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import towerbridge

from bench.hardware import hardware
from bench.process import ServerProcess, running_server
from index.bundle import Bundle, BundleError, read_bundle
from server.journal.database import open_journal

_METRIC = re.compile(r'towerbridge_event_visible_lag_seconds_bucket\{le="([^"]+)"[^}]*\} ([0-9.e+]+)')
_READY = re.compile(r"metrics on port (\d+)")
_DEADLINE_S = 5.0


def main() -> int:
    arguments = _parser().parse_args()
    if arguments.people is None:
        arguments.people = 5_000 if arguments.what == "lag" else 1_000_000
    try:
        bundle = read_bundle(arguments.bundle)
    except BundleError as error:
        print(f"error: {error} (make demo makes one)", file=sys.stderr)
        return 2
    if arguments.what == "lag":
        result = measure_lag(
            bundle, arguments.events, arguments.recommends, arguments.seconds, arguments.people, arguments.seed
        )
    else:
        result = measure_memory(bundle, arguments.people, arguments.events_each, arguments.seconds, arguments.seed)
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


def measure_memory(bundle: Bundle, people: int, events_each: int, seconds: float, seed: int) -> dict[str, Any]:
    """Starts a server on a journal with so many people's events, and looks at its process when it is ready, and later.

    Later it has computed the vectors of some of the people, in the background.
    """
    with tempfile.TemporaryDirectory() as data:
        path = _fill(Path(data) / "default", bundle.item_ids, people, events_each, seed)
        started = time.perf_counter()
        with running_server(bundle.path, Path(data), "--log-level", "warning") as server:
            ready = time.perf_counter() - started
            resident = _resident_mb(server.pid)
            time.sleep(seconds)
            later = _resident_mb(server.pid)
        journal_mb = round(path.stat().st_size / 1e6)
    with tempfile.TemporaryDirectory() as data, running_server(bundle.path, Path(data), "--log-level", "warning") as server:
        empty = _resident_mb(server.pid)
    return {
        "what": "a server with everyone's history, links and consent in memory",
        "people": people,
        "events_each": events_each,
        "seconds_to_ready": round(ready, 1),
        "process_mb_when_ready": resident,
        "process_mb_without_people": empty,
        "bytes_a_person": round((resident - empty) * 1e6 / people),
        f"process_mb_{seconds:.0f}_s_later": later,
        "journal_mb": journal_mb,
    }


def _fill(folder: Path, item_ids: Sequence[str], people: int, events_each: int, seed: int) -> Path:
    """A journal with people who consented, each with events of random positions and items."""
    file = open_journal(folder)
    random_ = np.random.default_rng(seed)
    keys = np.sort(random_.choice(2**40, people, replace=False) + 1).tolist()
    now_us = time.time_ns() // 1000

    def events() -> Iterator[tuple[Any, ...]]:
        for place, key in enumerate(keys):
            chosen = random_.integers(len(item_ids), size=events_each).tolist()
            for number, item in enumerate(chosen):
                position = 1 + number * people + place
                yield key, position, position.to_bytes(16, "big"), item_ids[item], "view", now_us + position, now_us

    file.connection.pragma("synchronous", "off")
    with file.connection:
        names = ((key, f"user-{place:08d}") for place, key in enumerate(keys))
        file.connection.executemany("INSERT INTO people (person_key, kind, subject_id) VALUES (?, 0, ?)", names)
        agreed = ((key, now_us, now_us) for key in keys)
        file.connection.executemany("INSERT INTO consents VALUES (?, 0, 1, 1, 'bench', ?, ?)", agreed)
        file.connection.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)", events())
        file.connection.execute("UPDATE meta SET value = ? WHERE key = 'head'", (people * events_each,))
    file.close()
    return folder / "journal.sqlite"


def _resident_mb(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return round(pages * resource.getpagesize() / 1e6)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.people", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("what", choices=("lag", "memory"))
    add("--bundle", type=Path, default=Path("demo-data/bundle"), help="the bundle to serve (demo-data/bundle)")
    add("--events", type=float, default=300.0, help="lag: events a second (300)")
    add("--recommends", type=float, default=150.0, help="lag: Recommend calls a second (150)")
    add("--seconds", type=float, default=60.0, help="lag: how long; memory: between the two looks (60)")
    add("--people", type=int, default=None, help="lag: writers, and as many readers (5000); memory: people (1000000)")
    add("--events-each", type=int, default=20, help="memory: events of each person (20)")
    add("--seed", type=int, default=0, help="of everything random (0)")
    add("--json", type=Path, metavar="FILE", help="where the result goes")
    return parser


if __name__ == "__main__":
    sys.exit(main())
