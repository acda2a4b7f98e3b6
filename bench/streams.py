"""python -m bench.streams: what it costs to record events, beside what the same costs when nothing is done with them.

streams: StreamEvents of single events, beside a bare gRPC stream echo of messages of the same size.
batches: RecordEvents in batches of 100, beside the journal alone with the same batches on the same disk.
Each pair is measured one right after the other, several times; the ratio is the median of the pairs' ratios. The server's
journal and the journal alone grow alike, from pair to pair.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import towerbridge
from towerbridge import v1

from bench.event_load import BATCH, CALLS, OUTSTANDING, STREAMS
from bench.hardware import hardware
from bench.process import ServerError, running_server
from index.bundle import Bundle, BundleError, read_bundle

_ITEMS = 1_000
_WANTED = {"streams": 0.4, "batches": 0.5}


def main() -> int:
    arguments = _parser().parse_args()
    try:
        bundle = read_bundle(arguments.bundle)
    except BundleError as error:
        print(f"error: {error} (make demo makes one)", file=sys.stderr)
        return 2
    os.environ["TOWERBRIDGE__CONSENT__PERSONALISATION"] = "opt_out"
    try:
        measured = measure(bundle, arguments.pairs, arguments.seconds)
    except ServerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    result = _summary(measured) | {
        "pairs": arguments.pairs,
        "seconds": arguments.seconds,
        "streams_at_once": STREAMS,
        "outstanding_a_stream": OUTSTANDING,
        "events_a_batch": BATCH,
        "batches_at_once": CALLS,
        "release_id": bundle.release_id,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
    }
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    _print(result)
    return 0 if all(result[name]["passed"] for name in _WANTED) else 1


def measure(bundle: Bundle, pairs: int, seconds: float) -> dict[str, list[tuple[float, float]]]:
    """(ours, bare) in events a second, for each pair."""
    item_ids = list(bundle.item_ids[:_ITEMS])
    measured: dict[str, list[tuple[float, float]]] = {"streams": [], "batches": []}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        with running_server(bundle.path, data / "state", "--log-level", "warning") as server, _echo(server.target) as echo:
            for pair in range(pairs):
                run: Callable[[str, str], float] = lambda kind, target: _rate(kind, target, seconds, str(pair), item_ids)  # noqa: B023, E731
                measured["streams"].append((run("streams", server.target), run("echo", echo)))
                measured["batches"].append((run("batches", server.target), run("journal", str(data / "journal"))))
                print(f"pair {pair + 1}: { ({name: found[-1] for name, found in measured.items()}) }", file=sys.stderr)
    return measured


def _rate(kind: str, target: str, seconds: float, seed: str, item_ids: list[str]) -> float:
    """Events a second of one kind of load, from a process of its own."""
    command = [sys.executable, "-m", "bench.event_load", kind, target, str(seconds), seed, *item_ids]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise ServerError(f"the load of {kind} failed; its message is above")
    return float(json.loads(done.stdout))


@contextmanager
def _echo(target: str) -> Iterator[str]:
    """A bare echo whose replies are as long as the server's answer to a single event; its target."""
    with towerbridge.Client(target, timeout_s=30) as client:
        reply = client.record_events([towerbridge.event("view", "bench", user_id="bench")])
    size = v1.StreamEventsResponse(results=reply.results, revision=reply.revision, acknowledged=1000).ByteSize()
    command = [sys.executable, "-m", "bench.echo", str(size)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.communicate()


def _summary(measured: dict[str, list[tuple[float, float]]]) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for name, pairs in measured.items():
        ratio = statistics.median(ours / bare for ours, bare in pairs)
        summary[name] = {
            "events_per_second": round(statistics.median(ours for ours, _ in pairs)),
            "bare_per_second": round(statistics.median(bare for _, bare in pairs)),
            "ratio": round(ratio, 3),
            "wanted": _WANTED[name],
            "passed": ratio >= _WANTED[name],
            "runs": [[round(ours), round(bare)] for ours, bare in pairs],
        }
    return summary


def _print(result: dict[str, Any]) -> None:
    print("| | events/s | bare, /s | ratio | wanted |\n|---|---|---|---|---|")
    for name, bare in (("streams", "stream echo"), ("batches", "journal alone")):
        row = result[name]
        print(
            f"| {name}, beside a {bare} | {row['events_per_second']:,} | {row['bare_per_second']:,} "
            f"| {row['ratio']:.2f} | {row['wanted']} |"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.streams", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, default=Path("demo-data/bundle"), help="the bundle to serve (demo-data/bundle)")
    parser.add_argument("--json", type=Path, help="where the figures go as JSON (nowhere)")
    parser.add_argument("--pairs", type=int, default=5, help="pairs of each kind (5)")
    parser.add_argument("--seconds", type=float, default=4.0, help="seconds that count of each run (4)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
