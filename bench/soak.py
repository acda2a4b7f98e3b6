"""python -m bench.soak: checks that are too long for the tests, against a real server; the results are committed.

read-your-events: random pairs of RecordEvents and Recommend; the vector that was used must equal an offline encode, by the
bundle's own user tower, of the history that includes the event.
kill-nine: a server is killed (SIGKILL) while events are sent, and started again on the same directory; every acknowledged
event must be there, once.
"""

import argparse
import json
import random
import sys
import tempfile
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import towerbridge
from numpy.typing import NDArray
from towerbridge import v1
from tqdm import tqdm

from bench.hardware import hardware
from bench.process import ServerProcess, running_server
from index.bundle import Bundle, BundleError, read_bundle

Event = tuple[str, str, datetime]  # item id, type, time
TOLERANCE = 1e-5


def main() -> int:
    arguments = _parser().parse_args()
    try:
        bundle = read_bundle(arguments.bundle)
    except BundleError as error:
        print(f"error: {error} (make demo makes one)", file=sys.stderr)
        return 2
    arguments.out.mkdir(parents=True, exist_ok=True)
    passed = True
    soaks: dict[str, tuple[Callable[[Bundle, Path, int, int], dict[str, Any]], int]] = {
        "read-your-events": (read_your_events, arguments.pairs),
        "kill-nine": (kill_nine, arguments.kills),
    }
    for name, (soak, count) in soaks.items():
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as data:
            result = soak(bundle, Path(data), count, arguments.seed)
        result |= {"seconds": round(time.monotonic() - started, 1), "release_id": bundle.release_id, "hardware": hardware()}
        (arguments.out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(f"{name}: {'passed' if result['passed'] else 'FAILED'} {result}")
        passed &= result["passed"]
    return 0 if passed else 1


def read_your_events(bundle: Bundle, data: Path, pairs: int, seed: int) -> dict[str, Any]:
    """Each pair: an event at a random time in the past, then Recommend; 1 in 20 events is on an unknown item."""
    random_ = random.Random(seed)
    types = sorted(bundle.manifest.event_types)
    now = datetime.now(UTC)
    recorded: dict[str, list[Event]] = defaultdict(list)
    misses = without_history = 0
    largest = 0.0
    with running_server(bundle.path, data, "--log-level", "warning") as server, towerbridge.Client(server.target) as client:
        for _ in tqdm(range(pairs), unit=" pairs", disable=not sys.stderr.isatty()):
            person = f"person-{random_.randrange(max(1, pairs // 20))}"
            item_id = random_.choice(bundle.item_ids) if random_.random() > 0.05 else uuid.uuid4().hex
            event = (item_id, random_.choice(types), now - timedelta(seconds=random_.randrange(20 * 86_400)))
            client.record_events([towerbridge.event(event[1], item_id, user_id=person, occurred_at=event[2])])
            recorded[person].append(event)
            answer = client.recommend(user_id=person, limit=100)
            expected = _encode(bundle, recorded[person])
            if expected is None:
                without_history += 1
                misses += list(answer.degraded) != [v1.DegradedReason.DEGRADED_REASON_NO_HISTORY]
                continue
            difference = _difference(bundle, answer, expected, np.array(client.get_user(user_id=person).vector))
            largest = max(largest, difference)
            misses += difference > TOLERANCE
    return {
        "passed": misses == 0,
        "pairs": pairs,
        "misses": misses,
        "largest_difference": largest,
        "pairs_without_history": without_history,
    }


def _encode(bundle: Bundle, events: list[Event]) -> NDArray[np.float32] | None:
    """The user tower's vector of a history, as the manifest defines it: (D,) float32; None without events that count."""
    manifest = bundle.manifest
    row = {item_id: place for place, item_id in enumerate(bundle.item_ids)}
    counted = [event for event in sorted(events, key=lambda event: event[2]) if event[0] in row]
    counted = counted[-(manifest.history_length or 0) :]
    if not counted:
        return None
    ages = [(counted[-1][2] - when).total_seconds() if manifest.time_features else 0.0 for _, _, when in counted]
    [vector] = bundle.encode_users(
        np.stack([bundle.item_vectors[row[item_id]] for item_id, _, _ in counted])[None],
        np.array([[manifest.event_types[kind] for _, kind, _ in counted]]),
        np.array([ages], dtype=np.float32),
        np.array([len(counted)]),
    )
    encoded: NDArray[np.float32] = vector
    return encoded


def _difference(
    bundle: Bundle, answer: v1.RecommendResponse, expected: NDArray[np.float32], used: NDArray[np.float64]
) -> float:
    """The largest difference between what was used and what was expected, in the vector and in the scores."""
    row = {item_id: place for place, item_id in enumerate(bundle.item_ids)}
    scores = bundle.item_vectors[[row[item_id] for item_id in answer.item_ids]] @ expected
    if len(used) != len(expected) or answer.degraded or answer.events_behind:
        return float("inf")
    return float(max(np.abs(used - expected).max(), np.abs(scores - np.array(answer.scores)).max()))


def kill_nine(bundle: Bundle, data: Path, kills: int, seed: int) -> dict[str, Any]:
    """Sends batches from two threads until the server dies at a random moment; then looks for every acknowledged event."""
    random_ = random.Random(seed)
    acknowledged: dict[str, int] = defaultdict(int)  # by person: events acknowledged
    sent: dict[str, int] = defaultdict(int)
    lost = doubled = 0
    for kill in tqdm(range(kills), unit=" kills", disable=not sys.stderr.isatty()):
        server = ServerProcess(bundle.path, data, "--log-level", "error")
        threads = [
            threading.Thread(target=_send_until_dead, args=(server.target, bundle, f"{kill}-{n}", acknowledged, sent))
            for n in range(2)
        ]
        for thread in threads:
            thread.start()
        time.sleep(random_.uniform(0.2, 1.0))
        server.kill()
        for thread in threads:
            thread.join()
    with running_server(bundle.path, data, "--log-level", "error") as last, towerbridge.Client(last.target) as client:
        for person, count in acknowledged.items():
            held = client.get_user(user_id=person, limit=0).event_count if count else 0
            lost += held < count
            doubled += held > sent[person]
    return {
        "passed": lost == 0 and doubled == 0,
        "kills": kills,
        "acknowledged_events": sum(acknowledged.values()),
        "people_with_lost_events": lost,
        "people_with_doubled_events": doubled,
    }


def _send_until_dead(target: str, bundle: Bundle, person: str, acknowledged: dict[str, int], sent: dict[str, int]) -> None:
    """Every batch goes out twice, as a nervous producer would; a repeat must not count."""
    random_ = random.Random(person)
    kind = min(bundle.manifest.event_types)
    with towerbridge.Client(target, max_attempts=1) as client:
        while True:
            events = [towerbridge.event(kind, random_.choice(bundle.item_ids), user_id=person) for _ in range(20)]
            sent[person] += len(events)
            try:
                client.record_events(events)
                acknowledged[person] += len(events)
                client.record_events(events)
            except towerbridge.TowerbridgeError:
                return


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, default=Path("demo-data/bundle"), help="the bundle to serve (demo-data/bundle)")
    parser.add_argument("--out", type=Path, default=Path("docs/soak"), help="where the JSON goes (docs/soak)")
    parser.add_argument("--pairs", type=int, default=10_000, help="read-your-events: pairs (10000)")
    parser.add_argument("--kills", type=int, default=20, help="kill-nine: kills (20)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (0)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
