"""The approximate index behind a real server: chosen, built, kept across restarts, changed while it is searched, watched."""

import logging
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from index.bundle import read_bundle
from index.items import Candidates
from index.ivf import IvfSearch
from index.probing import KS, SHARES, ProbeTable
from server.app import App
from server.config import Config
from server.errors import StartupError
from tests.server.conftest import Serve, Served
from tests.tiny import write_tiny_bundle

ITEMS = 3_000
IVF = {"kind": "ivf", "sampled_share": 0.0}
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def large_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "large"
    write_tiny_bundle(path, n_items=ITEMS, dim=8)
    return path


def random_vectors(count: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, 8)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def nearest(served: Served, vector: np.ndarray, limit: int = 1) -> list[str]:
    [result] = served.client.search_vectors([vector.tolist()], limit=limit).results
    return list(result.item_ids)


def lists_of(served: Served) -> IvfSearch:
    engine = served.app.tenant.live.index.engine
    assert isinstance(engine, IvfSearch) and engine.lists is not None
    return engine


def test_few_items_are_searched_exactly_and_the_choice_is_told(serve: Serve):
    served = serve()
    assert "index exact: 50 items, at most 50,000 on a CPU" in served.app.describe()
    assert served.client.get_release().index_kind == "exact"


def test_an_index_that_cannot_be_had_is_refused_at_start(bundle_path: Path, tmp_path: Path):
    with pytest.raises(StartupError, match="faiss-gpu searches on a GPU and the device is cpu"):
        App(Config(bundle=bundle_path, data=tmp_path / "data", index={"kind": "faiss-gpu"}))  # type: ignore[arg-type]


def test_approximate_answers_have_the_recall_that_was_asked_for(serve: Serve, large_bundle: Path):
    served = serve(bundle=large_bundle, index=IVF)
    assert served.client.get_release().index_kind == "ivf"
    lists_of(served)
    # Like the items: nobody has been asked for yet, so that their own vectors were what the index was calibrated on.
    near = read_bundle(large_bundle).item_vectors[::30] + 0.1 * random_vectors(100, 1)
    vectors = [vector.tolist() for vector in near]
    found = served.client.search_vectors(vectors, limit=100).results
    truth = served.client.search_vectors(vectors, limit=100, exact=True).results
    recall = np.mean([len(set(a.item_ids) & set(b.item_ids)) / 100 for a, b in zip(found, truth, strict=True)])
    assert recall >= 0.93
    assert any(list(a.item_ids) != list(b.item_ids) for a, b in zip(found, truth, strict=True))  # it is not exact search


def test_changes_are_found_when_they_are_acknowledged(serve: Serve, large_bundle: Path):
    served = serve(bundle=large_bundle, index=IVF)
    vectors = random_vectors(300, 2)
    items = [served_item(f"new-{number}", vector) for number, vector in enumerate(vectors)]
    served.client.upsert_items(items)
    assert [nearest(served, vector) for vector in vectors] == [[f"new-{number}"] for number in range(300)]
    served.client.upsert_items([served_item("new-0", -vectors[0])])
    assert nearest(served, -vectors[0]) == ["new-0"]
    served.client.remove_items([f"new-{number}" for number in range(0, 300, 2)])
    served.client.set_availability({f"new-{number}": False for number in range(1, 300, 4)})
    left = {f"new-{number}" for number in range(3, 300, 4)}
    for number in range(1, 300):
        assert (nearest(served, vectors[number]) == [f"new-{number}"]) == (f"new-{number}" in left)
    assert served.app.tenant.live.index.violations == 0


def test_over_lists_one_query_is_searched_where_it_is_asked_and_several_in_a_batch(serve: Serve, large_bundle: Path):
    served = serve(bundle=large_bundle, index=IVF)
    assert lists_of(served)
    index = served.app.tenant.live.index
    searched: list[tuple[str, int]] = []
    search = index.search

    def watched(queries: torch.Tensor, *arguments: object, **options: object) -> list[Candidates]:
        searched.append((threading.current_thread().name, len(queries)))
        return search(queries, *arguments, **options)  # type: ignore[arg-type]

    index.search = watched  # type: ignore[method-assign]
    vectors = random_vectors(8, 4).tolist()
    deadline = time.monotonic() + PATIENCE_S
    while ("rpc-loop", 1) not in searched:  # what is still to be done in the background goes first
        assert time.monotonic() < deadline
        assert len(served.client.recommend(vector=vectors[0], limit=10).item_ids) == 10
    searched.clear()
    assert len(served.client.search_vectors(vectors, limit=10).results) == 8
    assert {thread for thread, _ in searched} == {"engine"}
    assert sum(count for _, count in searched) == 8


def served_item(item_id: str, vector: np.ndarray) -> object:
    import towerbridge

    return towerbridge.item(item_id, vector=vector.tolist())


def test_large_changes_and_searches_run_side_by_side(serve: Serve, large_bundle: Path):
    served = serve(bundle=large_bundle, index=IVF)
    vectors = random_vectors(1_000, 3)
    stop = threading.Event()
    wrong: list[str] = []

    def search() -> None:
        while not stop.is_set():
            found = nearest(served, vectors[0], limit=50)
            if len(found) != 50:
                wrong.append(f"{len(found)} items")

    searching = threading.Thread(target=search)
    searching.start()
    try:
        for turn in range(4):
            served.client.upsert_items([served_item(f"turn-{turn}-{n}", vector) for n, vector in enumerate(vectors)])
            assert nearest(served, vectors[999], limit=1)[0].endswith("-999")
            served.client.remove_items([f"turn-{turn}-{n}" for n in range(1_000)])
    finally:
        stop.set()
        searching.join()
    assert not wrong
    assert served.app.tenant.live.index.violations == 0


def test_a_restart_takes_the_lists_from_the_snapshot(serve: Serve, large_bundle: Path, caplog: pytest.LogCaptureFixture):
    served = serve(bundle=large_bundle, index=IVF)
    vectors = random_vectors(3, 4)
    served.client.upsert_items([served_item("new", vectors[0]), served_item("item-7", vectors[1])])
    served.client.remove_items(["item-8"])
    before = lists_of(served)
    serve.stop(served)  # type: ignore[attr-defined]
    with caplog.at_level(logging.INFO):
        served = serve(bundle=large_bundle, index=IVF)
    assert "from the snapshot" in caplog.text
    after = lists_of(served)
    assert np.array_equal(before.lists.state.centroids, after.lists.state.centroids)
    assert np.array_equal(before.table.needed, after.table.needed)
    assert nearest(served, vectors[0]) == ["new"]
    assert nearest(served, vectors[1]) == ["item-7"]
    assert len(after.lists) == ITEMS


def test_a_damaged_snapshot_is_refused_and_the_index_built_anew(
    serve: Serve, large_bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    served = serve(bundle=large_bundle, index=IVF)
    serve.stop(served)  # type: ignore[attr-defined]
    [file] = (tmp_path / "data" / "default" / "index").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-10])
    served = serve(bundle=large_bundle, index=IVF)
    assert str(file.name) in caplog.text
    assert "built anew" in caplog.text
    assert len(lists_of(served).lists) == ITEMS


def test_when_live_recall_falls_the_index_is_built_anew_for_what_is_asked(serve: Serve, large_bundle: Path):
    served = serve(bundle=large_bundle, index={"kind": "ivf", "sampled_share": 1.0})
    engine = lists_of(served)
    first = engine.lists
    everywhere_one = ProbeTable(0.95, np.ones((len(SHARES), len(KS)), dtype=np.int32))
    served.app.tenant._engine.call(lambda: engine.use(first, everywhere_one, gather_rows=2_048)).result(PATIENCE_S)
    monitor = served.app.tenant.live.live_index.recall
    vectors = random_vectors(2_000, 5)
    end = time.monotonic() + PATIENCE_S
    for vector in vectors:
        nearest(served, vector, limit=100)
        if engine.lists is not first:
            break
        if monitor.alarm:
            time.sleep(0.02)  # the build has a low priority
        assert time.monotonic() < end
    assert engine.lists is not first
    good = False
    for vector in vectors:  # those asked before the swap are compared after it, too: the mean takes a while to rise
        nearest(served, vector, limit=100)
        good = monitor.recall is not None and monitor.recall > 0.9
        if good:
            break
    assert good
    assert engine.table.unfiltered(100) > 1


def test_an_index_that_half_as_many_items_were_added_to_is_built_anew(serve: Serve, large_bundle: Path):
    served = serve(bundle=large_bundle, index=IVF)
    first = lists_of(served).lists
    vectors = random_vectors(1_600, 6)
    for start in range(0, 1_600, 800):
        part = range(start, start + 800)
        served.client.upsert_items([served_item(f"new-{n}", vectors[n]) for n in part])
    end = time.monotonic() + PATIENCE_S
    while lists_of(served).lists is first:
        assert time.monotonic() < end
        nearest(served, vectors[0])
        time.sleep(0.02)  # the build has a low priority
    assert [nearest(served, vector) for vector in vectors[::100]] == [[f"new-{n}"] for n in range(0, 1_600, 100)]
