"""Measured recall is the true one, whatever the engine does and whatever changes meanwhile."""

import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from index.exact import ExactSearch
from index.filters.filter import Filter, MatchAny
from index.items import ItemIndex
from index.matrix import VectorMatrix
from index.probing import KS, SHARES, ProbeTable
from index.recall import SAMPLES_MIN, RecallMonitor
from index.search import Exclusions, Hits, Masks
from index.shadow import Changes
from index.slots import SlotTable
from tests.index.engines import ENGINES, make_lists, unit_rows

DIM = 8


class ForgetfulSearch:
    """An engine that leaves out the best `drop` of its hits."""

    kind = "forgetful"

    def __init__(self, exact: ExactSearch) -> None:
        self.exact = exact
        self.drop = 0

    def search(self, queries: torch.Tensor, k: int, exclude: Exclusions | None = None, masks: Masks | None = None) -> Hits:
        slots, scores = self.exact.search(queries, min(k + self.drop, 2048), exclude, masks)
        return Hits(slots[:, self.drop :], scores[:, self.drop :])

    def update(self, slots: NDArray[np.int64]) -> None:
        return

    def settle(self) -> int:
        return 0


def forgetful(drop: int = 0) -> ItemIndex:
    slots, matrix = SlotTable(), VectorMatrix(DIM, chunk_rows=64)
    oracle = ExactSearch(slots, matrix)
    engine = ForgetfulSearch(oracle)
    engine.drop = drop
    return ItemIndex(slots, matrix, engine, oracle=oracle)


def fill(index: ItemIndex, count: int = 500, seed: int = 1) -> None:
    slots = np.array([index.slots.insert(f"item-{number}") for number in range(count)])
    colours = [{"colour": ("red", "blue")[number % 2]} for number in range(count)]
    index.slots.columns.set(slots, colours)
    index.set_vectors(slots, unit_rows(count, seed, index.matrix.dim))
    index.finish()


def watch(index: ItemIndex, *, share: float = 1.0, threshold: float = 0.9) -> RecallMonitor:
    monitor = RecallMonitor(index, target=0.95, threshold=threshold, share=share)
    index.watchers.append(monitor)
    return monitor


def finish(monitor: RecallMonitor) -> None:
    while monitor.step():
        pass


def ask(
    index: ItemIndex,
    monitor: RecallMonitor,
    times: int,
    k: int = 10,
    exclude: NDArray[np.int64] | None = None,
    chosen: Filter | None = None,
    seed: int = 3,
) -> None:
    for query in torch.from_numpy(unit_rows(times, seed, index.matrix.dim)):
        index.search(query[None], [k], None if exclude is None else [exclude], [chosen])
        finish(monitor)


RED = Filter(must=(MatchAny("colour", frozenset({"red"})),))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("k", [1, 10, 100, 2000])
def test_every_engine_that_looks_everywhere_has_recall_1(engine: str, k: int):
    index = ENGINES[engine](DIM, 64)
    fill(index)
    make_lists(index, target=1.0)
    monitor = watch(index)
    ask(index, monitor, 20, k)
    ask(index, monitor, 20, k, np.arange(0, 500, 3), RED)
    assert (monitor.recall, monitor.samples, monitor.measured, monitor.skipped) == (1.0, 40, 40, 0)


def test_lists_with_too_few_probes_are_measured_as_they_are():
    index = ENGINES["ivf"](DIM, 1024)
    fill(index, 3_000)
    make_lists(index, lists=32)
    index.engine.use(index.engine.lists, ProbeTable(0.95, np.ones((len(SHARES), len(KS)), dtype=np.int32)), gather_rows=0)
    monitor = watch(index)
    ask(index, monitor, 60, 20)
    queries = torch.from_numpy(unit_rows(60, 3, DIM))
    found, truth = (index.search(queries, [20] * 60, exact=exact) for exact in (False, True))
    true = np.mean([len(set(a.item_ids) & set(b.item_ids)) / 20 for a, b in zip(found, truth, strict=True)])
    assert true < 0.9
    assert monitor.recall == pytest.approx(true)


@pytest.mark.parametrize("drop", [0, 1, 3, 10])
def test_hits_that_an_engine_drops_are_missed_with_masks_and_exclusions(drop: int):
    index = forgetful(drop)
    fill(index)
    monitor = watch(index)
    ask(index, monitor, 15)
    ask(index, monitor, 15, 10, np.arange(0, 500, 7), RED)
    assert monitor.recall == pytest.approx(1 - drop / 10)


def test_an_answer_that_is_cut_short_has_missed_what_is_not_there():
    index = forgetful()
    fill(index, 20)
    index.engine.drop = 5
    monitor = watch(index)
    ask(index, monitor, 30, k=20)
    assert monitor.recall == pytest.approx(15 / 20)


def test_twins_are_as_good_as_each_other():
    index = forgetful(1)
    fill(index, 100)
    index.set_vectors(np.arange(100), np.tile(unit_rows(1, 5, DIM), (100, 1)))
    index.finish()
    monitor = watch(index)
    ask(index, monitor, 30)
    assert monitor.recall == 1.0


def disturb(index: ItemIndex, slots: NDArray[np.int64], how: str, seed: int) -> None:
    """Changes slots so that an answer from before is wrong."""
    for slot in slots.tolist():
        if how == "move":
            index.set_vectors(np.array([slot]), unit_rows(1, seed + slot, DIM))
        elif how == "withdraw":
            index.slots.available[slot] = False
            index.changed(np.array([slot]))
        elif how == "remove":
            index.slots.remove(index.slots.ids[slot])
            index.clear_vectors(np.array([slot]))
        elif how == "recolour":
            index.slots.columns.set(np.array([slot]), [{"colour": "blue"}])
            index.changed(np.array([slot]))


@pytest.mark.parametrize("how", ["move", "withdraw", "remove", "recolour"])
@pytest.mark.parametrize("drop", [0, 2])
@pytest.mark.parametrize("steps", [0, 1, 4, 8])
def test_only_real_misses_count_when_slots_change_before_they_are_compared(how: str, drop: int, steps: int):
    """The answer's best hits change, and better items come, before, during and after the scan."""
    index = forgetful(drop)
    fill(index)
    monitor = watch(index)
    for seed in range(SAMPLES_MIN):
        query = torch.from_numpy(unit_rows(1, seed, DIM))
        [found] = index.search(query, [10], filters=[RED])
        for _ in range(steps):
            monitor.step()
        disturb(index, found.slots[:4], how, seed)
        better = index.slots.insert(f"new-{seed}")
        index.slots.columns.set(np.array([better]), [{"colour": "red"}])
        index.set_vectors(np.array([better]), query.numpy())
        index.finish()
        finish(monitor)
        index.search(query, [10], filters=[RED])  # the mask is brought up to date
        finish(monitor)
    # Of 10 hits 4 changed, so the next 6 are compared, of which the first `drop` lie before those that were found.
    assert monitor.skipped == 0
    window = list(monitor._window)
    assert window[::2] == pytest.approx([1 - drop / 6] * SAMPLES_MIN)
    assert window[1::2] == pytest.approx([1 - drop / 10] * SAMPLES_MIN)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_an_exact_engine_has_recall_1_whatever_changes_meanwhile(data: st.DataObject):
    index = ENGINES["exact"](DIM, 64)
    fill(index, 200)
    monitor = watch(index)
    kinds = st.sampled_from(["search", "step", "move", "withdraw", "remove", "recolour"])
    for number, kind in enumerate(data.draw(st.lists(kinds, max_size=40))):
        if kind == "search":
            k, chosen = data.draw(st.integers(1, 60)), data.draw(st.sampled_from([None, RED]))
            exclude = [data.draw(st.lists(st.integers(0, 199), max_size=20).map(lambda one: np.array(one, dtype=np.int64)))]
            index.search(torch.from_numpy(unit_rows(1, number, DIM)), [k], exclude, [chosen])
        elif kind == "step":
            monitor.step()
        else:
            slots = data.draw(
                st.lists(st.integers(0, 199), max_size=30, unique=True).map(lambda one: np.array(one, dtype=np.int64))
            )
            disturb(index, slots[index.slots.live[slots]], kind, number)
    finish(monitor)
    assert set(monitor._window) <= {1.0}


def test_what_an_engine_had_not_settled_yet_is_not_missed():
    index = ENGINES["ivf"](DIM, 4096)
    fill(index, 1_000)
    make_lists(index, target=1.0)
    monitor = watch(index)
    query = unit_rows(1, 9, DIM)
    slots = np.array([index.slots.insert(f"new-{number}") for number in range(5)])
    index.set_vectors(slots, np.repeat(query, 5, axis=0))
    assert index.settled < index.queued
    index.search(torch.from_numpy(query), [10])
    index.finish()
    finish(monitor)
    assert list(monitor._window) == [1.0]


def test_the_alarm_sounds_once_and_again_after_recovery(caplog: pytest.LogCaptureFixture):
    index = forgetful()
    fill(index)
    heard: list[float | None] = []
    monitor = RecallMonitor(index, target=0.95, threshold=0.9, share=1.0, on_alarm=lambda: heard.append(monitor.recall))
    index.watchers.append(monitor)
    index.engine.drop = 3
    ask(index, monitor, SAMPLES_MIN - 1)
    assert (monitor.recall, heard, monitor.alarm) == (None, [], False)
    ask(index, monitor, 50)
    assert len(heard) == 1 and heard[0] == pytest.approx(0.7) and monitor.alarm
    index.engine.drop = 0
    ask(index, monitor, 200)
    assert monitor.recall is not None and monitor.recall >= 0.9 and not monitor.alarm
    index.engine.drop = 10
    ask(index, monitor, 200)
    assert len(heard) == 2 and monitor.alarm
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2
    assert "recall is 0.700 over 30 sampled queries of forgetful, below the alarm's 0.900 (target 0.950)" in warnings[0]
    assert "build it again" in warnings[0]


def test_noise_around_the_threshold_sounds_no_alarm():
    index = forgetful()
    fill(index)
    monitor = watch(index, threshold=0.8)
    for number in range(100):  # mean recall .79 over 100, and .50 now and then
        index.engine.drop = 5 if number % 7 in (0, 3, 5) else 0
        ask(index, monitor, 1, seed=number)
        assert not monitor.alarm
    assert monitor.recall is not None and monitor.recall < 0.8
    assert not monitor.below(0.8) and monitor.below(0.9)


def test_other_lists_are_measured_anew():
    index = forgetful(5)
    fill(index)
    monitor = watch(index)
    ask(index, monitor, 40)
    index.search(torch.from_numpy(unit_rows(2, 1, DIM)), [10, 10])
    assert monitor.alarm and monitor.step()
    monitor.forget()
    index.engine.drop = 0
    assert (monitor.recall, monitor.samples, monitor.alarm, monitor.step()) == (None, 0, False, False)
    ask(index, monitor, 30)
    assert (monitor.recall, monitor.measured) == (1.0, 70)
    assert monitor.recent_queries().shape == (72, DIM)


def test_few_wait_and_the_others_are_skipped_and_counted():
    index = forgetful()
    fill(index)
    monitor = watch(index)
    index.search(torch.from_numpy(unit_rows(20, 1, DIM)), list(range(1, 21)))
    finish(monitor)
    assert (monitor.measured, monitor.skipped) == (4, 16)
    torch.testing.assert_close(monitor.recent_queries(), torch.from_numpy(unit_rows(20, 1, DIM)))


def test_a_share_is_sampled_and_none_if_it_is_0():
    index = forgetful()
    fill(index, 100)
    none, some = watch(index, share=0.0), watch(index, share=0.1)
    index.search(torch.from_numpy(unit_rows(2_000, 1, DIM)), [1] * 2_000)
    assert not none.step() and none.recent_queries().shape == (0, DIM)
    assert 150 < len(some.recent_queries()) < 250
    index.search(torch.from_numpy(unit_rows(10_000, 2, DIM)), [1] * 10_000)
    assert len(some.recent_queries()) == 512


def test_a_query_that_can_find_nothing_says_nothing_of_recall():
    index = forgetful()
    monitor = watch(index)
    ask(index, monitor, 3)
    fill(index, 50)
    ask(index, monitor, 3, chosen=Filter(allow=frozenset()))
    assert (monitor.measured, monitor.skipped) == (0, 6)


def test_a_sample_that_waited_for_too_many_changes_is_skipped():
    index = forgetful()
    fill(index)
    monitor = watch(index)
    index.search(torch.from_numpy(unit_rows(1, 1, DIM)), [10])
    monitor.changed(np.zeros(200_000, dtype=np.int64))
    finish(monitor)
    assert (monitor.measured, monitor.skipped) == (0, 1)


@given(st.lists(st.integers(0, 12), max_size=20), st.integers(-3, 100))
def test_changes_are_remembered_in_order_or_not_at_all(sizes: list[int], position: int):
    changes, everything = Changes(10), np.arange(sum(sizes))
    for part in np.split(everything, np.cumsum(sizes)):
        changes.append(part)
    found = changes.since(position)
    if position < 0 or changes.count - position > 10:
        assert found is None
    else:
        assert found is not None and found.tolist() == everything[position:].tolist()


def test_comparing_takes_no_more_than_its_part_of_the_time():
    index = ENGINES["exact"](DIM, 64)
    fill(index)
    now = [0.0]

    def clock() -> float:
        now[0] += 0.001  # so a step takes a millisecond
        return now[0]

    monitor = RecallMonitor(index, target=0.95, threshold=0.9, share=1.0, most_time=0.1, clock=clock)
    index.watchers.append(monitor)
    for query in torch.from_numpy(unit_rows(200, 3, DIM)):
        index.search(query[None], [10])
        finish(monitor)
        now[0] += 0.005
    assert 0 < monitor.measured < 60  # of 200: to compare all of them would take several tenths of the time
    assert monitor.skipped == 0
