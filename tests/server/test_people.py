"""Histories, links and consent against a plain model, in any order of writes; and against a rebuild from zero."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from server.errors import FailedPrecondition
from server.journal.database import open_journal
from server.journal.events import USER, VISITOR, Event, Person, Status
from server.users.directory import Purpose
from server.users.histories import History, HistoryCache
from tests.server.people_world import Model, World

ANN, COOKIE, PHONE, BOB = Person(USER, "ann"), Person(VISITOR, "cookie"), Person(VISITOR, "phone"), Person(USER, "bob")
EVERYONE = (ANN, COOKIE, PHONE, BOB)
ITEMS = ("a", "b", "c")
GOLDEN = Path(__file__).parent / "golden_journal_v1" / "journal.sqlite"

people = st.sampled_from(EVERYONE)
items = st.sampled_from(ITEMS)
types = st.sampled_from(("view", "cart", "hover"))
times = st.integers(-3, 3)
purposes = st.sampled_from(list(Purpose))


class PeopleMachine(RuleBasedStateMachine):
    """Any writes in any order: what the views say is what the model says, and what a rebuild from zero says."""

    @initialize(limit=st.integers(1, 4), presumed=st.booleans(), capacity=st.sampled_from((1, 1_000_000)))
    def start(self, limit: int, presumed: bool, capacity: int) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.world = World(self.directory, limit=limit, presumed=presumed, capacity=capacity)
        self.model = Model(limit, presumed)
        self.sent = 0

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.close()
            shutil.rmtree(self.directory)

    @rule(rows=st.lists(st.tuples(people, items, types, times), min_size=1, max_size=4))
    def record(self, rows: list[tuple[Person, str, str, int]]) -> None:
        events = [Event(f"{self.sent + n}", *row) for n, row in enumerate(rows)]
        self.sent += len(events)
        outcomes = self.world.record(events)
        kept = [self.model.record(*row) for row in rows]
        assert [outcome.status is not Status.NO_CONSENT for outcome in outcomes] == kept

    @rule(item=items)
    def upsert(self, item: str) -> None:
        self.world.upsert(item)
        self.model.upsert(item)

    @rule(item=items)
    def remove(self, item: str) -> None:
        self.world.remove(item)
        self.model.remove(item)

    @rule(source=people, owner=people)
    def link(self, source: Person, owner: Person) -> None:
        if self.model.parent.get(source) == owner:
            assert not self.world.link(source, owner)
        elif self.model.can_link(source, owner):
            assert self.world.link(source, owner)
            self.model.parent[source] = owner
        else:
            with pytest.raises(FailedPrecondition):
                self.world.link(source, owner)

    @rule(source=people, owner=people)
    def unlink(self, source: Person, owner: Person) -> None:
        assert self.world.unlink(source, owner) == (self.model.parent.get(source) == owner)
        if self.model.parent.get(source) == owner:
            del self.model.parent[source]

    @rule(person=people, purpose=purposes, granted=st.booleans(), given_us=times)
    def decide(self, person: Person, purpose: Purpose, granted: bool, given_us: int) -> None:
        self.world.decide(person, purpose, granted, given_us)
        self.model.decide(person, purpose, granted, given_us)

    @invariant()
    def the_views_say_what_the_model_says(self) -> None:
        rebuilt = self.world.rebuilt()
        for person in EVERYONE:
            expected = self.model.history(person)
            assert self.world.history(person) == expected
            assert self.world.history(person, rebuilt) == expected
            for purpose in Purpose:
                may = self.model.may(person, purpose)
                assert self.world.people.directory.may_person(person, purpose) == may
                assert rebuilt.directory.may_person(person, purpose) == may
        for ordinal in self.world.places().ordinals.values():
            assert self.world.people.references(ordinal) == rebuilt.references(ordinal)
        rebuilt.close()

    @invariant()
    def linked_ids_are_one(self) -> None:
        directory = self.world.people.directory
        for person in EVERYONE:
            key = directory.find(person)
            root = self.model.way(person)[-1]
            if key is not None and directory.find(root) is not None:
                assert directory.root(key) == directory.find(root)
                assert directory.members(key)[0] == directory.root(key)


PeopleMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
TestPeople = PeopleMachine.TestCase


@given(rows=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3), st.integers(-5, 5)), max_size=12), limit=st.integers(1, 8))
def test_a_packed_history_is_the_history(rows: list[tuple[int, int, int]], limit: int) -> None:
    history = History.empty()
    for version, (ordinal, code, time_us) in enumerate(rows, start=1):
        history = History.unpack(history.with_event(ordinal, code, time_us, version=version, limit=limit).pack())
    expected = sorted(enumerate(rows), key=lambda one: (one[1][2], one[0]))
    # The oldest left out early makes room for later ones, never for older: so the newest `limit` are there.
    assert list(history.times_us) == [row[2] for _, row in expected][-limit:]
    assert (history.counted, history.version) == (len(rows), len(rows))
    assert len({len(history.ordinals), len(history.types), len(history.times_us)}) == 1


def test_the_least_recently_written_histories_make_room() -> None:
    cache = HistoryCache(2)
    keys = [256 * n for n in range(4)]  # all in one part
    for key in keys[:2]:
        cache.put(key, b"first")
    cache.put(keys[0], b"again")
    cache.put(keys[2], b"first")
    assert [cache.get(key) for key in keys[:3]] == [b"again", None, b"first"]
    cache.put(1, b"elsewhere")
    assert len(cache) == len(cache.keys()) == 2
    assert cache.get(1) == b"elsewhere"


def test_an_event_that_comes_late_lies_in_its_place_in_time(tmp_path: Path) -> None:
    world = World(tmp_path, presumed=True)
    for item in ITEMS:
        world.upsert(item)
    world.record([Event("1", ANN, "a", "view", 30), Event("2", ANN, "b", "view", 10), Event("3", ANN, "c", "view", 20)])
    assert [item for item, _, _ in world.history(ANN)] == ["b", "c", "a"]
    world.close()


def test_beyond_the_limit_people_are_read_from_the_journal(tmp_path: Path) -> None:
    world = World(tmp_path, presumed=True, capacity=1)
    world.upsert("a")
    crowd = [Person(USER, f"person-{n}") for n in range(2000)]
    world.record([Event(f"{n}", person, "a", "view", n) for n, person in enumerate(crowd)])
    world.record([Event(f"again-{n}", person, "a", "cart", n) for n, person in enumerate(crowd)])
    assert all(world.history(person) == [("a", "view", n), ("a", "cart", n)] for n, person in enumerate(crowd[:300]))
    assert world.people.in_memory == 1
    rebuilt = world.rebuilt()
    assert rebuilt.in_memory <= 1
    assert world.history(crowd[7], rebuilt) == [("a", "view", 7), ("a", "cart", 7)]
    rebuilt.close()
    world.close()


def test_a_journal_of_the_first_schema_is_brought_up_to_date(tmp_path: Path) -> None:
    """Written by the release before: 24 events of 5 people on 5 items, of which item-4 was never known and item-1 removed."""
    shutil.copy(GOLDEN, tmp_path / "journal.sqlite")
    world = World(tmp_path, presumed=True)
    assert (world.file.epoch, world.file.head) == ("edda29f4ad6f1eaa", 29)
    history = world.history(Person(USER, "person-0"))
    assert history == [(f"item-{n % 5}", "view", 1_700_000_000_000_000 + n * 1_000_000) for n in (0, 6, 12, 18)]
    repeated = Event("event-6", Person(USER, "person-0"), "item-1", "view", 1_700_000_006_000_000)
    assert world.record([repeated])[0].status is Status.DUPLICATE
    world.close()
    again = open_journal(tmp_path)
    assert again.connection.pragma("integrity_check") == "ok"
    again.close()


def test_arrays_of_a_history_are_read_only() -> None:
    packed = History.empty().with_event(1, 0, 5, version=1, limit=9).pack()
    assert not History.unpack(packed).ordinals.flags.writeable
    assert History.unpack(packed).ordinals.dtype == np.int32
