"""What an import found: counts, and notes on what it kept although it looks odd. Events are seen once, as they are written."""

import heapq
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from training.data.distinct import Distinct
from training.importers.notes import EXAMPLES
from training.importers.rejects import Rejects
from training.importers.sorting import same_instant

MANY_EVENTS, MANY_TIMES = 1_000, 100  # very many events: more than 1,000 and than 100 times the median user's
SINGLE = "users with a single event"
MANY = "users with very many events"
UNORDERED = "events out of order in the source"
INSTANT = "events at the instant of the user's event before"
EARLY, EARLY_BEFORE = "events before 1990", pa.scalar(datetime(1990, 1, 1, tzinfo=UTC))
AHEAD = "events later than the import"
NO_TEXT = "items without text"
NO_EVENTS = "items without events"


class Survey:
    """Sees sorted events batch by batch. Memory: the ids of the items, and no more than a number for each size of user.

    `began`: when the import began. What is later comes from a clock that is ahead.
    """

    def __init__(self, rejects: Rejects, *, ordinal: bool, began: datetime) -> None:
        self._places, self._ordinal, self._began = rejects.places, ordinal, pa.scalar(began)
        self._last: pa.Table | None = None  # the row before
        self._open: tuple[str, int] | None = None  # the user whose events go on, and how many there were
        self._sizes: Counter[int] = Counter()  # number of events -> users
        self._largest: list[tuple[int, str]] = []
        self._span: tuple[datetime, datetime] | None = None
        self._last_past: datetime | None = None
        self._items = Distinct()
        self.types: Counter[str] = Counter()
        self.notes = rejects.notes  # goes on with what was found as the rows were read
        self.events = 0

    def see(self, events: pa.Table) -> None:
        """The next sorted events, of NUMBERED_SCHEMA."""
        if not events.num_rows:
            return
        self.events += events.num_rows
        self._items.see(events["item_id"])
        for row in events["event_type"].value_counts().to_pylist():
            self.types[row["values"]] += row["counts"]
        span = pc.min_max(events["occurred_at"]).as_py()
        first, last = self._span or (span["min"], span["max"])
        self._span = min(first, span["min"]), max(last, span["max"])
        if not self._ordinal:
            early = events.filter(pc.less(events["occurred_at"], EARLY_BEFORE))
            self.notes.add(EARLY, early.num_rows, _with_times(early.slice(0, EXAMPLES)))
            is_ahead = pc.greater(events["occurred_at"], self._began)
            ahead = events.filter(is_ahead)
            self.notes.add(AHEAD, ahead.num_rows, _with_times(ahead.slice(0, EXAMPLES)))
            newest = pc.max(events["occurred_at"].filter(pc.invert(is_ahead))).as_py()
            self._last_past = max(filter(None, (self._last_past, newest)), default=None)
        joined = events if self._last is None else pa.concat_tables([self._last, events])
        self._note_order(joined.combine_chunks())
        self._count_users(events["user_id"].combine_chunks())
        self._last = events.slice(events.num_rows - 1)

    @property
    def item_ids(self) -> pa.Array:
        """The items that were seen, each once, in the order in which they came."""
        return self._items.finish()

    def finish(self, items: pa.Table) -> dict[str, Any]:
        """`counts`, the times and `notes` of dataset.json; `items` is the finished catalogue."""
        if self._open is not None:
            self._end_users([self._open[0]], np.array([self._open[1]]))
            self._open = None
        self._note_users()
        used = pc.is_in(items["item_id"], value_set=self.item_ids)
        described = pc.not_equal(items["text"], "")
        for note, fine in ((NO_EVENTS, used), (NO_TEXT, described)):
            odd = items["item_id"].filter(pc.invert(fine))
            self.notes.add(note, len(odd), [{"item_id": name} for name in odd.slice(0, EXAMPLES).to_pylist()])
        first, last = self._span or (None, None)
        return {
            "counts": {
                "events": self.events,
                "users": sum(self._sizes.values()),
                "users_with_one_event": self._sizes[1],
                "items": items.num_rows,
                "items_with_events": pc.sum(used).as_py(),
                "items_with_text": pc.sum(described).as_py(),
                "event_types": dict(self.types.most_common()),
            },
            "first_event": first and first.isoformat(),
            "last_event": last and last.isoformat(),
            "last_past_event": self._last_past and self._last_past.isoformat(),
            "notes": self.notes.describe(),
        }

    def _note_order(self, joined: pa.Table) -> None:
        """Events that stand in the source after a later one of their user, and those whose order only the source knows."""
        user, row = joined["user_id"].combine_chunks(), joined["row"].combine_chunks().to_numpy()
        same_user = pc.equal(user[1:], user[:-1]).to_numpy(zero_copy_only=False)
        late = np.flatnonzero(same_user & (row[1:] < row[:-1]))
        shown = joined.take(pa.array(late[:EXAMPLES])).to_pylist()
        examples = [{"user_id": each["user_id"], **self._places.find("events", each["row"])} for each in shown]
        self.notes.add(UNORDERED, len(late), examples)
        if not self._ordinal:
            same = same_instant(joined)
            seconds = np.flatnonzero(same & ~np.append(False, same[:-1]))  # of each instant the second event
            self.notes.add(INSTANT, int(same.sum()), _with_times(joined.take(pa.array(seconds[:EXAMPLES]))))

    def _count_users(self, user: pa.Array) -> None:
        """Ends all users of a batch but the last, who may go on."""
        new = pc.not_equal(user[1:], user[:-1]).to_numpy(zero_copy_only=False)
        starts = np.append(0, np.flatnonzero(new) + 1)
        names: list[str] = user.take(pa.array(starts)).to_pylist()
        sizes = np.diff(np.append(starts, len(user)))
        if self._open is not None:
            if self._open[0] == names[0]:
                sizes[0] += self._open[1]
            else:
                names, sizes = [self._open[0], *names], np.append(self._open[1], sizes)
        self._end_users(names[:-1], sizes[:-1])
        self._open = names[-1], int(sizes[-1])

    def _end_users(self, names: list[str], sizes: npt.NDArray[np.int64]) -> None:
        for size, users in zip(*np.unique(sizes, return_counts=True), strict=True):
            self._sizes[int(size)] += int(users)
        single = np.flatnonzero(sizes == 1)
        self.notes.add(SINGLE, len(single), [{"user_id": names[place]} for place in single[:EXAMPLES]])
        most = np.argsort(-sizes, kind="stable")[:EXAMPLES]
        self._largest = heapq.nlargest(EXAMPLES, [*self._largest, *((int(sizes[place]), names[place]) for place in most)])

    def _note_users(self) -> None:
        sizes = np.array(sorted(self._sizes), dtype=np.int64)
        users = np.array([self._sizes[int(size)] for size in sizes], dtype=np.int64)
        median = sizes[np.searchsorted(np.cumsum(users), (users.sum() + 1) // 2)] if len(sizes) else 0
        many = sizes > max(MANY_EVENTS, MANY_TIMES * int(median))
        found = [{"user_id": name, "events": size} for size, name in self._largest if size in set(sizes[many].tolist())]
        self.notes.add(MANY, int(users[many].sum()), found)


def _with_times(events: pa.Table) -> list[dict[str, Any]]:
    """Examples of a note."""
    return [{"user_id": each["user_id"], "occurred_at": each["occurred_at"].isoformat()} for each in events.to_pylist()]
