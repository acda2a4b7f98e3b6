"""Every target under every policy: which vector there was, and at which rank it puts the target."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.freshness.histories import Histories
from bench.freshness.policies import IntArray, Schedule
from bench.freshness.ranking import Questions, popularity_ranks, ranks
from bench.freshness.timeline import Timeline, in_bundle
from index.bundle import Bundle
from training.data.interactions import Interactions
from training.progress import Progress

POPULARITY = "popularity"


@dataclass(frozen=True)
class Replayed:
    """What came of it. T targets in time order."""

    events: Interactions  # in the bundle's rows
    targets: IntArray  # (T,) int64, event rows
    questions: Questions
    ends: dict[str, IntArray]  # by policy, (T,) int64: where the history ends that the vector was made of
    ranks: dict[str, IntArray]  # by policy, and POPULARITY: (T,) int64, 0 = best
    has_vector: dict[str, NDArray[np.bool_]]  # by policy, (T,): False: popularity stands in, since there is no history


def replay(timeline: Timeline, bundle: Bundle, schedules: list[Schedule], progress: Progress) -> Replayed:
    """Asks every question once for each different history that the policies give it."""
    events = in_bundle(timeline, bundle)
    histories = Histories(events)
    targets = timeline.targets
    users, times_us = events.user[targets], events.time_us[targets]
    questions = Questions(histories, users, times_us, events.item[targets])
    ends = {one.policy.name: histories.ends(users, one.as_of(times_us, users)) for one in schedules}
    has_vector = {name: end > histories.starts(users) for name, end in ends.items()}
    popular = popularity_ranks(questions, bundle.items["popularity"].to_numpy())
    ranked = _ranked(bundle, questions, ends, has_vector, progress)
    by_policy = {name: np.where(has_vector[name], ranked[name], popular) for name in ends}
    return Replayed(events, targets, questions, ends, by_policy | {POPULARITY: popular}, has_vector)


def _ranked(
    bundle: Bundle,
    questions: Questions,
    ends: dict[str, IntArray],
    has_vector: dict[str, NDArray[np.bool_]],
    progress: Progress,
) -> dict[str, IntArray]:
    """By policy, (T,) int64 ranks; 0 where there is no vector. Equal histories are encoded once, equal pairs ranked once."""
    number = np.arange(len(questions))
    pairs = np.concatenate([np.stack([number, end], axis=1)[has_vector[name]] for name, end in ends.items()])  # (P, 2)
    asked, back = np.unique(pairs, axis=0, return_inverse=True)
    made, which = np.unique(asked[:, 1], return_inverse=True)
    # An end that is not the start of a history belongs to one user alone.
    owner = np.empty(len(made), dtype=np.int64)
    owner[which] = questions.users[asked[:, 0]]
    vectors = questions.histories.encode(bundle, owner, made, progress)
    order = np.argsort(which, kind="stable")
    found = np.empty(len(asked), dtype=np.int64)
    found[order] = ranks(questions, asked[order, 0], vectors, which[order], bundle.item_vectors, progress)
    result, begin = {}, 0
    for name in ends:
        result[name] = np.zeros(len(questions), dtype=np.int64)
        count = int(has_vector[name].sum())
        result[name][has_vector[name]] = found[back[begin : begin + count]]
        begin += count
    return result
