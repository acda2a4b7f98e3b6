"""The replay from a data set and a bundle to one result, as docs/freshness.md describes it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np

from bench.freshness.agreement import compare
from bench.freshness.fallback import fallbacks
from bench.freshness.histories import Histories, rows_before
from bench.freshness.items import ItemReplay, NewItems, new_items
from bench.freshness.placement import ByContent, ByVisitors, Placement
from bench.freshness.policies import POLICIES, IntArray, Schedule, schedule
from bench.freshness.replay import POPULARITY, Replayed, replay
from bench.freshness.statistics import by_gap, summarise
from bench.freshness.timeline import Timeline
from bench.hardware import hardware
from index.bundle import Bundle
from training.data.interactions import Interactions
from training.progress import Progress

DELAYS_S = {"0s": 0, "1h": 3600, "1d": 86_400, "never": None}


@dataclass(frozen=True)
class Settings:
    """What a replay is repeated with."""

    seed: int = 0
    lag_s: float = 0.0
    resamples: int = 2000


def measure_users(
    timeline: Timeline, bundle: Bundle, settings: Settings, progress: Progress
) -> tuple[dict[str, Any], Replayed]:
    """The result of the policies, without the service, and what it was made of."""
    replayed = replay(timeline, bundle, [schedule_of(timeline, policy.name, settings) for policy in POLICIES], progress)
    users = replayed.questions.users
    rows = summarise(replayed.ranks, users, resamples=settings.resamples, seed=settings.seed, against=[POPULARITY])
    for row in rows:
        name = row["policy"]
        if name != POPULARITY:
            row["without_history"] = float(1 - replayed.has_vector[name].mean())
            row["behind"] = float((replayed.ends[name] < replayed.questions.seen_ends).mean())
    result = {
        "excluded_share": timeline.excluded_share,
        "targets": len(replayed.targets),
        "users": len(np.unique(users)),
        "policies": rows,
        "strata": by_gap(replayed.ranks, _gaps(timeline.events, replayed.targets)),
        "fallback": fallbacks(replayed, ["1h", "1d", "never"]),
    }
    return result, replayed


def measure_service(
    timeline: Timeline, bundle: Bundle, replayed: Replayed, policies: Sequence[str], settings: Settings, progress: Progress
) -> dict[str, Any]:
    """{"compared", "same", "ties", "different", "not_asked", "passed"} over all policies, and each one's own in "policies"."""
    from bench.freshness.service import replay_through_service

    rows: list[dict[str, Any]] = []
    for name in policies:
        progress.say(f"replay through the service: {name}")
        served = replay_through_service(timeline, bundle, replayed, schedule_of(timeline, name, settings), progress)
        agreement = compare(bundle, replayed, name, served.answers, progress)
        rows.append({"policy": name, **agreement.as_json(), "seconds": round(served.seconds, 1)})
    sums = {key: sum(row[key] for row in rows) for key in ("compared", "same", "ties", "different", "not_asked")}
    return {**sums, "passed": all(row["passed"] for row in rows), "policies": rows}


def measure_items(timeline: Timeline, bundle: Bundle, settings: Settings, progress: Progress) -> list[dict[str, Any]]:
    """One entry a way to place new items; none where nothing new came up."""
    new = new_items(timeline, bundle)
    replayed = ItemReplay(timeline, bundle, new)
    if not replayed.is_new.any():
        return []
    entries = []
    for placement in _placements(timeline, bundle, new, progress):
        progress.say(f"replay of new items, placed by {placement.name}")
        found = {
            name: replayed.ranks(placement, None if delay is None else delay * 1_000_000, progress)
            for name, delay in DELAYS_S.items()
        }
        parts = {"new": replayed.is_new, "known": ~replayed.is_new, "all": np.ones(len(replayed.is_new), dtype=bool)}
        entry: dict[str, Any] = {
            "placed_by": placement.name,
            "new_items": len(new.rows),
            "placed_items": placement.placed,
            "targets": {name: int(inside.sum()) for name, inside in parts.items()},
        }
        for name, inside in parts.items():
            chosen = {policy: ranks[inside] for policy, (ranks, _) in found.items()}
            entry[name] = summarise(chosen, replayed.users[inside], resamples=settings.resamples, seed=settings.seed)
        for row in entry["new"]:
            row["visible"] = float(found[row["policy"]][1][replayed.is_new].mean())
        entries.append(entry)
    return entries


def about(timeline: Timeline, bundle: Bundle, settings: Settings) -> dict[str, Any]:
    """What was measured on what, with what."""
    info, training = timeline.dataset.info, bundle.manifest.training
    return {
        "cut": datetime.fromtimestamp(timeline.cut_us / 1e6, UTC).isoformat(),
        "data": {name: info.get(name) for name in ("kind", "source", "counts")},
        "bundle": {
            "release_id": bundle.release_id,
            "offline_metrics": dict(bundle.manifest.offline_metrics),
            "config": training.get("config"),
            "split": training.get("split"),
        },
        "settings": vars(settings),
        "hardware": hardware(),
        "versions": {name: version(name) for name in ("torch", "numpy", "pyarrow", "grpcio")},
    }


def schedule_of(timeline: Timeline, name: str, settings: Settings) -> Schedule:
    """A policy by its name, with the phases of these settings."""
    policy = next(one for one in POLICIES if one.name == name)
    users, cut_us = timeline.events.users, timeline.cut_us
    return schedule(policy, users=users, seed=settings.seed, lag_s=settings.lag_s, cut_us=cut_us)


def _gaps(events: Interactions, targets: IntArray) -> IntArray:
    """(T,) int64 microseconds since the user's last event with an earlier stamp, -1 where there is none."""
    users, times_us = events.user[targets], events.time_us[targets]
    last = rows_before(events, users, times_us) - 1
    return np.where(last >= events.offsets[users], times_us - events.time_us[np.maximum(last, 0)], -1)


def _placements(timeline: Timeline, bundle: Bundle, new: NewItems, progress: Progress) -> list[Placement]:
    by_content = ByContent(bundle, timeline.dataset, new.rows, new.first_seen_us, progress)
    by_visitors = _by_visitors(bundle, new, progress)
    return [by_content, by_visitors] if by_content.placed else [by_visitors]


def _by_visitors(bundle: Bundle, new: NewItems, progress: Progress) -> ByVisitors:
    """Visitors are taken as they were just before, by what they did with known items."""
    events, known = new.events, new.known
    old = Interactions(
        np.where(events.item < known, events.item, -1), events.kind, events.time_us, events.offsets, events.event_types, known
    )
    histories = Histories(old)
    visits = np.flatnonzero(events.item >= known)
    users, times_us = events.user[visits], events.time_us[visits]
    ends = histories.ends(users, times_us)
    has = ends > histories.starts(users)
    vectors = histories.encode(bundle, users[has], ends[has], progress)
    return ByVisitors(events.item[visits][has] - known, times_us[has], vectors, len(new.rows))
