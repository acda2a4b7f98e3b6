"""python -m bench.demo: train on real films, serve them, and watch three events move the list."""

import argparse
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import grpc
import numpy as np
import towerbridge
from towerbridge import v1

from bench.echo import echo_stub
from bench.hardware import hardware
from bench.process import ServerError, running_server

FILMS = ("Toy Story", "Monsters, Inc.", "Finding Nemo")
LIMIT = 10
CALLS = 200
WARM_UP = 20
REFUSED = 2


def main() -> int:
    arguments = _parser().parse_args()
    folder: Path = arguments.folder
    try:
        _prepare(folder)
        with (
            running_server(folder / "bundle", folder / "state", "--log-level", "warning") as server,
            towerbridge.Client(server.target, timeout_s=5.0) as client,
        ):
            print(server.ready_line)
            _show_the_loop(client)
            _show_a_new_film(client)
            _measure(client)
        print("\nThe server was asked to stop, ended its calls and left with status 0.")
    except (DemoError, ServerError, towerbridge.TowerbridgeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return REFUSED
    print(f"Your turn: {sys.executable} -m server --bundle {folder}/bundle --data {folder}/state, then docs/calling.md")
    return 0


class DemoError(Exception):
    """A step of the demo failed; one line."""


def _prepare(folder: Path) -> None:
    """Data and bundle; what is there already is used again."""
    data, bundle, state = folder / "data", folder / "bundle", folder / "state"
    if not (data / "dataset.json").exists():
        _step("Import MovieLens small: 100,004 ratings of 9,066 films by 671 people")
        _run("training", "import", "movielens-small", "--out", data)
    if not (bundle / "manifest.json").exists():
        _step("Train the towers (some minutes on two CPU cores; the next demo uses this bundle again)")
        _run("training", "fit", "--data", data, "--out", bundle, "--config", "training/configs/demo.yaml")
    else:
        print(f"The bundle in {bundle} is used again; `make clean` removes it.")
    _step("Put what the 671 people did into the journal (events that it knows are not written again)")
    agreed = ("--consent", "personalisation,training", "--consent-source", "GroupLens's terms")
    _run("server.journal", "import", data / "events.parquet", "--data", state, *agreed)


def _show_the_loop(client: towerbridge.Client) -> None:
    release = client.get_release()
    _step(f"Release {release.release_id}: {release.item_count} films, index {release.index_kind} on {release.device}")
    visitor = f"visitor-{uuid.uuid4().hex[:8]}"  # a new one each time, so that every demo starts from nothing
    films = _find(client, FILMS)
    client.set_consent(visitor_id=visitor, personalisation=True, source="the demo")  # without it events are dropped
    print(f"A visitor without history, {visitor}:")
    before = _recommend_and_print(client, visitor, None)
    for title, item_id in films.items():
        started = time.perf_counter()
        [result] = client.record_events([towerbridge.event("view", item_id, visitor_id=visitor)]).results
        took_ms = (time.perf_counter() - started) * 1e3
        if result.status != v1.EventStatus.EVENT_STATUS_ACCEPTED:
            raise DemoError(f"the event on {title} was not accepted: {result}")
        print(f"\nThe visitor views {title}: acknowledged, and on disk, after {took_ms:.1f} ms. The next list:")
        before = _recommend_and_print(client, visitor, before)


def _recommend_and_print(client: towerbridge.Client, visitor: str, before: list[str] | None) -> list[str]:
    started = time.perf_counter()
    answer = client.recommend(visitor_id=visitor, limit=LIMIT, exclude_seen=True, attributes=["title", "categories"])
    took_ms = (time.perf_counter() - started) * 1e3
    for place, (row, score) in enumerate(zip(towerbridge.attribute_values(answer), answer.scores, strict=True), start=1):
        new = " " if before is None or answer.item_ids[place - 1] in before else "+"
        title, genres = row.get("title", "(without title)"), row.get("categories", [])
        listed = ", ".join(genres) if isinstance(genres, list) else ""
        print(f"  {new} {place:2}. {str(title)[:52]:52} {score:6.3f}  {listed[:44]}")
    print(f"  {_freshness(answer)}; answered in {took_ms:.1f} ms ({_split(answer)})")
    return list(answer.item_ids)


def _freshness(answer: v1.RecommendResponse) -> str:
    if answer.degraded:
        reasons = ", ".join(v1.DegradedReason.Name(reason).removeprefix("DEGRADED_REASON_") for reason in answer.degraded)
        return f"degraded: {reasons}, so these are the most popular films"
    age = datetime.now(UTC) - answer.vector_computed_at.ToDatetime(tzinfo=UTC)
    return f"{answer.events_behind} events behind, vector computed {age.total_seconds() * 1e3:.1f} ms ago"


def _split(answer: v1.RecommendResponse) -> str:
    timings = answer.timings
    return f"queue {timings.queue_us} µs, encode {timings.encode_us} µs, search {timings.search_us} µs"


def _show_a_new_film(client: towerbridge.Client) -> None:
    """A film that nobody has seen, known by its title and genres only, is found at once."""
    item_id = f"new-{uuid.uuid4().hex[:8]}"
    categories, title = ["Adventure", "Animation", "Children", "Comedy", "Fantasy"], "Toy Story: The Lost Reel"
    started = time.perf_counter()
    client.upsert_items([towerbridge.item(item_id, text=title, categories=categories, attributes={"title": title})])
    took_ms = (time.perf_counter() - started) * 1e3
    similar = client.find_similar_items(item_id, limit=3, attributes=["title"])
    names = ", ".join(str(row.get("title")) for row in towerbridge.attribute_values(similar))
    print(f"\nA film that nobody has seen is added by its title and genres: searchable after {took_ms:.0f} ms, near {names}.")
    client.remove_items([item_id])


def _measure(client: towerbridge.Client) -> None:
    """Recommend, each time for another person whose vector must be computed, and a bare echo of the same sizes, interleaved."""
    people = [str(number) for number in range(1, WARM_UP + CALLS + 1)]
    request = v1.RecommendRequest(subject=v1.Subject(user_id=people[0]), limit=100)
    reply_bytes = client.recommend(user_id=people[0], limit=100).ByteSize()
    recommend_ms, echo_ms = [], []
    with _echo(reply_bytes) as echo:
        payload = request.SerializeToString()
        for user_id in people:
            recommend_ms.append(_time(partial(client.recommend, user_id=user_id, limit=100)))
            echo_ms.append(_time(partial(echo, payload, timeout=5)))
    _step(f"{CALLS} Recommend calls, one at a time, each for a person whose vector must be computed; beside a bare gRPC echo")
    print(f"  {'':24}     p50      p99   (ms)")
    for name, values in (("Recommend", recommend_ms[WARM_UP:]), (f"echo, {reply_bytes} bytes back", echo_ms[WARM_UP:])):
        p50, p99 = np.percentile(values, [50, 99])
        print(f"  {name:24} {p50:7.2f}  {p99:7.2f}")
    machine = hardware()
    print(f"  on {machine['cpu']}, {machine['cores']} cores, Python {machine['python']}, grpcio {grpc.__version__}")


def _time(call: Callable[[], object]) -> float:
    """Milliseconds of one call."""
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1e3


def _find(client: towerbridge.Client, titles: tuple[str, ...]) -> dict[str, str]:
    """Item ids by title, over the whole catalogue by way of the most popular films."""
    answer = client.recommend(visitor_id="nobody-yet", limit=1000, attributes=["title"])
    pairs = zip(towerbridge.attribute_values(answer), answer.item_ids, strict=True)
    found = {row.get("title"): item_id for row, item_id in pairs}
    missing = [title for title in titles if title not in found]
    if missing:
        raise DemoError(f"the bundle does not hold {', '.join(missing)}; run make clean and make demo again")
    return {title: found[title] for title in titles}


@contextmanager
def _echo(reply_bytes: int) -> Iterator[Callable[..., bytes]]:
    """A bare echo in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.echo", str(reply_bytes)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        port = int(process.stdout.readline()) if process.stdout else 0
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield echo_stub(channel)
    finally:
        process.communicate(timeout=30)


def _run(module: str, *arguments: object) -> None:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    status = subprocess.run(command, check=False).returncode
    if status:
        raise DemoError(f"{' '.join(command[1:])} failed with status {status}")


def _step(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.demo", description=__doc__)
    parser.add_argument(
        "--folder", type=Path, default=Path("demo-data"), metavar="DIR", help="where data, bundle and journal go (demo-data)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
