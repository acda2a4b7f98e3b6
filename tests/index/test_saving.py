"""A live index is saved in slices, and a start after that knows the lists of what has not changed since."""

import logging
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from index.build import Built, build_lists
from index.items import ItemIndex
from index.saving import SnapshotSaver
from index.snapshot import load_snapshot
from tests.index.engines import ENGINES, unit_rows

PATIENCE_S = 10.0


def indexed(count: int = 10_000) -> tuple[ItemIndex, Built]:
    index = ENGINES["ivf"](8, 1 << 16)
    slots = np.array([index.slots.insert(f"item-{number}") for number in range(count)])
    index.set_vectors(slots, unit_rows(count, 1, 8))
    return index, rebuilt(index)


def rebuilt(index: ItemIndex) -> Built:
    slots = np.arange(index.slots.extent)
    slots = slots[index.slots.eligible(slots) & index.matrix.holds(slots)]
    built = build_lists(slots, index.matrix.read(slots), index.matrix.read(slots[:32]), target=0.9, lists=16)
    index.engine.use(built.lists, built.table, gather_rows=built.gather_rows)
    return built


def test_what_has_not_changed_since_is_known_after_a_restart(tmp_path: Path):
    index, built = indexed()
    saver = SnapshotSaver(index, tmp_path, release_id="r")
    assert not saver.step()
    saver.save(built)
    for _ in range(3):  # begins, and reads 8,192 slots
        assert saver.step()
    slots = np.array([index.slots.remove("item-9000"), index.slots.insert("new")])
    index.clear_vectors(slots[:1])
    index.set_vectors(slots[1:], unit_rows(1, 5, 8))
    index.set_vectors(np.array([7]), unit_rows(1, 6, 8))  # read already
    index.set_vectors(np.array([9_999]), unit_rows(1, 7, 8))  # not yet
    index.finish()
    saver.close()
    snapshot = load_snapshot(tmp_path, release_id="r", dim=8)
    assert snapshot is not None
    assert len(snapshot.item_ids) == 10_000 and "item-9000" not in snapshot.item_ids
    now = np.arange(10_001)
    known = snapshot.lists_for(index.slots.ids[now].tolist(), index.matrix.read(now).numpy())
    assert np.flatnonzero(known < 0).tolist() == [7, 9_000]
    others = np.delete(now, [7, 9_000])
    np.testing.assert_array_equal(known[others], built.lists.list_of[others])
    np.testing.assert_array_equal(snapshot.table.needed, built.table.needed)
    assert (snapshot.table.target, snapshot.gather_rows) == (0.9, built.gather_rows)


def test_a_start_with_a_snapshot_searches_as_before(tmp_path: Path):
    index, built = indexed(2_000)
    saver = SnapshotSaver(index, tmp_path, release_id="r")
    saver.save(built)
    saver.close()
    snapshot = load_snapshot(tmp_path, release_id="r", dim=8)
    assert snapshot is not None
    other = ENGINES["ivf"](8, 1 << 16)
    ids = [f"item-{number}" for number in reversed(range(2_000))]  # in other slots
    slots = np.array([other.slots.insert(item_id) for item_id in ids])
    rows = unit_rows(2_000, 1, 8)[::-1].copy()
    other.set_vectors(slots, rows)
    restored = build_lists(
        slots,
        other.matrix.read(slots),
        other.matrix.read(slots[:1]),
        target=0.9,
        centroids=snapshot.centroids,
        list_of=snapshot.lists_for(ids, rows),
        table=snapshot.table,
        gather_rows=snapshot.gather_rows,
    )
    other.engine.use(restored.lists, restored.table, gather_rows=restored.gather_rows)
    queries = index.matrix.read(np.arange(20))
    before, after = (one.search(queries, [10] * 20) for one in (index, other))
    assert [one.item_ids for one in before] == [one.item_ids for one in after]


def test_lists_that_take_the_others_place_are_saved_instead(tmp_path: Path):
    index, built = indexed()
    saver = SnapshotSaver(index, tmp_path, release_id="r")
    saver.save(built)
    assert saver.step() and saver.step()
    index.set_vectors(np.arange(10_000), unit_rows(10_000, 9, 8))
    built = rebuilt(index)
    saver.save(built)
    saver.close()
    snapshot = load_snapshot(tmp_path, release_id="r", dim=8)
    assert snapshot is not None
    np.testing.assert_array_equal(snapshot.centroids, built.lists.state.centroids)
    assert len(list(tmp_path.iterdir())) == 2


def test_the_step_that_the_written_snapshot_wakes_goes_on_with_the_next(tmp_path: Path):
    index, built = indexed(100)
    woken, let_go = threading.Event(), threading.Event()

    def wake() -> None:  # in the writing thread, which is still alive
        woken.set()
        let_go.wait(PATIENCE_S)

    saver = SnapshotSaver(index, tmp_path, release_id="r", wake=wake)
    saver.save(built)
    while saver.step():
        pass
    saver.save(built)
    assert woken.wait(PATIENCE_S)
    assert saver.step()  # nothing would ask again
    let_go.set()
    saver.close()


def test_a_changed_row_is_not_saved_with_the_list_of_the_row_before(tmp_path: Path):
    index, built = indexed(500)
    saver = SnapshotSaver(index, tmp_path, release_id="r")
    saver.save(built)
    assert saver.step()
    changed = np.arange(0, 500, 2)
    rows = unit_rows(250, 8, 8)
    index.set_vectors(changed, rows)  # and not settled
    saver.close()
    snapshot = load_snapshot(tmp_path, release_id="r", dim=8)
    assert snapshot is not None
    known = snapshot.lists_for([f"item-{slot}" for slot in changed], rows)
    np.testing.assert_array_equal(known, built.lists.nearest(torch.from_numpy(rows)))


def test_a_disk_that_cannot_be_written_is_logged_and_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    index, built = indexed(100)
    woken: list[bool] = []
    (tmp_path / "file").write_text("not a folder")
    saver = SnapshotSaver(index, tmp_path / "file", release_id="r", wake=lambda: woken.append(True))
    saver.save(built)
    saver.close()
    assert woken == [True]
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "the next start builds the index again" in caplog.text
