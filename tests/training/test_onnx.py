"""The user tower as ONNX, run by onnxruntime: what a device computes is what the bundle's tower computes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from index.bundle import read_bundle
from training.cli import main

ort = pytest.importorskip("onnxruntime", reason="needs the extra `training`")


@pytest.fixture(scope="module")
def exported(fitted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("device")
    assert main(["onnx", str(fitted), "--out", str(folder / "plain")]) == 0
    assert main(["onnx", str(fitted), "--out", str(folder / "items"), "--with-items"]) == 0
    return folder


def histories(items: int, length: int, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(5)
    sizes = random.integers(1, length + 1, rows)
    real = np.arange(length) < sizes[:, None]
    item = np.where(real, random.integers(0, items, real.shape), 0)
    kind = np.where(real, random.integers(0, 3, real.shape), 0)
    ages = np.cumsum(np.where(real, random.uniform(0, 1e5, real.shape), 0)[:, ::-1], axis=1)[:, ::-1]
    ages = (ages - ages[np.arange(rows), sizes - 1][:, None]) * real
    return item, kind, ages.astype(np.float32), sizes.astype(np.int64)


@pytest.mark.parametrize("rows", [1, 7])
def test_a_device_computes_the_vector_that_the_server_would(exported: Path, fitted: Path, rows: int) -> None:
    bundle = read_bundle(fitted)
    item, kind, ages, length = histories(len(bundle.item_ids), bundle.manifest.history_length or 0, rows)
    real = np.arange(item.shape[1]) < length[:, None]
    history = (bundle.item_vectors[item] * real[..., None]).astype(np.float32)
    expected = bundle.encode_users(history, kind, ages, length)
    for folder, first in (("plain", {"history": history}), ("items", {"item": item})):
        session = ort.InferenceSession(exported / folder / "user_tower.onnx", providers=["CPUExecutionProvider"])
        feed = {**first, "event_type": kind, "seconds_before_newest": ages, "length": length}
        [found] = session.run(["user_vector"], feed)
        assert found.dtype == np.float32
        assert np.abs(found - expected).max() <= 1e-5


def test_the_device_is_told_release_inputs_and_items(exported: Path, fitted: Path) -> None:
    bundle = read_bundle(fitted)
    plain = json.loads((exported / "plain" / "device.json").read_text(encoding="utf-8"))
    assert plain["release_id"] == bundle.release_id
    assert plain["inputs"] == ["history", "event_type", "seconds_before_newest", "length"]
    assert (plain["event_types"], plain["time_features"]) == ({"cart": 1, "view": 2}, True)
    items = json.loads((exported / "items" / "device.json").read_text(encoding="utf-8"))
    assert items["item_ids"] == bundle.item_ids


def test_a_folder_of_something_else_is_not_replaced_and_an_export_is(
    exported: Path, fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    shutil.copytree(exported / "plain", tmp_path / "app")
    (tmp_path / "app" / "mine.txt").write_text("mine")
    (tmp_path / "link").symlink_to(exported / "plain")
    for name in ("empty", "app", "link"):
        before = sorted(path.name for path in (tmp_path / name).iterdir())
        assert main(["onnx", str(fitted), "--out", str(tmp_path / name)]) == 2
        assert "remove it or give another path" in capsys.readouterr().err
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == before
    (tmp_path / "app" / "mine.txt").unlink()
    (tmp_path / "app" / "device.json").write_text("{}")
    assert main(["onnx", str(fitted), "--out", str(tmp_path / "app")]) == 0
    assert json.loads((tmp_path / "app" / "device.json").read_text())["release_id"] == read_bundle(fitted).release_id
    assert sorted(path.name for path in tmp_path.iterdir()) == ["app", "empty", "link"]


def test_the_documented_program_for_a_device_gives_the_vector_that_the_server_would(
    exported: Path, fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    program = docs.split("## On a device")[1].split("```python")[1].split("```")[0]
    shutil.copytree(exported / "items", tmp_path / "device")
    monkeypatch.chdir(tmp_path)
    found: dict[str, np.ndarray] = {}
    exec(program, found)
    bundle = read_bundle(fitted)
    kinds = np.full((1, 2), bundle.manifest.event_types["view"])
    expected = bundle.encode_users(
        bundle.item_vectors[None, :2], kinds, np.array([[90, 0]], dtype=np.float32), np.array([2], dtype=np.int64)
    )
    np.testing.assert_allclose(found["vectors"], expected, atol=1e-5)
