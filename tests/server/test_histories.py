"""Histories against a plain model, in any order of events, arrivals and removals; and against a rebuild from zero."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from server.journal.events import USER, VISITOR, Person, Status, StoredEvent
from server.users.histories import Histories, History

TYPES = ("view", "cart")
PEOPLE = {Person(USER, "ann"): 7, Person(VISITOR, "ann"): 2**62, Person(USER, "bob"): 1}
ITEMS = ("a", "b", "c", "d")
ORDINALS = {item: ordinal for ordinal, item in enumerate(ITEMS, start=1023)}  # across the first growth of the counts

people = st.sampled_from(list(PEOPLE))
items = st.sampled_from(ITEMS)
types = st.sampled_from((*TYPES, "hover"))
times = st.integers(-3, 3)
rows = st.tuples(people, items, types, times)


@dataclass
class Model:
    """What a history is, said as plainly as possible."""

    limit: int
    events: list[tuple[StoredEvent, Person]] = field(default_factory=list)
    counted: set[int] = field(default_factory=set)  # positions
    live: set[str] = field(default_factory=set)
    removed_at: dict[str, int] = field(default_factory=dict)
    position: int = 0

    def add(self, row: tuple[Person, str, str, int]) -> tuple[StoredEvent, Person]:
        person, item, type_name, time_us = row
        self.position += 1
        event = StoredEvent(self.position, PEOPLE[person], item, type_name, time_us)
        self.events.append((event, person))
        if item in self.live and type_name in TYPES:
            self.counted.add(event.position)
        return event, person

    def comes_in(self, item: str) -> list[int]:
        """The people whose histories change, once for each event."""
        self.live.add(item)
        self.removed_at.pop(item, None)
        waiting = [
            one for one, _ in self.events if one.item_id == item and one.type in TYPES and one.position not in self.counted
        ]
        self.counted |= {one.position for one in waiting}
        return [one.person_key for one in waiting]

    def goes(self, item: str) -> None:
        self.position += 1
        self.live.discard(item)
        self.removed_at[item] = self.position

    def history(self, key: int) -> list[StoredEvent]:
        mine = [one for one, _ in self.events if one.person_key == key and one.position in self.counted]
        return sorted(mine, key=lambda one: (one.occurred_us, one.position))[-self.limit :]

    def version(self, key: int) -> int:
        return sum(one.person_key == key and one.position in self.counted for one, _ in self.events)

    def waiting(self, key: int) -> int:
        return sum(one.person_key == key and one.position not in self.counted for one, _ in self.events)

    def references(self) -> Counter[str]:
        return Counter(one.item_id for key in PEOPLE.values() for one in self.history(key))

    def known_people(self) -> dict[Person, int]:
        return {person: PEOPLE[person] for _, person in self.events}

    def ordinal_at(self, item: str, position: int) -> int:
        """Of an item that was ever in the catalogue, unless it had been removed before."""
        if item not in self.live and item not in self.removed_at:
            return -1
        return ORDINALS[item] if self.removed_at.get(item, position) >= position else -1


def rebuilt(model: Model, unreferenced: Callable[[int], None] = lambda ordinal: None) -> Histories:
    histories = Histories(TYPES, limit=model.limit, unreferenced=unreferenced)
    histories.load(model.known_people(), (event for event, _ in model.events), model.ordinal_at)
    return histories


def check(histories: Histories, model: Model) -> None:
    assert len(histories) == len(model.known_people())
    for person, key in PEOPLE.items():
        assert histories.key(person) == model.known_people().get(person)
        expected = model.history(key)
        history = histories.get(key)
        assert history.ordinals.tolist() == [ORDINALS[one.item_id] for one in expected]
        assert history.types.tolist() == [TYPES.index(one.type) for one in expected]
        assert history.times_us.tolist() == [one.occurred_us for one in expected]
        assert history.positions.tolist() == [one.position for one in expected]
        assert (history.version, histories.waiting_count(key)) == (model.version(key), model.waiting(key))
        assert [column.dtype for column in history[:4]] == [np.int32, np.int16, np.int64, np.int64]
    references = model.references()
    assert {item: histories.references(ORDINALS[item]) for item in ITEMS} == {item: references[item] for item in ITEMS}


class HistoriesMachine(RuleBasedStateMachine):
    @initialize(limit=st.integers(1, 4))
    def start(self, limit: int) -> None:
        self.model = Model(limit)
        self.told: list[int] = []
        self.histories = Histories(TYPES, limit=limit, unreferenced=self.told.append)
        self.referenced: set[str] = set()

    @rule(batch=st.lists(rows, min_size=1, max_size=5))
    def record(self, batch: list[tuple[Person, str, str, int]]) -> None:
        before = [self.histories.get(key) for key in PEOPLE.values()]
        copies = [[column.copy() for column in history[:4]] for history in before]
        statuses = self.histories.add([self.model.add(row) for row in batch], self._ordinal)
        assert statuses == [self._expected_status(row) for row in batch]
        for history, copy in zip(before, copies, strict=True):
            assert all((kept == was).all() for kept, was in zip(history[:4], copy, strict=True)), "a snapshot changed"

    @rule(item=items)
    def item_comes_in(self, item: str) -> None:
        changed = self.histories.item_came_in(item, ORDINALS[item])
        assert sorted(changed) == sorted(self.model.comes_in(item))

    @rule(item=items)
    def item_goes(self, item: str) -> None:
        if item in self.model.live:
            self.model.goes(item)

    @invariant()
    def what_is_held_is_what_the_model_says(self) -> None:
        check(self.histories, self.model)

    @invariant()
    def an_item_that_lost_its_last_reference_was_reported(self) -> None:
        referenced = {item for item, count in self.model.references().items() if count}
        assert {ORDINALS[item] for item in self.referenced - referenced} <= set(self.told)
        self.told.clear()
        self.referenced = referenced

    @invariant()
    def a_rebuild_from_zero_gives_the_same(self) -> None:
        check(rebuilt(self.model), self.model)

    @rule()
    def restart(self) -> None:
        """What was rebuilt goes on as if nothing had happened."""
        self.histories = rebuilt(self.model, self.told.append)

    def _ordinal(self, item: str) -> int:
        return ORDINALS[item] if item in self.model.live else -1

    def _expected_status(self, row: tuple[Person, str, str, int]) -> Status:
        if row[1] not in self.model.live:
            return Status.UNKNOWN_ITEM
        return Status.ACCEPTED if row[2] in TYPES else Status.UNKNOWN_TYPE


TestHistoriesAgainstTheModel = HistoriesMachine.TestCase
TestHistoriesAgainstTheModel.settings = settings(max_examples=60, stateful_step_count=25, deadline=None, derandomize=True)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(order=st.lists(times, max_size=12), limit=st.integers(1, 5))
def test_events_land_at_their_place_in_time_whatever_the_order_of_arrival(order: Sequence[int], limit: int):
    history = History.empty()
    for position, time_us in enumerate(order, start=1):
        history = history.with_event(position, 0, time_us, position, limit)
    expected = sorted(zip(order, range(1, len(order) + 1), strict=True))[-limit:]
    assert list(zip(history.times_us.tolist(), history.positions.tolist(), strict=True)) == expected
    assert history.ordinals.tolist() == [position for _, position in expected]
    assert history.version == len(order)


def test_an_event_older_than_a_full_history_counts_and_is_not_held():
    told: list[int] = []
    histories = Histories(TYPES, limit=1, unreferenced=told.append)
    newest = (StoredEvent(1, 7, "a", "view", 100), Person(USER, "ann"))
    older = (StoredEvent(2, 7, "b", "view", 50), Person(USER, "ann"))
    assert histories.add([newest, older], lambda item: ORDINALS[item]) == [Status.ACCEPTED] * 2
    assert histories.get(7).ordinals.tolist() == [ORDINALS["a"]]
    assert histories.get(7).version == 2
    assert (histories.references(ORDINALS["a"]), histories.references(ORDINALS["b"])) == (1, 0)
    assert told == [ORDINALS["b"]]


def test_an_unknown_person_has_an_empty_history_and_nothing_waiting():
    histories = Histories(TYPES, limit=3)
    assert histories.key(Person(USER, "nobody")) is None
    assert histories.get(12345).version == 0 and not len(histories.get(12345).ordinals)
    assert histories.waiting_count(12345) == 0
    assert histories.references(10**6) == 0
    assert len(histories) == 0


def test_types_that_no_release_knows_leave_every_event_waiting():
    histories = Histories((), limit=3)
    event = (StoredEvent(1, 7, "a", "view", 100), Person(USER, "ann"))
    assert histories.add([event], lambda item: 1) == [Status.UNKNOWN_TYPE]
    assert histories.item_came_in("a", 1) == []
    assert histories.waiting_count(7) == 1
    assert histories.type_code("view") is None


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_a_rebuild_with_a_smaller_limit_keeps_the_newest_and_counts_all(limit: int):
    model = Model(limit=10)
    model.comes_in("a")
    for time_us in (3, 1, 2):
        model.add((Person(USER, "ann"), "a", "view", time_us))
    histories = Histories(TYPES, limit=limit)
    histories.load(model.known_people(), (event for event, _ in model.events), model.ordinal_at)
    assert histories.get(7).times_us.tolist() == [1, 2, 3][-limit:]
    assert histories.get(7).version == 3
    assert histories.references(ORDINALS["a"]) == limit
