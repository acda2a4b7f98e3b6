"""Pairs of RecordEvents and Recommend: is the event in the vector? Also of ids that are linked, and unlinked, in between."""

import random
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import towerbridge
from numpy.typing import NDArray
from towerbridge import v1
from tqdm import tqdm

from bench.process import running_server
from index.bundle import Bundle

TOLERANCE = 1e-5
_THREADS = 4
_ENCODED_AT_ONCE = 256
_LIMIT = 10
_UNKNOWN_ITEM, _LINK, _UNLINK = 0.05, 0.05, 0.05  # shares of the pairs


class Event(NamedTuple):
    """What was recorded, with its place in the order of arrival."""

    occurred_at: datetime
    number: int
    item_id: str
    type: str


class Check(NamedTuple):
    """What an answer was made of, and what it should have been made of."""

    history: list[Event]
    answer: v1.RecommendResponse
    used: NDArray[np.float32]  # (D,)


class Household:
    """A user and two visitors, and which of the visitors are linked to the user, directly or by the other one."""

    def __init__(self, name: str) -> None:
        self.user = {"user_id": f"user-{name}"}
        self.visitors = [{"visitor_id": f"visitor-{name}-{number}"} for number in range(2)]
        self.events: list[list[Event]] = [[], [], []]  # of the user, and of each visitor
        self.links: dict[int, int] = {}  # from a visitor, 1 or 2, to the user, 0, or the other visitor

    def ids(self, place: int) -> dict[str, str]:
        return self.user if place == 0 else self.visitors[place - 1]

    def person(self, place: int) -> v1.Person:
        return towerbridge.person(**self.ids(place))

    def history(self, place: int) -> list[Event]:
        """The events of everyone who is one person with this id, in time order, ties in the order of arrival."""
        root = self._root(place)
        return sorted(event for one in range(3) if self._root(one) == root for event in self.events[one])

    def may_link(self, source: int, target: int) -> bool:
        return source not in self.links and self._root(target) != source

    def _root(self, place: int) -> int:
        while place in self.links:
            place = self.links[place]
        return place


def read_your_events(bundle: Bundle, data: Path, pairs: int, seed: int) -> dict[str, Any]:
    """Each pair: an event at a random time in the past, or a link made or taken back, then Recommend for one of the ids.

    The vector that was used, and the scores, are compared with an offline encode of the history by the bundle's own tower.
    """
    progress = tqdm(total=pairs, unit=" pairs", disable=not sys.stderr.isatty())
    counts = _Counts()
    with running_server(bundle.path, data, "--consent", "opt_out", "--log-level", "warning") as server:
        share = [pairs // _THREADS + (number < pairs % _THREADS) for number in range(_THREADS)]
        with ThreadPoolExecutor(_THREADS) as threads:
            runs = [
                threads.submit(_run, server.target, bundle, number, share[number], seed, counts, progress)
                for number in range(_THREADS)
            ]
            for run in runs:
                run.result()
    return {"passed": counts.misses == 0 and counts.pairs == pairs, **vars(counts)}


class _Counts:
    """What was seen so far, of all threads."""

    def __init__(self) -> None:
        self.pairs = 0
        self.misses = 0
        self.largest_difference = 0.0
        self.pairs_without_history = 0
        self.pairs_of_linked_ids = 0
        self.links_made = 0
        self.links_taken_back = 0


_lock = threading.Lock()


def _run(target: str, bundle: Bundle, number: int, pairs: int, seed: int, counts: _Counts, progress: "tqdm[Any]") -> None:
    random_ = random.Random(f"{seed}-{number}")
    households = [Household(f"{number}-{place}") for place in range(max(1, pairs // 60))]
    encoder = _Encoder(bundle)
    waiting: list[Check] = []
    with towerbridge.Client(target, timeout_s=10.0) as client:
        for pair in range(pairs):
            household = random_.choice(households)
            place = random_.randrange(3)
            change = _change(client, household, place, pair, bundle, random_)
            asked = random_.choice([place, 0]) if place in household.links else place
            answer = client.recommend(**household.ids(asked), limit=_LIMIT)  # type: ignore[arg-type]
            history = encoder.counting(household.history(asked))
            is_linked = len({household._root(one) for one in range(3)}) < 3
            with _lock:
                counts.pairs += 1
                counts.pairs_of_linked_ids += is_linked
                counts.links_made += change == "link"
                counts.links_taken_back += change == "unlink"
                if not history:
                    counts.pairs_without_history += 1
                    counts.misses += list(answer.degraded) != [v1.DegradedReason.DEGRADED_REASON_NO_HISTORY]
            progress.update()
            if history:
                used = np.array(client.get_user(**household.ids(asked), limit=0).vector, dtype=np.float32)  # type: ignore[arg-type]
                waiting.append(Check(history, answer, used))
            if len(waiting) == _ENCODED_AT_ONCE or pair == pairs - 1:
                differences = list(encoder.differences(waiting))
                waiting = []
                with _lock:
                    counts.misses += sum(difference > TOLERANCE for difference in differences)
                    counts.largest_difference = max([counts.largest_difference, *differences])


def _change(
    client: towerbridge.Client, household: Household, place: int, pair: int, bundle: Bundle, random_: random.Random
) -> str:
    """Changes what the household's history is; "event", "link" or "unlink"."""
    draw = random_.random()
    if place and place not in household.links and draw < _LINK:
        target = random_.choice([0, 3 - place])
        if household.may_link(place, target):
            client.link_identity(source=household.person(place), target=household.person(target))
            household.links[place] = target
            return "link"
    if place in household.links and draw > 1 - _UNLINK:
        target = household.links.pop(place)
        client.unlink_identity(source=household.person(place), target=household.person(target))
        return "unlink"
    item_id = f"unknown-{pair}" if random_.random() < _UNKNOWN_ITEM else random_.choice(bundle.item_ids)
    kind = random_.choice(sorted(bundle.manifest.event_types))
    occurred_at = datetime.now(UTC) - timedelta(seconds=random_.randrange(20 * 86_400))
    client.record_events([towerbridge.event(kind, item_id, occurred_at=occurred_at, **household.ids(place))])
    household.events[place].append(Event(occurred_at, pair, item_id, kind))
    return "event"


class _Encoder:
    """The user tower's vectors of histories, as the manifest defines them, by the bundle's own program."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._manifest = bundle.manifest
        self._rows = {item_id: place for place, item_id in enumerate(bundle.item_ids)}

    def counting(self, history: list[Event]) -> list[Event]:
        """The events that the tower reads."""
        return [event for event in history if event.item_id in self._rows][-(self._manifest.history_length or 0) :]

    def differences(self, checks: list[Check]) -> Iterator[float]:
        """Of each check, the largest difference in vector and scores; infinite for an answer that says it is not fresh."""
        if not checks:
            return
        width = max(len(check.history) for check in checks)
        vectors = np.zeros((len(checks), width, self._manifest.dim), dtype=np.float32)
        types = np.zeros((len(checks), width), dtype=np.int64)
        ages = np.zeros((len(checks), width), dtype=np.float32)
        for place, check in enumerate(checks):
            length, newest = len(check.history), check.history[-1].occurred_at
            vectors[place, :length] = self._bundle.item_vectors[[self._rows[event.item_id] for event in check.history]]
            types[place, :length] = [self._manifest.event_types[event.type] for event in check.history]
            if self._manifest.time_features:
                ages[place, :length] = [(newest - event.occurred_at).total_seconds() for event in check.history]
        lengths = np.array([len(check.history) for check in checks])
        for check, expected in zip(checks, self._bundle.encode_users(vectors, types, ages, lengths), strict=True):
            if len(check.used) != len(expected) or check.answer.degraded or check.answer.events_behind:
                yield float("inf")
                continue
            scores = self._bundle.item_vectors[[self._rows[item_id] for item_id in check.answer.item_ids]] @ expected
            yield float(max(np.abs(check.used - expected).max(), np.abs(scores - np.array(check.answer.scores)).max()))
