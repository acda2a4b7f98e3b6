"""Snapshots: what comes back, what is refused, and what a crash leaves.

One snapshot per format version lies beside this file and must keep loading, whatever reads it later. golden_snapshot_v1 was
made once, by `save(Path("tests/index/golden_snapshot_v1"), golden_rows())`, and is never made again: if its test fails, the
reader has changed, not the snapshot.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file
from safetensors.numpy import save_file as save_tensors

from index.faiss_lists import FaissLists
from index.fingerprints import fingerprints
from index.lists import ListsState
from index.probing import KS, SHARES, ProbeTable
from index.snapshot import Snapshot, load_snapshot, save_snapshot
from index.snapshot_files import DataFile, SnapshotError, read_pair, write_pair
from tests.index.engines import unit_rows

GOLDEN = Path(__file__).parent / "golden_snapshot_v1"
RELEASE = "0123456789abcdef"
IDS = [f"item-{number}" for number in range(38)] + ["café", "寿司 🍣"]
CENTROIDS = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, -1]], dtype=np.float32)
NEEDED = np.minimum(np.arange(1, 29).reshape(len(SHARES), len(KS)), 4).astype(np.int32)


def golden_rows() -> NDArray[np.float32]:
    """Small whole numbers, so that they are the same on every machine: (40, 4) float32."""
    return ((np.arange(160).reshape(40, 4) * 7) % 13 - 6).astype(np.float32)


def save(
    folder: Path, rows: NDArray[np.float32], *, ids: list[str] = IDS, release_id: str = RELEASE, target: float = 0.9
) -> None:
    lists = FaissLists(CENTROIDS)
    lists.put(np.arange(100, 100 + len(ids)), torch.from_numpy(rows))
    table = ProbeTable(target, NEEDED)
    save_snapshot(folder, release_id=release_id, item_ids=ids, rows=rows, state=lists.state, table=table, gather_rows=2048)


def loaded(folder: Path) -> Snapshot:
    snapshot = load_snapshot(folder, release_id=RELEASE, dim=4)
    assert snapshot is not None
    return snapshot


def nearest(rows: NDArray[np.float32]) -> list[int]:
    return np.argmax(rows @ CENTROIDS.T, axis=1).tolist()


def test_a_snapshot_of_every_format_version_still_loads_and_is_searched():
    snapshot, rows = loaded(GOLDEN), golden_rows()
    assert snapshot.item_ids == IDS
    assert snapshot.table.target == 0.9
    np.testing.assert_array_equal(snapshot.table.needed, NEEDED)
    assert (snapshot.gather_rows, snapshot.release_id) == (2048, RELEASE)
    np.testing.assert_array_equal(snapshot.centroids, CENTROIDS)
    list_of = snapshot.lists_for(IDS, rows)
    assert list_of.tolist() == nearest(rows)
    lists = FaissLists(snapshot.centroids)
    lists.put(np.arange(40), torch.from_numpy(rows), list_of)
    truth = rows @ rows[:2].T
    best = np.sort(truth, axis=0)[:-3:-1].T  # (2, 2), best first
    assert [[truth[row, query] for row in lists.near(rows[query], 2, 4)] for query in range(2)] == best.tolist()


def test_a_golden_snapshot_is_small():
    assert sum(path.stat().st_size for path in GOLDEN.iterdir()) < 5_000


def test_fingerprints_are_what_format_1_says():
    rows = np.array([[0, 0], [1, 0], [0, 1], [-1.5, 2.25]], dtype=np.float32)
    one, two = 0xE220A8397B1DCDAF, 0x6E789E6AA1B965F5  # SplitMix64 from 0, made odd
    bits = [(0, 0), (0x3F800000, 0), (0, 0x3F800000), (0xBFC00000, 0x40100000)]
    assert fingerprints(rows).tolist() == [(one * a + two * b) % 2**64 for a, b in bits]


@given(st.integers(0, 2**32), st.integers(0, 31), st.integers(0, 7))
def test_a_change_of_any_bit_of_a_row_changes_its_fingerprint(seed: int, bit: int, place: int):
    row = unit_rows(1, seed, 8)
    changed = row.copy()
    changed.view(np.uint32)[0, place] ^= np.uint32(1 << bit)
    assert fingerprints(row)[0] != fingerprints(changed)[0]


def test_changed_new_and_removed_items_are_told_apart(tmp_path: Path):
    rows = unit_rows(40, 1)
    save(tmp_path, rows)
    now = np.concatenate([rows[5:], unit_rows(3, 2)])  # the first five are gone, three are new
    now[7] = unit_rows(1, 3)
    now[8, 2] = np.nextafter(now[8, 2], 1)
    ids = [*IDS[5:], "new", "also new", ""]
    order = np.random.default_rng(4).permutation(len(ids))
    found = loaded(tmp_path).lists_for([ids[place] for place in order], now[order])
    assert found.dtype == np.int32
    wanted = nearest(rows[5:])
    for place in (7, 8):
        wanted[place] = -1
    assert found.tolist() == [[*wanted, -1, -1, -1][place] for place in order]


def test_rows_may_come_in_blocks(tmp_path: Path):
    rows = unit_rows(40, 1)
    save(tmp_path / "whole", rows)

    def blocks() -> Iterator[NDArray[np.float32]]:
        yield from (rows[:7], rows[7:7], rows[7:])

    state = ListsState(CENTROIDS, np.arange(40), np.array(nearest(rows), dtype=np.int32))
    save_snapshot(
        tmp_path / "blocks",
        release_id=RELEASE,
        item_ids=IDS,
        rows=blocks(),
        state=state,
        table=ProbeTable(0.9, NEEDED),
        gather_rows=1,
    )
    whole, in_blocks = loaded(tmp_path / "whole"), loaded(tmp_path / "blocks")
    assert in_blocks.lists_for(IDS, blocks()).tolist() == whole.lists_for(IDS, rows).tolist() == nearest(rows)


def test_a_snapshot_without_items_knows_none(tmp_path: Path):
    save(tmp_path, unit_rows(0, 1), ids=[])
    assert loaded(tmp_path).lists_for(["a"], unit_rows(1, 1)).tolist() == [-1]


def test_there_is_none_or_it_is_another_releases(tmp_path: Path):
    assert load_snapshot(tmp_path / "absent", release_id=RELEASE, dim=4) is None
    assert load_snapshot(GOLDEN, release_id="another", dim=4) is None


def test_ids_rows_and_slots_must_be_as_many(tmp_path: Path):
    with pytest.raises(ValueError, match="39 rows for 40 items"):
        state = ListsState(CENTROIDS, np.arange(40), np.zeros(40, dtype=np.int32))
        save_snapshot(
            tmp_path,
            release_id="r",
            item_ids=IDS,
            rows=unit_rows(39, 1),
            state=state,
            table=ProbeTable(0.9, NEEDED),
            gather_rows=1,
        )
    with pytest.raises(ValueError, match="2 item ids for 40 slots"):
        save_snapshot(
            tmp_path,
            release_id="r",
            item_ids=IDS[:2],
            rows=unit_rows(2, 1),
            state=state,
            table=ProbeTable(0.9, NEEDED),
            gather_rows=1,
        )
    with pytest.raises(ValueError, match="rows of 4 components, got float64"):
        loaded(GOLDEN).lists_for(IDS, golden_rows().astype(np.float64))
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("snapshot")


@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255), manifest=st.booleans())
@settings(max_examples=300, deadline=None)
def test_a_flipped_byte_anywhere_is_refused(copied: Path, place: float, flip: int, manifest: bool):
    shutil.copytree(GOLDEN, copied, dirs_exist_ok=True)
    path = copied / "manifest.json" if manifest else data_file(copied)
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= flip
    path.write_bytes(data)
    with pytest.raises(SnapshotError) as refused:
        load_snapshot(copied, release_id=RELEASE, dim=4)
    assert "\n" not in str(refused.value)
    assert f"delete the folder {copied}" in str(refused.value)


@pytest.mark.parametrize("name", ["manifest.json", "data"])
@pytest.mark.parametrize("left", [0, 1, 300])
def test_a_truncated_file_is_refused(tmp_path: Path, name: str, left: int):
    shutil.copytree(GOLDEN, tmp_path, dirs_exist_ok=True)
    path = data_file(tmp_path) if name == "data" else tmp_path / name
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(SnapshotError, match=path.name):
        load_snapshot(tmp_path, release_id=RELEASE, dim=4)


def test_a_missing_data_file_another_dim_and_a_newer_format_are_refused(tmp_path: Path):
    shutil.copytree(GOLDEN, tmp_path, dirs_exist_ok=True)
    with pytest.raises(SnapshotError, match=r"manifest.json: is of 4 components, the release has 8"):
        load_snapshot(tmp_path, release_id=RELEASE, dim=8)
    data_file(tmp_path).unlink()
    with pytest.raises(SnapshotError, match=r"lists-\w+.safetensors: cannot be read \(No such file"):
        load_snapshot(tmp_path, release_id=RELEASE, dim=4)
    (tmp_path / "manifest.json").write_text(json.dumps({"format": "towerbridge-snapshot", "format_version": 2}))
    with pytest.raises(SnapshotError, match="format_version 2, this Towerbridge reads up to 1; upgrade Towerbridge, or delete"):
        load_snapshot(tmp_path, release_id=RELEASE, dim=4)
    (tmp_path / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(SnapshotError, match="is not JSON"):
        load_snapshot(tmp_path, release_id=RELEASE, dim=4)


def replaced(name: str, array: NDArray[np.generic]) -> Callable[[dict[str, NDArray[np.generic]]], None]:
    return lambda arrays: arrays.update({name: array})


def dropped(name: str) -> Callable[[dict[str, NDArray[np.generic]]], None]:
    return lambda arrays: arrays.__delitem__(name)


BAD = {
    "has no centroids": dropped("centroids"),
    "has centroids of float64": replaced("centroids", CENTROIDS.astype(np.float64)),
    "has centroids of float32 (3, 4)": replaced("centroids", CENTROIDS[:3]),
    "holds a centroid that is not finite": replaced("centroids", CENTROIDS * np.float32(np.nan)),
    "puts a row into a list": replaced("list_of", np.full(40, 4, dtype=np.int32)),
    "none of the 4": replaced("list_of", np.full(40, -1, dtype=np.int32)),
    "has list_of of int64": replaced("list_of", np.zeros(40, dtype=np.int64)),
    "has fingerprints of uint64 (39,)": replaced("fingerprints", np.zeros(39, dtype=np.uint64)),
    "end before they begin": replaced("id_ends", np.array([100, *range(2, 40), 272], dtype=np.int64)),
    "has id_bytes": replaced("id_ends", np.arange(40, dtype=np.int64)),
    "not UTF-8": replaced("id_bytes", np.full(272, 255, dtype=np.uint8)),
    "an item id twice": replaced("id_bytes", np.full(272, ord("a"), dtype=np.uint8)),
    "looks into fewer than 1": replaced("needed", NEEDED - 1),
    "more than 4 lists": replaced("needed", NEEDED + 4),
    "other shares or ks": replaced("ks", np.arange(4)),
}


@pytest.mark.parametrize("problem", BAD)
def test_what_could_not_have_been_saved_is_refused_even_with_its_own_digest(tmp_path: Path, problem: str):
    arrays = load_file(data_file(GOLDEN))
    BAD[problem](arrays)
    rewrite(tmp_path, arrays)
    with pytest.raises(SnapshotError) as refused:
        load_snapshot(tmp_path, release_id=RELEASE, dim=4)
    assert problem in str(refused.value)


def rewrite(folder: Path, arrays: dict[str, NDArray[np.generic]]) -> None:
    """The golden snapshot with other arrays, and digests that agree with them."""
    pair = read_pair(GOLDEN, release_id=RELEASE)
    assert pair is not None
    save_tensors(arrays, folder / "arrays")
    data = (folder / "arrays").read_bytes()
    (folder / "arrays").unlink()
    digest = hashlib.sha256(data).hexdigest()
    file = DataFile(name=f"lists-{digest[:16]}.safetensors", sha256=digest, bytes=len(data))
    write_pair(folder, pair[0].model_copy(update={"file": file}), [data])


def data_file(folder: Path) -> Path:
    [path] = folder.glob("lists-*.safetensors")
    return path
