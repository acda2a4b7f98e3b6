"""New lists are built aside, while the index is changed and searched, and are used only if they are good."""

import logging

import numpy as np
import pytest
import torch

from index.build import build_lists
from index.ivf import IvfSearch
from index.lists import InvertedLists
from index.rebuild import Rebuild
from tests.index.engines import ENGINES, unit_rows

DIM = 8


class Indexed:
    """2,000 items, and a rebuild that watches them."""

    def __init__(self, count: int = 2_000, *, target: float = 0.9, queries: torch.Tensor | None = None) -> None:
        self.index = ENGINES["ivf"](DIM, 4096)
        assert isinstance(self.index.engine, IvfSearch)
        self.engine = self.index.engine
        self.vectors = unit_rows(10_000, 1, DIM)
        self.swaps: list[float] = []
        self.rebuild = Rebuild(
            self.index,
            self.engine,
            target=target,
            queries=lambda: queries,
            swapped=lambda built: self.swaps.append(built.recall),
        )
        self.index.watchers.append(self.rebuild)
        self.add(0, count)

    def add(self, start: int, end: int) -> None:
        slots = np.array([self.index.slots.insert(str(number)) for number in range(start, end)])
        self.index.set_vectors(slots, self.vectors[start:end])

    def find(self, number: int) -> list[str]:
        [found] = self.index.search(torch.from_numpy(self.vectors[number][None]), [3])
        return found.item_ids

    def step_until_built(self) -> None:
        """Up to the moment when the new lists are there, and nothing is replayed yet."""
        while self.rebuild.step():
            pass
        self.rebuild.wait()


def test_the_first_lists_are_built_when_there_are_items():
    indexed = Indexed()
    assert indexed.engine.lists is None
    assert indexed.engine.gains_from_batches, "as the exact search, which stands in"
    indexed.rebuild.finish()
    assert indexed.engine.lists is not None
    assert not indexed.engine.gains_from_batches
    assert len(indexed.engine.lists) == 2_000
    assert indexed.swaps[0] >= 0.9
    assert indexed.find(7)[0] == "7"


def test_without_items_there_is_nothing_to_build():
    assert not Indexed(0).rebuild.step()


def test_what_changes_after_the_watermark_is_in_the_new_lists():
    indexed = Indexed()
    indexed.rebuild.start()
    indexed.step_until_built()
    indexed.add(2_000, 2_300)
    gone = indexed.index.slots.remove("5")
    indexed.index.clear_vectors(np.array([gone]))
    indexed.index.set_vectors(np.array([6]), unit_rows(1, 99, DIM))
    ticket = indexed.index.queued
    indexed.rebuild.finish()
    assert indexed.index.settled >= ticket
    assert len(indexed.engine.lists) == 2_299
    assert indexed.find(2_299)[0] == "2299"
    assert "5" not in indexed.find(5)
    [found] = indexed.index.search(torch.from_numpy(unit_rows(1, 99, DIM)), [1])
    assert found.item_ids == ["6"]
    assert indexed.index.violations == 0


def test_the_old_lists_answer_until_the_new_ones_are_complete():
    indexed = Indexed()
    indexed.rebuild.finish()
    before = indexed.engine.lists
    indexed.rebuild.start()
    indexed.step_until_built()
    indexed.add(2_000, 2_200)
    indexed.rebuild.step()
    indexed.rebuild.step()
    assert indexed.engine.lists is before
    indexed.index.finish()
    assert indexed.find(2_100)[0] == "2100"  # in the old lists, which are kept up all the while
    indexed.rebuild.finish()
    assert indexed.engine.lists is not before
    assert indexed.find(2_100)[0] == "2100"


def test_lists_are_built_anew_when_there_are_half_as_many_items_again():
    indexed = Indexed()
    indexed.rebuild.finish()
    indexed.add(2_000, 2_900)
    indexed.index.finish()
    assert not indexed.rebuild.due()
    indexed.add(2_900, 3_100)
    indexed.index.finish()
    assert indexed.rebuild.due()
    indexed.rebuild.finish()
    assert len(indexed.swaps) == 2
    assert not indexed.rebuild.due()


def test_lists_that_miss_the_target_are_not_used(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("index.build._recall", lambda *arguments: 0.5)
    indexed = Indexed()
    with caplog.at_level(logging.ERROR):
        indexed.rebuild.finish()
    assert "recall of 0.500 only, for a target of 0.900" in caplog.text
    assert indexed.engine.lists is None
    assert indexed.swaps == []
    assert not indexed.rebuild.step()  # nor are they built again and again
    monkeypatch.undo()
    indexed.add(2_000, 3_100)
    indexed.rebuild.finish()  # but when there is more to build them of
    assert indexed.engine.lists is not None
    assert indexed.find(3)[0] == "3"  # exactly, as before


def test_a_build_that_fails_leaves_the_index_as_it_was(caplog: pytest.LogCaptureFixture):
    indexed = Indexed(queries=torch.zeros(4, DIM + 1))  # what no build can use
    with caplog.at_level(logging.ERROR):
        indexed.rebuild.finish()
    assert "building new lists failed" in caplog.text
    assert indexed.engine.lists is None
    assert indexed.find(3)[0] == "3"


def test_the_real_queries_are_what_is_calibrated_on():
    corner = unit_rows(1, 4, DIM) + 0.01 * np.random.default_rng(0).normal(size=(256, DIM)).astype(np.float32)
    corner /= np.linalg.norm(corner, axis=1, keepdims=True)
    narrow, wide = (
        Indexed(10_000, queries=torch.from_numpy(corner)),
        Indexed(10_000, queries=torch.from_numpy(unit_rows(256, 5, DIM))),
    )
    narrow.rebuild.finish()
    wide.rebuild.finish()
    assert not np.array_equal(narrow.engine.table.needed, wide.engine.table.needed)


def test_rows_that_are_the_same_do_not_count_as_missed():
    """Which of them are found is chance: recall goes by score."""
    indexed = Indexed(0)
    indexed.vectors[500:1_500] = indexed.vectors[0]
    indexed.add(0, 3_000)
    indexed.rebuild.finish()
    assert indexed.swaps and indexed.swaps[0] >= 0.9


def test_nothing_is_built_for_items_that_are_all_gone():
    indexed = Indexed()
    indexed.rebuild.finish()
    slots = np.array([indexed.index.slots.remove(str(number)) for number in range(2_000)])
    indexed.index.clear_vectors(slots)
    indexed.index.finish()
    while indexed.rebuild.step():
        pass
    assert not indexed.rebuild.due()
    indexed.add(2_000, 4_000)
    indexed.index.finish()
    assert indexed.find(3_000)[0] == "3000"


def test_a_rebuild_that_is_closed_is_given_up_and_changes_nothing(caplog: pytest.LogCaptureFixture):
    indexed = Indexed()
    indexed.rebuild.start()
    indexed.rebuild.close()
    with caplog.at_level(logging.INFO):
        indexed.step_until_built()
        indexed.rebuild.step()
    assert "given up" in caplog.text
    assert indexed.engine.lists is None


def test_lists_from_a_snapshot_of_few_items_are_built_anew_when_there_are_many():
    indexed = Indexed()
    indexed.rebuild.finish()
    slots = np.arange(2_000)
    built = build_lists(slots, indexed.index.matrix.read(slots), torch.from_numpy(unit_rows(64, 3, DIM)), target=0.9)
    indexed.rebuild.adopt(built, made_for=500)
    assert indexed.rebuild.due()


def test_what_could_not_be_settled_is_settled_later(monkeypatch: pytest.MonkeyPatch):
    indexed = Indexed()
    indexed.rebuild.finish()
    put = InvertedLists.put
    indexed.add(2_000, 2_001)

    def fail(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr(InvertedLists, "put", fail)
    with pytest.raises(MemoryError):
        indexed.index.settle()
    monkeypatch.setattr(InvertedLists, "put", put)
    assert indexed.index.settled < indexed.index.queued
    indexed.index.finish()
    assert indexed.find(2_000)[0] == "2000"
