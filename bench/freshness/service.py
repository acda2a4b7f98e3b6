"""The same replay through a running server: events by RecordEvents, answers by Recommend, under a clock that the replay moves.

The server is this process's: its clock is an argument, and it must be the replay's, or events of years ago would be refused.
Everything else is as it is served: gRPC over loopback, the journal with its fsyncs, histories, the engine, the index.
"""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import towerbridge
from towerbridge import v1

from bench.freshness.errors import ReplayError
from bench.freshness.histories import rows_before
from bench.freshness.policies import NEVER_US, IntArray, Schedule
from bench.freshness.ranking import CUTOFF
from bench.freshness.replay import Replayed
from bench.freshness.timeline import Timeline
from index.bundle import Bundle
from server.app import App
from server.config import Config
from server.errors import StartupError
from training.errors import DatasetError
from training.progress import Progress

_ROWS_MAX = 1000  # of one RecordEvents
_SPAN_US = 86_400_000_000  # of one RecordEvents: the clock is that of its last event, and old events are refused
_HISTORY_MAX = 100_000  # what the server can be set to
_EXCLUDED_MAX = 10_000  # ids that a call may exclude by name
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_RECORDED = {
    v1.EventStatus.EVENT_STATUS_ACCEPTED,
    v1.EventStatus.EVENT_STATUS_ACCEPTED_UNKNOWN_ITEM,
    v1.EventStatus.EVENT_STATUS_ACCEPTED_UNKNOWN_TYPE,
}


class Answer(NamedTuple):
    """What Recommend gave for one target."""

    item_ids: list[str]
    scores: list[float]


class Clock:
    """The server's time, moved by the replay and never back."""

    def __init__(self, now_us: int) -> None:
        self.now_us = now_us

    def __call__(self) -> int:
        return self.now_us

    def move(self, now_us: int) -> None:
        self.now_us = max(self.now_us, now_us)


@dataclass(frozen=True)
class Served:
    """The answers of a replay, one for each target, and how long it took."""

    answers: list[Answer | None]  # None: not asked for
    seconds: float


def replay_through_service(
    timeline: Timeline, bundle: Bundle, replayed: Replayed, schedule: Schedule, progress: Progress
) -> Served:
    """Records each event when the policy lets vectors have it, and asks for every target at its own moment.

    exclude_seen takes what was recorded out of the answer; what the policy still holds back is excluded by name, so that the
    seen filter is that of the other policies. A target with more of these than a call may name is not asked for. Raises
    DatasetError for a history longer than a server holds, ReplayError where the server does not do what it is asked.
    """
    check_histories(timeline)
    clock = Clock(int(timeline.events.time_us.min()))
    began = time.monotonic()
    try:
        with tempfile.TemporaryDirectory() as folder:
            app = App(_config(bundle.path, Path(folder) / "state", timeline, schedule), clock_us=clock)
            app.start()
            try:
                with towerbridge.Client(f"127.0.0.1:{app.port}", timeout_s=60.0) as client:
                    answers = list(_Replay(timeline, replayed, schedule, client, clock).answers(progress))
            finally:
                app.stop()
    except (StartupError, towerbridge.TowerbridgeError) as error:
        raise ReplayError(f"the replay through the service ended: {error}") from error
    return Served(answers, time.monotonic() - began)


def check_histories(timeline: Timeline) -> None:
    """Raises DatasetError if somebody's history is longer than a server holds."""
    longest = int(np.diff(timeline.events.offsets).max())
    if longest > _HISTORY_MAX:
        raise DatasetError(
            f"{timeline.dataset.path}: somebody has {longest:,} events, and a server holds {_HISTORY_MAX:,} at most; "
            "leave out --through-service"
        )


def _config(bundle: Path, data: Path, timeline: Timeline, schedule: Schedule) -> Config:
    """Histories as long as the longest, and events taken however late the lag makes them."""
    history = max(int(np.diff(timeline.events.offsets).max()), 1000)
    days = 32 + schedule.lag_us // _SPAN_US
    return Config.model_validate(
        {
            "bundle": bundle,
            "data": data,
            "listen": {"port": 0, "drain_seconds": 1.0},
            "consent": {"personalisation": "opt_out", "training": "opt_out"},
            "users": {"max_history_events": history},
            "journal": {"max_events_per_person": history, "max_event_age_days": days, "event_id_days": days},
            "engine": {"compile": False},
            "index": {"kind": "exact", "snapshots": False},
        }
    )


class _Replay:
    """One pass over the timeline, events and targets in time order."""

    def __init__(
        self, timeline: Timeline, replayed: Replayed, schedule: Schedule, client: towerbridge.Client, clock: Clock
    ) -> None:
        events, table = timeline.events, timeline.table
        self._client, self._clock = client, clock
        self._user_ids: list[str] = table["user_id"].to_pylist()
        self._item_ids: list[str] = table["item_id"].to_pylist()
        self._types: list[str] = table["event_type"].to_pylist()
        self._times_us = events.time_us
        # In the order in which they are recorded; events that come together stay in their order.
        from_us = schedule.visible_from(events.time_us, events.user)
        order = np.argsort(from_us, kind="stable")
        self._order: IntArray = order[from_us[order] < NEVER_US]
        self._from_us = from_us[self._order]  # when each is recorded, none before the one before it
        self._targets = replayed.targets
        self._asked_us = events.time_us[self._targets]
        users = events.user[self._targets]
        self._held_back = rows_before(events, users, schedule.as_of(self._asked_us, users))
        self._before = rows_before(events, users, self._asked_us)

    def answers(self, progress: Progress) -> Iterator[Answer | None]:
        done = 0
        before = np.searchsorted(self._from_us, self._asked_us, side="right").tolist()  # (T,) places of the order
        with progress.bar("through the service", len(self._order)) as bar:
            for place, upto in enumerate(before):
                self._record(done, upto)
                bar.update(upto - done)
                done = upto
                self._clock.move(int(self._asked_us[place]))
                yield self._ask(place)

    def _record(self, begin: int, end: int) -> None:
        """Records the events at these places of the order, in calls of which each is of one day."""
        while begin < end:
            part = self._from_us[begin : min(end, begin + _ROWS_MAX)]
            upto = begin + int(np.searchsorted(part, part[0] + _SPAN_US, side="right"))
            self._clock.move(int(self._from_us[upto - 1]))
            reply = self._client.record_events([self._event(int(row)) for row in self._order[begin:upto]])
            for result in reply.results:
                if result.status not in _RECORDED:
                    raise ReplayError(f"the server refused an event of the replay: {result}")
            begin = upto

    def _event(self, row: int) -> v1.Event:
        when = _EPOCH + timedelta(microseconds=int(self._times_us[row]))
        user, item, kind = self._user_ids[row], self._item_ids[row], self._types[row]
        return towerbridge.event(kind, item, user_id=user, occurred_at=when, event_id=str(row))

    def _ask(self, place: int) -> Answer | None:
        row = int(self._targets[place])
        held_back = {self._item_ids[one] for one in range(int(self._held_back[place]), int(self._before[place]))}
        if len(held_back) > _EXCLUDED_MAX:
            return None
        reply = self._client.recommend(
            user_id=self._user_ids[row], limit=CUTOFF, exclude_seen=True, exclude_item_ids=sorted(held_back), exact=True
        )
        return Answer(list(reply.item_ids), list(reply.scores))
