"""People with tastes, who agreed, and what they did: a journal that is filled in one go."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from bench.world.items import MadeItems
from server.journal.database import JournalFile, open_journal
from server.journal.events import USER, Event, Person
from server.journal.migrations import event_hash

_TASTES = 3  # shelves that a person likes
_TASTEFUL = 0.8  # share of a person's events that are on items of those shelves
_TYPE_SHARES = {"view": 0.8, "cart": 0.15, "purchase": 0.05}
_SPAN_US = 20 * 86_400_000_000  # the histories' length: younger than the default age at which event_ids are forgotten
_PEOPLE_AT_ONCE = 2_000


def make_people(
    folder: Path, made: MadeItems, count: int, history: int, until_us: int, random: np.random.Generator
) -> list[str]:
    """Fills a tenant's directory; user ids. Everyone agreed to personalisation and training, and has `history` events.

    until_us: when everything was received, microseconds since 1970. Raises StartupError if the directory cannot be used.
    """
    width = max(8, len(str(count)))
    names = [f"user-{number:0{width}d}" for number in range(count)]
    keys = np.sort(random.choice(2**40, count, replace=False) + 1).tolist()
    file = open_journal(folder)
    try:
        file.connection.pragma("synchronous", "off")
        with file.connection:
            people = ((key, USER, name) for key, name in zip(keys, names, strict=True))
            file.connection.executemany("INSERT INTO people (person_key, kind, subject_id) VALUES (?, ?, ?)", people)
            agreed = (
                (key, 1 + place, purpose, 1, "bench.world", until_us, until_us)
                for place, key in enumerate(keys)
                for purpose in (1, 2)
            )
            file.connection.executemany("INSERT INTO consents VALUES (?, ?, ?, ?, ?, ?, ?)", agreed)
            _write_events(file, made, names, keys, history, until_us, random)
            head = count * (1 + history)
            file.connection.execute("UPDATE meta SET value = ? WHERE key = 'head'", (head,))
        file.connection.pragma("wal_checkpoint(truncate)")
    finally:
        file.close()
    return names


def _write_events(
    file: JournalFile,
    made: MadeItems,
    names: list[str],
    keys: list[int],
    history: int,
    until_us: int,
    random: np.random.Generator,
) -> None:
    """Events by person and position, as the table lies on disk; then the event_ids in the order of their hashes."""
    connection = file.connection
    connection.execute("CREATE TEMP TABLE staged (event_hash BLOB, digest BLOB, position INTEGER, person_key INTEGER)")
    shop = _Shop(made)
    for start in tqdm(range(0, len(names), _PEOPLE_AT_ONCE), desc="histories", unit="batch", disable=None):
        size = min(_PEOPLE_AT_ONCE, len(names) - start)
        chosen = shop.choose(size, history, random)
        kinds = random.choice(len(_TYPE_SHARES), size=(size, history), p=list(_TYPE_SHARES.values()))
        times = until_us - np.sort(random.integers(0, _SPAN_US, (size, history)), axis=1)[:, ::-1]
        types, events, staged = tuple(_TYPE_SHARES), [], []
        for place in range(size):
            name, key = names[start + place], keys[start + place]
            rows: Iterator[tuple[int, int, int]] = zip(
                chosen[place].tolist(), kinds[place].tolist(), times[place].tolist(), strict=True
            )
            first = 1 + len(names) + (start + place) * history
            for position, (item, kind, time_us) in enumerate(rows, start=first):
                event = Event(f"world-{position:x}", Person(USER, name), made.item_ids[item], types[kind], time_us)
                hashed = event_hash(file.event_key, event.event_id)
                events.append((key, position, hashed, event.item_id, event.type, time_us, until_us))
                staged.append((hashed, event.digest(), position, key))
        connection.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)", events)
        connection.executemany("INSERT INTO staged VALUES (?, ?, ?, ?)", staged)
    connection.execute("INSERT INTO event_ids SELECT * FROM staged ORDER BY event_hash")
    connection.execute("DROP TABLE staged")


class _Shop:
    """Items by shelf, the popular ones first: what people come across."""

    def __init__(self, made: MadeItems) -> None:
        self._order = np.lexsort((-made.popularity, made.shelves))  # (N,) int64, by shelf, then popularity
        self._sizes = np.bincount(made.shelves, minlength=len(made.centres))  # (S,) int64
        self._starts = np.concatenate([[0], np.cumsum(self._sizes)[:-1]])  # (S,) int64

    def choose(self, people: int, events: int, random: np.random.Generator) -> NDArray[Any]:
        """(people, events) int64 items: mostly of some shelves that each person likes, large ones being liked more."""
        shares = self._sizes / self._sizes.sum()
        tastes = random.choice(len(shares), size=(people, _TASTES), p=shares)
        strolls = random.choice(len(shares), size=(people, events), p=shares)
        liked = np.take_along_axis(tastes, random.integers(0, _TASTES, (people, events)), axis=1)
        shelves = np.where(random.random((people, events)) < _TASTEFUL, liked, strolls)
        sizes = self._sizes[shelves]
        ranks = (random.random((people, events)) ** 2 * sizes).astype(np.int64)  # the square: popular ones more often
        found: NDArray[Any] = self._order[self._starts[shelves] + np.minimum(ranks, sizes - 1)]
        return found
