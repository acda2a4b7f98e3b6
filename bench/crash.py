"""kill-nine, a part of bench.soak: a server is killed (SIGKILL) while events are sent, and started again on its directory.

After each kill, and for all at the end: every acknowledged event is there with the content that was sent, a repeat of it is
known at the same revision, and no event is there twice or was never sent.
"""

import random
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import towerbridge
from towerbridge import v1
from tqdm import tqdm

from bench.process import ServerProcess, running_server
from index.bundle import Bundle

_BATCH = 20
_EVENTS_A_PERSON = 200  # within what GetUser returns
_FLAGS = ("--log-level", "error")
# Everybody is recorded without being asked: what is tested is the disk.
_CONFIG = "consent: {personalisation: opt_out}\n"

Content = tuple[str, str, str, int]  # user id, item id, type, time in microseconds


@dataclass
class _Traffic:
    """What one thread sent in one life of the server: all events, and the revisions of those that were acknowledged."""

    name: str
    sent: dict[str, v1.Event] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)


@dataclass
class _Verdict:
    lost: int = 0
    doubled: int = 0
    never_sent: int = 0
    checked: int = 0


def kill_nine(bundle: Bundle, data: Path, kills: int, seed: int) -> dict[str, Any]:
    """Sends batches from two threads until the server dies at a random moment; then looks for every acknowledged event."""
    random_ = random.Random(seed)
    config = data / "config.yaml"
    config.write_text(_CONFIG, encoding="utf-8")
    flags = (*_FLAGS, "--config", str(config))
    lives: list[list[_Traffic]] = []
    found = _Verdict()
    for kill in tqdm(range(kills), unit=" kills", disable=not sys.stderr.isatty()):
        server = ServerProcess(bundle.path, data / "state", *flags)
        if lives:
            _check(server.target, lives[-1], found)
        lives.append([_Traffic(f"{kill}-{number}") for number in range(2)])
        _send_until_killed(server, bundle, lives[-1], random_.uniform(0.2, 1.0))
    with running_server(bundle.path, data / "state", *flags) as last:
        for life in lives:
            _check(last.target, life, found)
    traffic = [one for life in lives for one in life]
    return {
        "passed": not (found.lost or found.doubled or found.never_sent),
        "kills": kills,
        "sent_events": sum(len(one.sent) for one in traffic),
        "acknowledged_events": sum(len(one.revisions) for one in traffic),
        "checks_of_acknowledged_events": found.checked,
        "lost_events": found.lost,
        "doubled_events": found.doubled,
        "events_never_sent": found.never_sent,
    }


def _send_until_killed(server: ServerProcess, bundle: Bundle, traffic: list[_Traffic], seconds: float) -> None:
    threads = [threading.Thread(target=_send_until_dead, args=(server.target, bundle, one)) for one in traffic]
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    server.kill()
    for thread in threads:
        thread.join()


def _send_until_dead(target: str, bundle: Bundle, traffic: _Traffic) -> None:
    """Every batch goes out twice, as a nervous producer would; a repeat must not count."""
    random_ = random.Random(traffic.name)
    kind, start = min(bundle.manifest.event_types), datetime.now(UTC) - timedelta(days=1)
    with towerbridge.Client(target, max_attempts=1) as client:
        while True:
            events = []
            for number in range(len(traffic.sent), len(traffic.sent) + _BATCH):
                event = towerbridge.event(
                    kind,
                    random_.choice(bundle.item_ids),
                    user_id=f"{traffic.name}-{number // _EVENTS_A_PERSON}",
                    event_id=f"{traffic.name}-{number}",
                    occurred_at=start + timedelta(milliseconds=number),  # so that each event's content is its own
                )
                events.append(event)
            traffic.sent |= {event.event_id: event for event in events}
            try:
                for _ in range(2):
                    for event, result in zip(events, client.record_events(events).results, strict=True):
                        traffic.revisions[event.event_id] = result.revision
            except towerbridge.TowerbridgeError:
                return


def _check(target: str, life: list[_Traffic], found: _Verdict) -> None:
    with towerbridge.Client(target, timeout_s=30.0) as client:
        for traffic in life:
            _check_contents(client, traffic, found)
            _check_repeats(client, traffic, found)


def _check_contents(client: towerbridge.Client, traffic: _Traffic, found: _Verdict) -> None:
    held: Counter[Content] = Counter()
    for user_id in {event.user_id for event in traffic.sent.values()}:
        try:
            user = client.get_user(user_id=user_id, limit=1_000)
        except towerbridge.NotFound:  # nothing of the person reached the disk
            continue
        for item_id, kind, occurred_at in zip(user.item_ids, user.event_types, user.occurred_at, strict=True):
            held[user_id, item_id, kind, occurred_at.ToMicroseconds()] += 1
    sent = {_content(event) for event in traffic.sent.values()}
    found.lost += sum(not held[_content(traffic.sent[event_id])] for event_id in traffic.revisions)
    found.doubled += sum(count - 1 for count in held.values() if count > 1)
    found.never_sent += len(held.keys() - sent)
    found.checked += len(traffic.revisions)


def _check_repeats(client: towerbridge.Client, traffic: _Traffic, found: _Verdict) -> None:
    """A repeat of what was acknowledged is known at the same revision."""
    acknowledged = list(traffic.revisions)
    for start in range(0, len(acknowledged), 500):
        event_ids = acknowledged[start : start + 500]
        results = client.record_events([traffic.sent[event_id] for event_id in event_ids]).results
        for event_id, result in zip(event_ids, results, strict=True):
            if result.status != v1.EventStatus.EVENT_STATUS_DUPLICATE:
                found.lost += 1
            elif result.revision != traffic.revisions[event_id]:
                found.doubled += 1


def _content(event: v1.Event) -> Content:
    return event.user_id, event.item_id, event.type, event.occurred_at.ToMicroseconds()
