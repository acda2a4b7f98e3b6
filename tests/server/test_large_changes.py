"""Changes of many items at once: few calls of the engine, each short."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from index.bundle import read_bundle
from server.engine.engine import Engine
from server.journal.events import USER, Event, HeldEvent, Person
from server.journal.items import ItemContent
from tests.server.test_rebuild import Parts
from tests.tiny import write_tiny_bundle

ITEMS = 200
PATIENCE_S = 20.0


@pytest.fixture(scope="module")
def bundle_of_200(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "large"
    write_tiny_bundle(path, n_items=ITEMS, dim=4)
    return path


@pytest.fixture
def parts(bundle_of_200: Path, tmp_path: Path) -> Iterator[Parts]:
    made = Parts(tmp_path / "data", read_bundle(bundle_of_200), limit=10)
    yield made
    made.close()


def far() -> float:
    return time.monotonic() + PATIENCE_S


def ids(count: int) -> list[str]:
    return [f"item-{number}" for number in range(count)]


def free_slots(parts: Parts) -> int:
    return len(parts.release.index.slots._free)


def test_a_removal_is_one_call_of_the_engine(parts: Parts, monkeypatch: pytest.MonkeyPatch):
    submitted: list[object] = []
    submit = Engine._submit
    monkeypatch.setattr(Engine, "_submit", lambda engine, function: (submitted.append(function), submit(engine, function))[1])
    assert parts.changes.remove(ids(150), far()) == set(ids(150))
    assert len(submitted) == 1
    assert free_slots(parts) == 150
    assert len(parts.release.index.slots) == 50


def test_removed_items_that_histories_refer_to_keep_their_places(parts: Parts):
    events = [Event(f"e{n}", Person(USER, "p"), f"item-{n}", "view", n) for n in range(5)]
    parts.intake.record(events, 0).result(PATIENCE_S)
    parts.changes.remove(ids(100), far())
    assert free_slots(parts) == 95
    key = parts.people.directory.find(Person(USER, "p"))
    assert key is not None
    parts.people.forget([HeldEvent(key, 1 + n, f"item-{n}", "view") for n in range(5)])  # as retention does
    parts.engine.call(lambda: None).result(PATIENCE_S)
    assert free_slots(parts) == 100


def test_an_item_that_comes_back_after_a_removal_is_found(parts: Parts):
    parts.changes.remove(ids(100), far())
    content = ItemContent("item-7", vector=np.full(4, 0.5, dtype="<f4").tobytes(), vector_release=parts.release.release_id)
    [upserted] = parts.changes.upsert([content], far())
    assert upserted.searchable
    assert "item-7" in parts._found()


def test_vectors_of_many_items_are_computed_in_steps(parts: Parts, monkeypatch: pytest.MonkeyPatch):
    sizes: list[int] = []
    vectors = parts.release.item_vectors
    compute = vectors.compute

    def counted(contents: Sequence[ItemContent]) -> object:
        sizes.append(len(contents))
        return compute(contents)

    monkeypatch.setattr(vectors, "compute", counted)
    contents = [ItemContent(f"new-{number}", categories='["red"]') for number in range(ITEMS)]
    contents[100] = ItemContent("new-100")  # nothing to make a vector of
    upserted = parts.changes.upsert(contents, far())
    assert [number for number, one in enumerate(upserted) if not one.searchable] == [100]
    assert sizes == [64, 64, 64, 8]
    has_vector, whole = compute(contents)
    ordinals = [parts.catalogue.get(one.item_id).ordinal for one in contents]  # type: ignore[union-attr]
    for place in np.flatnonzero(has_vector):
        np.testing.assert_allclose(parts.release.item_vector(ordinals[place]), whole[place], atol=1e-5)
