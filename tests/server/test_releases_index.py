"""A release whose index has lists; and what a release leaves behind when it goes."""

import gc
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import towerbridge

from index.bundle import read_bundle
from tests.server.conftest import Served
from tests.server.releasing import LIVE, PREVIOUS, serving, states, wait_until
from tests.tiny import write_tiny_bundle

IVF = {"kind": "ivf", "sampled_share": 0.0}
N_ITEMS = 900


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("large")
    return folder, {name: write_tiny_bundle(folder / name, n_items=N_ITEMS, dim=8, seed=seed) for seed, name in enumerate("ab")}


def recall_without(served: Served, bundle: Path, gone: set[str], k: int = 20) -> float:
    """Of a release's own items as queries, against all scores of those that are not gone."""
    read = read_bundle(bundle)
    kept = np.array([item_id not in gone for item_id in read.item_ids])
    vectors, ids = np.asarray(read.item_vectors)[kept], np.array(read.item_ids)[kept]
    queries = vectors[:: N_ITEMS // 50]
    exact = ids[np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :k]].tolist()
    found = served.client.search_vectors(queries.tolist(), limit=k).results
    return float(np.mean([len(set(one.item_ids) & set(best)) / k for one, best in zip(found, exact, strict=True)]))


def test_a_release_with_lists_finds_its_items_and_those_that_came_while_it_was_loaded(
    large: tuple[Path, dict[str, str]], tmp_path: Path
):
    folder, ids = large
    with serving(folder / "a", tmp_path / "data", index=IVF) as served:
        control, client = served.app.tenant.control, served.client
        entered, go_on, prepare = threading.Event(), threading.Event(), control.prepare

        def held(order: Any, progress: Any, stopping: threading.Event) -> None:
            prepare(order, progress, stopping)
            entered.set()
            assert go_on.wait(60)

        control.prepare = held
        loading = threading.Thread(target=client.load_release, args=("b",))
        loading.start()
        assert entered.wait(60)
        gone = {f"item-{number}" for number in range(100)}
        client.remove_items(sorted(gone))
        client.upsert_items([towerbridge.item(f"new-{number}", categories=["red"]) for number in range(5)])
        go_on.set()
        loading.join(60)
        release = client.load_release("b").release
        assert release.index_kind == "ivf" and release.memory_bytes > N_ITEMS * 8 * 4
        client.upsert_items([towerbridge.item(f"item-{number}", vector=[1.0] + [0.0] * 7) for number in range(100)])
        client.remove_items(sorted(gone))
        client.promote_release(ids["b"])
        everything = set(client.search_vectors([[1.0] + [0.0] * 7], limit=1000).results[0].item_ids)
        kept = {f"item-{number}" for number in range(100, N_ITEMS)}
        assert everything == kept | {f"new-{number}" for number in range(5)}
        assert recall_without(served, folder / "b", gone) > 0.9
    assert (tmp_path / "data" / "default" / "releases" / ids["b"] / "index").is_dir()


def test_a_promoted_release_starts_with_the_lists_that_were_made_for_it(
    large: tuple[Path, dict[str, str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    folder, ids = large
    with serving(folder / "a", tmp_path / "data", aside=True, index=IVF) as served:
        served.client.load_release("b")
        served.client.promote_release(ids["b"])
        assert recall_without(served, folder / "b", set()) > 0.9
    with caplog.at_level("INFO"), serving(folder / "a", tmp_path / "data", index=IVF) as served:
        assert f"took the lists of {N_ITEMS} items" in caplog.text
        assert recall_without(served, folder / "b", set()) > 0.9
        wait_until(lambda: states(served.client) == {ids["b"]: LIVE, ids["a"]: PREVIOUS})


def test_a_load_leaves_only_its_indexs_snapshot_on_the_disk(large: tuple[Path, dict[str, str]], tmp_path: Path):
    folder, ids = large
    with serving(folder / "a", tmp_path / "data", index=IVF) as served:
        served.client.record_events([towerbridge.event("view", "item-1", user_id=f"person-{n}") for n in range(100)])
        served.client.load_release("b")
        assert [one.name for one in (tmp_path / "data" / "default" / "releases" / ids["b"]).iterdir()] == ["index"]


def test_a_release_that_makes_room_is_gone_from_memory(tmp_path: Path):
    for seed, name in enumerate("abcd"):
        write_tiny_bundle(tmp_path / name, n_items=50, dim=8, seed=seed)
    with serving(tmp_path / "a", tmp_path / "data", releases={"keep": 2}) as served:
        served.client.load_release("b")
        second = served.app.tenant.releases.held[1]
        matrix = weakref.ref(second.index.matrix.chunks[0])
        bias = weakref.ref(second.index.oracle._bias[0])
        bundle = weakref.ref(second.bundle)
        del second
        served.client.load_release("c")
        wait_until(lambda: matrix() is None and bias() is None)
        gc.collect()
        wait_until(lambda: bundle() is None)
