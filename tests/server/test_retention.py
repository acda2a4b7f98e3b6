"""What is kept of people's events, and for how long."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.fields import DAY_US
from server.journal.database import open_reader
from server.journal.events import USER, Event, Person, Status
from server.journal.retention import Retention, rules_of
from server.journal.writer import JournalWriter
from tests.server.people_world import World

ANN, BOB = Person(USER, "ann"), Person(USER, "bob")


class Kept(World):
    """A world whose events are removed by rules, at a time that the test says."""

    def sweep(self, *, now_days: float, retention_days: int | None = None, most: int = 1000, id_days: int = 30) -> int:
        writer = JournalWriter(self.file)
        writer.start()
        rules = rules_of(retention_days, most, id_days)
        retention = Retention(
            rules, lambda: open_reader(self.file.path), writer, self.people.forget, lambda: int(now_days * DAY_US)
        )
        try:
            return retention.sweep()
        finally:
            writer.close()

    def rows(self, table: str) -> int:
        [(count,)] = self.file.connection.execute(f"SELECT count(*) FROM {table}").fetchall()
        return int(count)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Kept]:
    """Ann has six events on three items, received at time 0 whenever they happened; Bob has one."""
    kept = Kept(tmp_path, presumed=True)
    for item in "abc":
        kept.upsert(item)
    kept.record([Event(f"{n}", ANN, "abc"[n % 3], "view", 10 * n) for n in range(6)] + [Event("bob", BOB, "a", "view", 5)])
    yield kept
    kept.close()


def test_only_the_newest_events_of_a_person_are_kept_and_their_event_ids_for_longer(world: Kept) -> None:
    repeated = Event("0", ANN, "a", "view", 0)
    assert world.sweep(now_days=1, most=4) == 2
    assert world.history(ANN) == [("c", "view", 20), ("a", "view", 30), ("b", "view", 40), ("c", "view", 50)]
    assert world.history(BOB) == [("a", "view", 5)]
    assert (world.rows("events"), world.rows("event_ids")) == (7, 7)
    assert world.record([repeated])[0].status is Status.DUPLICATE
    assert world.sweep(now_days=1, most=4) == 0, "nothing twice"
    assert world.sweep(now_days=31, most=4) == 0
    assert (world.rows("events"), world.rows("event_ids")) == (5, 5)
    assert world.record([repeated])[0].status is Status.ACCEPTED, "nobody retries for so long"


def test_old_events_go_with_their_event_ids(world: Kept) -> None:
    assert world.sweep(now_days=39.9, retention_days=40) == 0
    assert world.sweep(now_days=40.1, retention_days=40) == 7
    assert (world.rows("events"), world.rows("event_ids")) == (0, 0)
    assert world.history(ANN) == []


def test_what_retention_leaves_is_what_a_rebuild_gives(world: Kept) -> None:
    generation = world.people.history(world.people.directory.find(ANN) or 0).generation
    world.sweep(now_days=1, most=2)
    rebuilt = world.rebuilt()
    assert world.history(ANN, rebuilt) == world.history(ANN) == [("b", "view", 40), ("c", "view", 50)]
    for ordinal in world.places().ordinals.values():
        assert world.people.references(ordinal) == rebuilt.references(ordinal)
    rebuilt.close()
    now = world.people.history(world.people.directory.find(ANN) or 0).generation
    assert now > generation, "a vector with what is gone in it must not be used, not even as a stale one"


def test_an_item_that_nothing_refers_to_any_more_is_given_back(world: Kept) -> None:
    world.remove("a")
    assert world.unreferenced == []
    ordinal = world.places().ordinals["a"]
    world.sweep(now_days=40, retention_days=31)
    assert ordinal in world.unreferenced


def test_events_that_waited_for_their_item_go_too(world: Kept) -> None:
    world.record([Event("waiting", ANN, "unknown", "view", 60)])
    world.sweep(now_days=40, retention_days=31)
    world.upsert("unknown")
    assert world.history(ANN) == []
    assert world.people.references(world.places().ordinals["unknown"]) == 0
