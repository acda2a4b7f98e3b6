"""The upkeep of a live index: one job a turn, none of which another keeps waiting, and a remedy until recall is back."""

import logging
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch

from index.slots import SlotTable
from server.config import Index
from server.releases.live_index import LiveIndex
from tests.index.engines import unit_rows
from tests.server.conftest import Serve

ITEMS, DIM = 2_000, 8
BETWEEN_REMEDIES = 1_000  # samples
PATIENCE = 10_000  # turns


def live_index(folder: Path | None = None, **settings: object) -> LiveIndex:
    slots = SlotTable()
    live = LiveIndex(
        slots,
        DIM,
        Index.model_validate({"kind": "ivf", **settings}),
        items=ITEMS,
        device="cpu",
        max_batch=64,
        release_id="r",
        folder=folder,
        stored_vectors=lambda count: [],
        wake=lambda: None,
    )
    placed = np.array([slots.insert(str(number)) for number in range(ITEMS)])
    live.items.set_vectors(placed, unit_rows(ITEMS, 1, DIM))
    live.prepare()
    return live


def turns_until_rebuilt(live: LiveIndex) -> int:
    """Turns until no rebuild is under way."""
    assert live.rebuild is not None
    for turn in range(PATIENCE):
        live.upkeep()
        if not live.rebuild.running:
            return turn
        if live.rebuild._thread is not None:
            live.rebuild._thread.join()
    raise TimeoutError("the rebuild never ended")


def test_one_turn_does_one_job(tmp_path: Path):
    live = live_index(tmp_path, sampled_share=1.0)
    saver, monitor = live._saver, live.recall
    assert saver is not None and live.rebuild is not None
    live.items.search(torch.from_numpy(unit_rows(4, 2, DIM)), [10] * 4)
    live.items.set_vectors(np.arange(1_000), unit_rows(1_000, 3, DIM))
    live.rebuild.start()

    def progress() -> tuple[object, ...]:
        scan = monitor._scan
        return (
            live.items.settled,
            (saver._built is not None, saver._at, saver._thread),
            (live.rebuild._state, live.rebuild._copied),
            (scan is not None, scan._at if scan is not None else 0, monitor.measured),
        )

    before = progress()
    busy = np.zeros(4, dtype=int)
    while live.upkeep():
        after = progress()
        moved = np.array([one != other for one, other in zip(before, after, strict=True)])
        assert moved.sum() <= 1 or live.rebuild._state.name == "IDLE"  # new lists in use: everything begins anew
        busy += moved
        before = after
    live.close()
    assert (busy > 0).all(), "each of them had something to do"


def test_a_rebuild_does_not_wait_until_all_changes_are_settled():
    live = live_index(sampled_share=0.0)
    assert live.rebuild is not None
    for seed in range(10):
        live.items.set_vectors(np.arange(ITEMS), unit_rows(ITEMS, seed, DIM))
    slices = live.items.queued // 64 - ITEMS // 64
    live.rebuild.start()
    assert turns_until_rebuilt(live) < slices // 4
    live.close()


def test_low_recall_is_mended_again_when_the_first_remedy_was_not_used(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    live = live_index(sampled_share=0.0)
    assert live.rebuild is not None
    live.recall.alarm = True
    monkeypatch.setattr("index.build._recall", lambda *arguments: 0.5)
    with caplog.at_level(logging.ERROR):
        assert turns_until_started(live)
        turns_until_rebuilt(live)
    assert "not used" in caplog.text
    live.recall.measured += BETWEEN_REMEDIES - 1
    assert not turns_until_started(live), "not again and again"
    live.recall.measured += 1
    assert turns_until_started(live)
    monkeypatch.undo()
    turns_until_rebuilt(live)
    assert not live.recall.alarm, "measured anew, with new lists"
    live.close()


def test_an_alarm_within_the_waiting_time_is_mended_after_it():
    live = live_index(sampled_share=0.0)
    live.recall.alarm = True
    assert turns_until_started(live)
    turns_until_rebuilt(live)
    live.recall.alarm = True
    live.recall.measured += BETWEEN_REMEDIES // 2
    assert not turns_until_started(live)
    live.recall.measured += BETWEEN_REMEDIES // 2
    assert turns_until_started(live)
    live.close()


def turns_until_started(live: LiveIndex) -> bool:
    """Whether a rebuild starts before nothing is left to do."""
    assert live.rebuild is not None
    while not live.rebuild.running:
        if not live.upkeep():
            return False
    return True


def test_a_search_on_the_engines_thread_uses_as_many_threads_as_configured(serve: Serve):
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            served = serve(engine={"threads": threads})
            assert served.app.tenant._engine.call(faiss.omp_get_max_threads).result() == threads
            serve.stop(served)  # type: ignore[attr-defined]
    finally:
        torch.set_num_threads(before)
