"""The views that grew write by write equal those rebuilt from the journal: events, upserts, removals, returns, availability."""

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from index.bundle import Bundle, read_bundle
from server.catalogue.changes import CatalogueChanges
from server.catalogue.text_workers import TextWorkers
from server.engine.batch import BatchComputer
from server.engine.engine import Engine
from server.journal.database import open_journal, open_reader
from server.journal.events import USER, Event, Person
from server.journal.items import ItemContent
from server.journal.writer import JournalWriter
from server.releases.loading import load_views, seed_catalogue
from server.releases.releases import Releases
from server.users.admission import Admission
from server.users.directory import Directory, Purpose
from server.users.intake import EventIntake
from server.users.people import People
from server.users.refresher import Refresher
from tests.server.people_world import NobodyErased
from tests.tiny import write_tiny_bundle

ITEMS = ("item-0", "item-1", "item-2", "new-0", "new-1", "new-2")
CONTENTS = {
    "known": {"categories": '["red","shoes"]', "attributes": '{"title":"T"}'},
    "other": {"categories": '["blue"]', "text": "not the bundle's text"},
    "nothing": {},
    "vector": {"vector": np.full(4, 0.5, dtype="<f4").tobytes()},
}
FOREVER = 30.0  # seconds


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("small") / "bundle"
    write_tiny_bundle(path, n_items=6, dim=4, history_length=3)
    return read_bundle(path)


class Parts:
    """A server's inside over a real journal, without its network."""

    def __init__(self, directory: Path, bundle: Bundle, *, limit: int = 3) -> None:
        self.file = open_journal(directory)
        self.people = People(
            bundle.manifest.event_types,
            Directory({Purpose.PERSONALISATION: True}),
            limit=limit,
            unreferenced=self._unreferenced,
        )
        seed_catalogue(self.file, bundle)
        catalogue, release = load_views(self.file, bundle, self.people, None, device="cpu")
        self.catalogue, self.release = catalogue, release
        self.people.read_from(open_reader(self.file.path), catalogue.locate)
        refresher = Refresher()
        computer = BatchComputer(lambda: self.release, self.people, refresher, clock_us=lambda: 1)
        self.engine = Engine(computer.answer, background=computer.refresh)
        self.journal = JournalWriter(self.file)
        self.changes = CatalogueChanges(
            self.journal, self.catalogue, self.people, refresher, self.engine, Releases(release), TextWorkers()
        )
        admission = Admission(self.people.directory, NobodyErased())
        self.intake = EventIntake(self.journal, self.people, admission, self.catalogue, refresher, self.engine)
        self.engine.start()
        self.journal.start()

    def _unreferenced(self, ordinal: int) -> None:
        self.changes.free(ordinal)

    def close(self) -> None:
        self.journal.close()
        self.engine.close()
        self.people.close()
        self.file.close()

    def do(self, step: tuple[Any, ...]) -> None:
        deadline = time.monotonic() + FOREVER
        match step:
            case ("record", events):
                self.intake.record(events, 0).result(FOREVER)
            case ("upsert", contents):
                self.changes.upsert([self._with_release(one) for one in contents], deadline)
            case ("remove", item_ids):
                self.changes.remove(item_ids, deadline)
            case ("availability", changes):
                self.changes.set_available(changes, deadline)

    def _with_release(self, content: ItemContent) -> ItemContent:
        return replace(content, vector_release=self.release.release_id) if content.vector else content

    def views(self) -> dict[str, Any]:
        """Everything that an answer could be made of, comparable with ==; call it after `close`."""
        rows = self.file_items
        keys = {person: self.people.directory.find(person) for person in (Person(USER, name) for name in "pq")}
        known = {person: key for person, key in keys.items() if key is not None}
        return {
            "people": keys,
            "histories": {key: [column.tolist() for column in self.people.history(key)[:3]] for key in known.values()},
            "counted": {key: self.people.history(key).counted for key in known.values()},
            "waiting": {key: self.people.held_count(key) - self.people.history(key).counted for key in known.values()},
            "references": {item_id: self.people.references(ordinal) for ordinal, item_id in rows},
            "items": {item_id: self.catalogue.get(item_id) for _, item_id in rows},
            "ids": [self.catalogue.item_id(ordinal) for ordinal, _ in rows],
            "permitted": [item_id for _, item_id in rows if self.catalogue.is_permitted(item_id)],
            "item vectors": {item_id: _rounded(self.release.item_vector(ordinal)) for ordinal, item_id in rows},
            "found": self._found(),
            "user vectors": {key: self._encoded(key) for key in known.values()},
        }

    @property
    def file_items(self) -> list[tuple[int, str]]:
        return list(self.file.connection.execute("SELECT ordinal, item_id FROM items ORDER BY ordinal"))

    def _found(self) -> dict[str, list[float]]:
        [candidates] = self.release.index.search(torch.eye(4)[:1], [100])
        assert self.release.index.violations == 0
        return dict(sorted(zip(candidates.item_ids, np.round(candidates.scores, 4).tolist(), strict=True)))

    def _encoded(self, key: int) -> list[float] | None:
        history = self.people.history(key)
        return _rounded(self.release.encode([history])[0]) if self.release.counts(history) else None


def _rounded(vector: np.ndarray | None) -> list[float] | None:
    return None if vector is None else (np.round(vector, 4) + 0.0).tolist()


def events_of(rows: list[tuple[str, str, str, int, int]]) -> list[Event]:
    return [Event(f"e{number}", Person(USER, who), item, kind, when) for who, item, kind, when, number in rows]


# New event ids mostly; a small range, so that some are repeats and clashes.
rows = st.tuples(
    st.sampled_from("pq"),
    st.sampled_from(ITEMS),
    st.sampled_from(("view", "cart", "hover")),
    st.integers(0, 4),
    st.integers(0, 60),
)
contents = st.builds(
    lambda item_id, kind: ItemContent(item_id, **CONTENTS[kind]), st.sampled_from(ITEMS), st.sampled_from(list(CONTENTS))
)
steps = st.one_of(
    st.tuples(st.just("record"), st.lists(rows, min_size=1, max_size=6).map(events_of)),
    st.tuples(st.just("record"), st.lists(rows, min_size=1, max_size=6).map(events_of)),
    st.tuples(st.just("upsert"), st.lists(contents, min_size=1, max_size=3, unique_by=lambda one: one.item_id)),
    st.tuples(st.just("remove"), st.lists(st.sampled_from(ITEMS), min_size=1, max_size=3)),
    st.tuples(st.just("availability"), st.lists(st.tuples(st.sampled_from(ITEMS), st.booleans()), min_size=1, max_size=3)),
)


def event(number: int, item: str) -> Event:
    return Event(f"e{number}", Person(USER, "p"), item, "view", number)


FORGOTTEN_AND_BACK = [
    ("record", [event(1, "new-0"), event(2, "item-1")]),
    ("upsert", [ItemContent("new-0", categories='["red"]')]),
    ("remove", ["new-0", "item-1"]),
    ("record", [event(3, "item-0"), event(4, "item-2"), event(5, "item-0"), event(6, "item-1")]),
    ("upsert", [ItemContent("item-1", categories='["blue"]'), ItemContent("new-1", categories='["red"]')]),
]
"""A removed item loses its last reference and its slot, another returns with events that waited for it."""


@settings(deadline=None, derandomize=True, max_examples=50)
@given(history=st.lists(steps, min_size=1, max_size=12), limit=st.integers(1, 4))
@example(history=FORGOTTEN_AND_BACK, limit=3)
def test_what_grew_write_by_write_equals_what_is_rebuilt_from_the_journal(
    small: Bundle, tmp_path_factory: pytest.TempPathFactory, history: list[tuple[Any, ...]], limit: int
):
    directory = tmp_path_factory.mktemp("journal")
    parts = Parts(directory, small, limit=limit)
    for step in history:
        parts.do(step)
    _close_and_compare(parts, directory, small, limit)


def _close_and_compare(parts: Parts, directory: Path, bundle: Bundle, limit: int) -> None:
    parts.journal.close()
    parts.engine.close()
    grown = parts.views()
    parts.people.close()
    parts.file.close()
    again = Parts(directory, bundle, limit=limit)
    rebuilt = again.views()
    again.close()
    assert grown == rebuilt


def test_writes_from_many_threads_at_once_leave_views_that_a_rebuild_gives_too(small: Bundle, tmp_path: Path):
    """Group commits, publication and the engine's changes interleave as they like: the end is the same."""
    directory = tmp_path / "storm"
    parts = Parts(directory, small, limit=4)
    failures: list[BaseException] = []

    def work(thread: int) -> None:
        choose = np.random.default_rng(thread)
        try:
            for number in range(60):
                item = ITEMS[choose.integers(len(ITEMS))]
                who = "pq"[choose.integers(2)]
                match choose.integers(6):
                    case 0:
                        parts.do(("upsert", [ItemContent(item, **CONTENTS["known"])]))
                    case 1:
                        parts.do(("remove", [item]))
                    case 2:
                        parts.do(("availability", [(item, bool(number % 2))]))
                    case _:
                        when = int(choose.integers(50))
                        parts.do(("record", [Event(f"{thread}-{number}", Person(USER, who), item, "view", when)]))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(FOREVER)
    assert failures == []
    _close_and_compare(parts, directory, small, 4)
