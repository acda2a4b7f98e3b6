"""From a data set to a bundle and back: learning, repeatability, leakage, evaluation, the command line."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index.bundle import read_bundle
from tests.tiny import write_tiny_bundle, write_tiny_encoder
from tests.training.conftest import SMALL, planted_events, write_csv
from training.cli import main
from training.config import SplitConfig
from training.data.dataset import read_dataset
from training.data.interactions import load_interactions
from training.data.split import make_split

METRICS = {"R@5", "R@10", "N@5", "N@10"}
SHORT = ["training.epochs=2"]


def fit(data: Path, out: Path, *more: str) -> int:
    return main(["fit", "--data", str(data), "--out", str(out), *SMALL, *more])


def evaluated(data: Path, bundle: Path, folder: Path) -> dict[str, Any]:
    path = folder / "result.json"
    assert main(["evaluate", "--data", str(data), "--bundle", str(bundle), "--json", str(path), "--quiet"]) == 0
    result = json.loads(path.read_text())
    assert isinstance(result, dict)
    return result


def test_a_planted_pattern_is_learnt(planted: Path, fitted: Path, tmp_path: Path) -> None:
    result = evaluated(planted, fitted, tmp_path)
    assert result["users"] == 200
    assert set(result["models"]) == {"towerbridge", "popularity", "transition-knn", "item-to-item", "mean-pooling"}
    for kinds in result["models"].values():
        assert set(kinds) == {"filtered", "unfiltered"}
        assert all(set(metrics) >= METRICS for metrics in kinds.values())
    found = {name: kinds["filtered"]["N@5"] for name, kinds in result["models"].items()}
    assert found["towerbridge"] > 0.8
    assert found["transition-knn"] > 0.8
    assert found["popularity"] < 0.3
    assert found["mean-pooling"] < found["towerbridge"]


def test_the_table_names_every_model_and_metric(planted: Path, fitted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--data", str(planted), "--bundle", str(fitted), "--quiet"]) == 0
    printed = capsys.readouterr().out
    for word in ("towerbridge", "popularity", "transition-knn", "mean-pooling", "200 users", *METRICS):
        assert word in printed


def test_the_bundle_says_what_it_was_trained_on_and_encodes_its_own_items(planted: Path, fitted: Path) -> None:
    bundle = read_bundle(fitted)
    manifest = bundle.manifest
    assert (manifest.dim, manifest.history_length, manifest.time_features) == (16, 8, True)
    assert manifest.event_types == {"cart": 1, "view": 2}
    assert manifest.training["dataset"]["counts"]["users"] == 200
    assert manifest.training["config"]["towers"]["dim"] == 16
    assert manifest.offline_metrics["validation/filtered/N@10"] > 0.8
    assert bundle.items["title"].to_pylist()[0] == "ring 0 place 0"
    codes = np.array([bundle.category_codes(row) for row in bundle.items["categories"].to_pylist()])
    assert bundle.item_residuals is not None
    again = bundle.encode_items(np.zeros((60, 0), dtype=np.float32), codes, bundle.item_residuals)
    np.testing.assert_allclose(again, bundle.item_vectors, atol=1e-5)


def test_popularity_in_the_bundle_counts_training_events_only(planted: Path, fitted: Path) -> None:
    dataset = read_dataset(planted)
    data = load_interactions(dataset.events, dataset.items["item_id"])
    split = make_split(data, SplitConfig())
    trained = int((split.train_end - data.offsets[:-1]).sum())
    assert sum(read_bundle(fitted).items["popularity"].to_pylist()) == trained == dataset.events.num_rows - 2 * 200


def test_a_new_item_lands_near_the_items_of_its_category(fitted: Path) -> None:
    bundle = read_bundle(fitted)
    codes = np.array([bundle.category_codes(["ring-3", "all"])])
    new = bundle.encode_items(np.zeros((1, 0), dtype=np.float32), codes, np.zeros((1, 16), dtype=np.float32))
    nearest = np.argsort(-(bundle.item_vectors @ new[0]))[:8]
    assert sum(bundle.item_ids[row].startswith("item-3-") for row in nearest) >= 6


def test_the_same_seed_gives_the_same_vectors_and_another_seed_others(planted: Path, tmp_path: Path) -> None:
    runs = {"first": [], "again": [], "other": ["--seed", "1"]}
    vectors = {}
    for name, more in runs.items():
        assert fit(planted, tmp_path / name, "--text-encoder", "none", "--set", *SHORT, *more) == 0
        vectors[name] = read_bundle(tmp_path / name).item_vectors
    np.testing.assert_array_equal(vectors["first"], vectors["again"])
    assert not np.allclose(vectors["first"], vectors["other"], atol=1e-3)


def test_other_validation_and_test_items_give_the_same_weights(planted: Path, tmp_path: Path) -> None:
    dataset = read_dataset(planted)
    data = load_interactions(dataset.events, dataset.items["item_id"])
    split = make_split(data, SplitConfig())
    ids: list[str] = dataset.events["item_id"].to_pylist()
    for row in (*split.validation, *split.test):
        ids[row] = f"other-{ids[row]}"  # items that are nowhere else
    changed = tmp_path / "changed"
    shutil.copytree(planted, changed)
    table = dataset.events.table().set_column(1, "item_id", pa.array(ids))
    pq.write_table(table, changed / "events.parquet")
    extra = sorted(set(ids) - set(dataset.items["item_id"].to_pylist()))
    rows = [{"item_id": name, "text": "", "categories": [], "title": ""} for name in extra]
    both = pa.concat_tables([dataset.items, pa.Table.from_pylist(rows, schema=dataset.items.schema)])
    for folder in (changed, tmp_path / "same"):
        if folder.name == "same":
            shutil.copytree(planted, folder)
        pq.write_table(both, folder / "items.parquet")
        # one epoch: which epoch is the best one may depend on validation, its weights may not
        assert fit(folder, tmp_path / f"{folder.name}-bundle", "--text-encoder", "none", "--set", "training.epochs=1") == 0
    bundles = [read_bundle(tmp_path / f"{name}-bundle") for name in ("changed", "same")]
    np.testing.assert_array_equal(bundles[0].item_vectors, bundles[1].item_vectors)
    assert bundles[0].items["popularity"].equals(bundles[1].items["popularity"])


def test_text_ships_with_its_encoder_and_places_a_new_item(planted: Path, tmp_path: Path) -> None:
    encoder = write_tiny_encoder(tmp_path / "encoder")
    (encoder / ".gitattributes").write_text("not for the bundle")
    assert fit(planted, tmp_path / "bundle", "--text-encoder", str(encoder), "--set", *SHORT) == 0
    bundle = read_bundle(tmp_path / "bundle")
    assert bundle.text_encoder is not None and not (bundle.text_encoder / ".gitattributes").exists()
    assert bundle.manifest.text.dim == 16


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--text-encoder", "nowhere"], "nowhere: no sentence-transformers directory"),
        (["--set", "training.epoch=3"], "training.epoch: there is no such setting"),
        (["--config", "missing.yaml"], "missing.yaml: no such config"),
    ],
)
def test_a_fit_that_cannot_be_ends_with_one_line_and_exit_code_2(
    planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert fit(planted, tmp_path / "bundle", *arguments) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not (tmp_path / "bundle").exists()


def test_a_bundle_is_not_written_over_something_else_and_no_epoch_is_trained_first(
    planted: Path, fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "letter.txt").write_text("dear")
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "manifest.json").write_text('{"name": "app"}')
    (tmp_path / "link").symlink_to(fitted)
    (tmp_path / "lost").symlink_to("nowhere")
    letter = "precious/letter.txt"
    refused = {"precious": "is not a bundle", "app": "is not a bundle", letter: "is not a bundle", "link": "is a link"}
    nowhere = {f"{letter}/new/bundle": f"{letter} is no folder", "lost/bundle": "lost is no folder"}
    for name, said in (refused | nowhere).items():
        line = ["fit", "--data", str(planted), "--out", str(tmp_path / name), "--text-encoder", "none", "--set", *SHORT]
        assert main(line) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"{tmp_path / name}: ") and said in error and error.count("\n") == 1
    assert (tmp_path / "precious" / "letter.txt").read_text() == "dear"


def test_evaluate_refuses_a_bundle_of_other_items_and_one_without_towers(
    planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny_bundle(tmp_path / "tiny")
    assert main(["evaluate", "--data", str(planted), "--bundle", str(tmp_path / "tiny")]) == 2
    assert "knows 0 of the 60 items" in capsys.readouterr().err
    write_tiny_bundle(tmp_path / "bare", towers=False)
    assert main(["evaluate", "--data", str(planted), "--bundle", str(tmp_path / "bare")]) == 2
    assert "no user tower" in capsys.readouterr().err


def test_evaluate_warns_when_the_events_are_not_those_of_the_fit(
    fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [*planted_events(seed=1), *({"user": "new", "item": f"new-{n}", "event": "view", "time": n} for n in range(3))]
    events = write_csv(tmp_path / "events.csv", rows)
    data = tmp_path / "data"
    assert main(["import", "csv", "--events", str(events), "--out", str(data)]) == 0
    assert main(["evaluate", "--data", str(data), "--bundle", str(fitted)]) == 0
    error = capsys.readouterr().err
    assert "does not know 3 of 63 items" in error
    assert "was not trained on these very events" in error


def test_check_reports_a_good_bundle_and_names_the_torn_file_of_a_bad_one(
    fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(fitted)]) == 0
    assert "golden users" in capsys.readouterr().out
    torn = tmp_path / "torn"
    shutil.copytree(fitted, torn)
    (torn / "item_vectors.safetensors").write_bytes(b"torn")
    assert main(["check", str(torn)]) == 2
    error = capsys.readouterr().err
    assert "item_vectors.safetensors" in error and error.count("\n") == 1
    assert main(["check", str(tmp_path / "missing")]) == 2


def test_help_explains_itself_without_importing_torch() -> None:
    code = (
        "import sys; sys.argv = ['training', '--help']\n"
        "import training.cli\n"
        "try:\n    training.cli.main()\nexcept SystemExit:\n    pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "python -m training fit --data" in done.stdout


@pytest.mark.parametrize("command", ["import", "fit", "evaluate", "check"])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert "usage" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["fit", "evaluate", "refresh"])
@pytest.mark.parametrize("threads", ["-1", "1025"])
def test_a_number_of_threads_that_cannot_be_is_refused(command: str, threads: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = {"fit": ["--data", "x", "--out", "y"], "evaluate": ["--data", "x", "--bundle", "y"], "refresh": ["--out", "y"]}
    with pytest.raises(SystemExit) as caught:
        main([command, *flags[command], "--threads", threads])
    assert caught.value.code == 2
    assert f"argument --threads: {threads}: give 0 to 1024" in capsys.readouterr().err


def test_data_with_nothing_to_learn_is_refused_and_no_bundle_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "events.csv").write_text("user,item,timestamp\nann,tea,1767225600\nben,mug,1767225700\n", encoding="utf-8")
    assert main(["import", "csv", "--events", str(tmp_path / "events.csv"), "--out", str(tmp_path / "data")]) == 0
    assert fit(tmp_path / "data", tmp_path / "bundle", "--text-encoder", "none") == 2
    assert "nothing to learn from" in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()
