"""What it is worth that new items are found soon: targets on items that came up after the cut, seen late, or never."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from bench.freshness.histories import Histories
from bench.freshness.placement import Placement
from bench.freshness.policies import IntArray
from bench.freshness.ranking import Questions, score_ranks
from bench.freshness.timeline import Timeline, in_bundle
from index.bundle import Bundle
from training.data.interactions import Interactions
from training.progress import Progress

_AT_ONCE = 128


@dataclass(frozen=True)
class NewItems:
    """The catalogue of this replay: the bundle's N items in their rows, then M items that came up after the cut.

    A bundle may know some of the M already, by their content; those rows are hidden, so that none is there too early.
    """

    events: Interactions  # items are rows of this catalogue; event types are the bundle's codes
    hidden: NDArray[np.bool_]  # (N,) bool
    rows: IntArray  # (M,) int64, of the dataset's items
    first_seen_us: IntArray  # (M,) int64
    known: int  # N


def new_items(timeline: Timeline, bundle: Bundle) -> NewItems:
    """Raises DatasetError for a bundle of other items."""
    coded = in_bundle(timeline, bundle)
    late = ~timeline.known & (timeline.first_seen_us < np.iinfo(np.int64).max)  # (N',) of the dataset's items
    rows = np.flatnonzero(late)
    place = np.cumsum(late) - 1 + len(bundle.item_ids)
    is_late = np.append(late, False)[timeline.events.item]
    hidden = np.zeros(len(bundle.item_ids), dtype=bool)
    hidden[coded.item[is_late & (coded.item >= 0)]] = True
    item = np.where(is_late, np.append(place, -1)[timeline.events.item], coded.item)
    events = replace(coded, item=item, items=len(bundle.item_ids) + len(rows))
    return NewItems(events, hidden, rows, timeline.first_seen_us[rows], len(bundle.item_ids))


class ItemReplay:
    """Every first interaction after the cut, with the user's vector as fresh as it can be, and items that are late."""

    def __init__(self, timeline: Timeline, bundle: Bundle, new: NewItems) -> None:
        self._bundle, self._new = bundle, new
        events = new.events
        self.users, self.times_us = events.user[timeline.asked], events.time_us[timeline.asked]
        self.histories = Histories(events)
        self.questions = Questions(self.histories, self.users, self.times_us, events.item[timeline.asked])
        self.is_new = ~timeline.known[timeline.events.item[timeline.asked]]  # (A,) bool
        popularity = bundle.items["popularity"].to_numpy()
        self._popularity = torch.from_numpy(popularity.astype(np.float32) / max(popularity.sum(), 1))  # (N,)

    def ranks(self, placement: Placement, delay_us: int | None, progress: Progress) -> tuple[IntArray, NDArray[np.bool_]]:
        """Where items that become visible so much later put the targets, (A,) int64, 0 = best; delay None: they never do.

        Also (A,) bool: the target is visible when it is asked for, as every known item is. What stands where equal scores
        meet is the row. Without a history the known items stand by popularity, and new ones are not found.
        """
        found = np.empty(len(self.questions), dtype=np.int64)
        there = ~self.is_new
        with torch.inference_mode(), progress.bar("items", len(found)) as bar:
            vectors = self._user_vectors(placement, delay_us)
            shown = self._shown(placement, delay_us)
            for begin in range(0, len(found), _AT_ONCE):
                some = np.arange(begin, min(begin + _AT_ONCE, len(found)))
                users, has_vector = next(vectors)
                scores = torch.full((len(some), self._new.events.items), -torch.inf)
                scores[:, : self._new.known] = torch.where(
                    torch.from_numpy(has_vector)[:, None],
                    torch.from_numpy(users @ self._bundle.item_vectors.T),
                    self._popularity - 2,  # below every cosine
                )
                for place in range(len(some)):
                    items, visible = next(shown)
                    if self.is_new[begin + place]:
                        there[begin + place] = visible[self.questions.items[begin + place] - self._new.known]
                    if has_vector[place]:
                        own = np.where(visible, items @ users[place], -np.inf)
                        scores[place, self._new.known :] = torch.from_numpy(own.astype(np.float32))
                scores[:, : self._new.known][:, torch.from_numpy(self._new.hidden)] = -torch.inf
                owners, seen = self.questions.seen(some)
                scores[torch.from_numpy(owners), torch.from_numpy(seen)] = -torch.inf
                found[some] = score_ranks(scores, self.questions.items[some])
                bar.update(len(some))
        return found, there

    def _shown(self, placement: Placement, delay_us: int | None) -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
        """For each question, the vectors of the new items, (M, D), and which of them are visible, (M,)."""
        late = placement.begin()
        for time_us in self.times_us.tolist():
            yield late.at(None if delay_us is None else time_us - delay_us)

    def _user_vectors(
        self, placement: Placement, delay_us: int | None
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
        """For each part of the questions, (B, D) unit rows of the events on visible items, and whether there were any."""
        known, length = self._new.known, self._bundle.manifest.history_length or 0
        shown = self._shown(placement, delay_us)
        kept = self.histories.kept
        starts, ends = self.histories.starts(self.users), self.questions.seen_ends
        for begin in range(0, len(self.users), _AT_ONCE):
            some = range(begin, min(begin + _AT_ONCE, len(self.users)))
            history = np.zeros((len(some), length, self._bundle.manifest.dim), dtype=np.float32)
            kind = np.zeros((len(some), length), dtype=np.int64)
            seconds = np.zeros((len(some), length), dtype=np.float32)
            lengths = np.zeros(len(some), dtype=np.int64)
            for place, number in enumerate(some):
                items, visible = next(shown)
                rows = np.arange(starts[number], ends[number])
                rows = rows[np.append(~self._new.hidden, visible)[kept.item[rows]]][-length:]
                lengths[place] = n = len(rows)
                if n:
                    is_new = kept.item[rows] >= known
                    history[place, :n][~is_new] = self._bundle.item_vectors[kept.item[rows[~is_new]]]
                    history[place, :n][is_new] = items[kept.item[rows[is_new]] - known]
                    kind[place, :n] = kept.kind[rows]
                    seconds[place, :n] = (kept.time_us[rows[-1]] - kept.time_us[rows]) / 1e6
            yield self._encode(history, kind, seconds * self._bundle.manifest.time_features, lengths)

    def _encode(
        self, history: NDArray[np.float32], kind: IntArray, seconds: NDArray[np.float32], lengths: IntArray
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        has = lengths > 0
        vectors = np.zeros((len(lengths), self._bundle.manifest.dim), dtype=np.float32)
        if has.any():
            width = int(lengths.max())
            inputs = history[has, :width], kind[has, :width], seconds[has, :width], lengths[has]
            vectors[has] = self._bundle.encode_users(*inputs)
        return vectors, has
