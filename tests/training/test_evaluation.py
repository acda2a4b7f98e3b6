"""The test of a bundle: what held-out data can reach, who is refused, and what is printed and written."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index.bundle import Bundle, read_bundle
from tests.tiny import write_tiny_encoder
from tests.training.conftest import SMALL
from training.cli import main
from training.config import SplitConfig
from training.data.dataset import read_dataset
from training.data.interactions import load_interactions
from training.data.split import make_split
from training.errors import DatasetError
from training.evaluation.card import card
from training.evaluation.exam import Exam, set_exam
from training.evaluation.models import cold_scorers
from training.evaluation.ranking import ask
from training.evaluation.trained_on import check_cold, check_split, split_to_test
from training.progress import Progress

DOCS = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
QUIET = Progress(quiet=True)
HELD_OUT = ["--set", "split.kind=temporal", "split.cold_items=0.2", "split.validation_from=0.58", "split.test_from=0.582"]
HELD_OUT += ["training.epochs=1"]  # which epoch is the best one may depend on validation, its weights may not


def fit(data: Path, out: Path) -> Path:
    assert main(["fit", "--data", str(data), "--out", str(out), "--text-encoder", "none", *SMALL, *HELD_OUT]) == 0
    return out


@pytest.fixture(scope="module")
def temporal(planted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle trained on what was before a moment, without the events of a fifth of the items."""
    return fit(planted, tmp_path_factory.mktemp("temporal") / "bundle")


def evaluate(data: Path, bundle: Path, folder: Path, *more: str) -> dict[str, Any]:
    path = folder / "result.json"
    assert main(["evaluate", "--data", str(data), "--bundle", str(bundle), "--json", str(path), "--quiet", *more]) == 0
    result = json.loads(path.read_text())
    assert isinstance(result, dict)
    return result


@pytest.fixture(scope="module")
def known(fitted: Path) -> Bundle:
    """The bundle that was trained with leave-one-out."""
    return read_bundle(fitted)


@pytest.fixture(scope="module")
def held(temporal: Path) -> Bundle:
    """The bundle of `temporal`."""
    return read_bundle(temporal)


@pytest.fixture(scope="module")
def exam(planted: Path, held: Bundle) -> Exam:
    """What `temporal` is asked."""
    return set_exam(read_dataset(planted), held, split_to_test(held, None, QUIET))


def with_training(bundle: Bundle, **changes: Any) -> Bundle:
    training = {name: value for name, value in (bundle.manifest.training | changes).items() if value is not None}
    return replace(bundle, manifest=bundle.manifest.model_copy(update={"training": training}))


def test_other_events_after_the_cut_and_on_cold_items_give_the_same_weights(
    planted: Path, held: Bundle, tmp_path: Path
) -> None:
    dataset = read_dataset(planted)
    data = load_interactions(dataset.events, dataset.items["item_id"])
    split = make_split(data, split_to_test(held, None, QUIET))
    assert split.cold.sum() == 12 and split.validation_from_us is not None
    random = np.random.default_rng(0)
    item = data.item.copy()
    for hidden in (~split.cold[item] & (data.time_us >= split.validation_from_us), split.cold[item]):
        item[hidden] = random.permutation(item[hidden])  # the same items, so that the same ones are drawn as cold
    assert (item != data.item).mean() > 0.2
    changed = tmp_path / "changed"
    shutil.copytree(planted, changed)
    events = dataset.events.table()
    ids = dataset.items["item_id"].take(pa.array(item))
    pq.write_table(events.set_column(events.column_names.index("item_id"), "item_id", ids), changed / "events.parquet")
    before, after = held, read_bundle(fit(changed, tmp_path / "bundle"))
    assert before.manifest.training["dataset"] != after.manifest.training["dataset"]
    np.testing.assert_array_equal(before.item_vectors, after.item_vectors)
    assert before.items["popularity"].equals(after.items["popularity"])
    history = before.item_vectors[None, :5]
    inputs = (np.ones((1, 5), dtype=np.int64), np.zeros((1, 5), dtype=np.float32), np.array([5]))
    np.testing.assert_array_equal(before.encode_users(history, *inputs), after.encode_users(history, *inputs))


def test_cold_items_are_placed_as_brand_new_ones_are(held: Bundle, exam: Exam) -> None:
    bundle = held
    check_cold(exam, bundle)
    rows = exam.cold_rows
    assert len(rows) == bundle.manifest.training["split"]["cold_items"] == 12
    codes = np.array([bundle.category_codes(bundle.items["categories"][int(row)].as_py()) for row in rows])
    new = bundle.encode_items(np.zeros((12, 0), dtype=np.float32), codes, np.zeros((12, 16), dtype=np.float32))
    np.testing.assert_allclose(bundle.item_vectors[rows], new, atol=1e-6)
    assert set(np.array(bundle.items["popularity"])[rows]) == {0.0}
    assert np.isin(exam.cold.target, rows).all() and not np.isin(exam.data.item, rows).any()


def test_the_test_by_time_asks_what_came_after_its_moment_with_all_that_came_before(exam: Exam) -> None:
    moment = exam.split.test_from_us
    assert moment is not None and len(exam.test.user) > 10
    assert (exam.data.time_us[exam.test.ends] >= moment).all()  # the target is the event at which the history ends
    assert (exam.data.item[exam.test.ends] == exam.test.target).all()
    assert (exam.test.ends > exam.test.starts).all()
    assert (exam.data.time_us[exam.past] < moment).all() and exam.past.sum() == (exam.data.time_us < moment).sum()
    trained = exam.split.train_end[exam.test.user] > exam.split.data.offsets[:-1][exam.test.user]
    assert (trained == exam.trained).all() and 0 < trained.sum() < len(trained)


def test_a_test_by_time_with_cold_items_from_the_command_line(
    planted: Path, temporal: Path, held: Bundle, tmp_path: Path
) -> None:
    page = tmp_path / "pages" / "page.html"
    result = evaluate(planted, temporal, tmp_path, "--cold", "--html", str(page), "--split", "temporal")
    assert (result["split"], result["same_events"], result["items"]) == ("temporal", True, 60)
    assert result["split_details"] == held.manifest.training["split"]
    assert {row["slice"] for row in result["slices"]["people"]} == {"in the training", "new since"}
    for rows in result["slices"].values():
        assert sum(row["users"] for row in rows) == result["users"]
    cold = result["cold"]
    assert set(cold["models"]) == {"towerbridge", "popularity", "random", "category-knn"}
    chance = cold["models"]["random"]["unfiltered"]["R@10"]
    assert chance == pytest.approx(10 / 60)
    assert cold["models"]["category-knn"]["filtered"]["R@10"] > 2 * chance  # an item's ring is its category
    text = page.read_text(encoding="utf-8")
    assert text.count("data:image/png;base64,") == 3 and 'src="http' not in text and "cold items" in text


def test_figures_intervals_and_differences_belong_together(planted: Path, fitted: Path, tmp_path: Path) -> None:
    result = evaluate(planted, fitted, tmp_path)
    ours = result["models"]["towerbridge"]["filtered"]
    for name, kinds in result["models"].items():
        for kind, figures in kinds.items():
            assert set(figures) == {*(f"{m}@{k}" for m in "RN" for k in (5, 10, 50, 100)), "MRR"}
            for metric, value in figures.items():
                low, high = result["intervals"][name][kind][metric]
                assert low - 1e-9 <= value <= high + 1e-9
        if name != "towerbridge":
            found = result["differences"][name]["filtered"]["N@10"]
            assert found["difference"] == pytest.approx(ours["N@10"] - kinds["filtered"]["N@10"])
            assert found["interval"][0] <= found["difference"] <= found["interval"][1]
    exposure = result["exposure"]
    assert exposure["towerbridge"]["coverage@10"] > exposure["popularity"]["coverage@10"]
    assert exposure["towerbridge"]["gini@10"] < exposure["popularity"]["gini@10"]


def test_groups_of_profiles_are_told_of_and_small_ones_are_not_told_apart(
    planted: Path, fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"user-{n},{'0' if n < 100 else '00' if n < 150 else f'tiny-{n}'},x" for n in range(180)]
    profiles = tmp_path / "people.csv"
    profiles.write_text("\n".join(["user_id,side,other", *rows, "nobody,0,x", ""]))
    chosen = ["--profiles", str(profiles), "--groups", "side"]
    result = evaluate(planted, fitted, tmp_path, *chosen)
    assert set(result["groups"]) == {"side"}
    sizes = {row["group"]: row["users"] for row in result["groups"]["side"]}
    assert sizes == {"0": 100, "00": 50, "too few": 30, "unknown": 20}
    printed = capsys.readouterr().out
    assert "towerbridge by side" in printed and "tiny" not in printed
    whole = result["models"]["towerbridge"]["filtered"]["N@10"]
    assert sum(row["users"] * row["N@10"]["mean"] for row in result["groups"]["side"]) / 200 == pytest.approx(whole)
    for row in result["groups"]["side"]:
        assert row["N@10"]["gap"] == pytest.approx(row["N@10"]["mean"] - whole)


def test_the_data_sets_own_profiles_are_used_where_no_file_is_given(
    planted: Path, fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--data", str(planted), "--bundle", str(fitted), "--groups", "side", "--quiet"]) == 2
    assert "has no profiles.parquet" in capsys.readouterr().err
    data = tmp_path / "data"
    shutil.copytree(planted, data)
    ids = pa.array([f"user-{n}" for n in range(200)])
    pq.write_table(pa.table({"user_id": ids, "side": pa.array([n % 2 for n in range(200)])}), data / "profiles.parquet")
    result = evaluate(data, fitted, tmp_path, "--groups", "side")
    assert [(row["group"], row["users"]) for row in result["groups"]["side"]] == [("0", 100), ("1", 100)]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("user,side\na,1\n", "has no column user_id"),
        ("user_id,age\na,1\n", "has no column side"),
        ("user_id,side\na,1\na,2\n", "a user_id is there twice"),
        ("user_id,side\n" + "".join(f"u{n},{n}\n" for n in range(60)), "more than 50 values"),
        ("user_id,side\na,1,2\n", "cannot be read"),
        ("", "cannot be read"),
    ],
)
def test_profiles_that_cannot_be_used_end_with_one_line(
    planted: Path, fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, words: str
) -> None:
    (tmp_path / "people.csv").write_text(content)
    command = ["evaluate", "--data", str(planted), "--bundle", str(fitted), "--quiet"]
    assert main([*command, "--profiles", str(tmp_path / "people.csv"), "--groups", "side"]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_fit_writes_a_card_and_evaluate_completes_it_without_another_release(
    planted: Path, fitted: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(fitted, bundle)
    release = read_bundle(bundle).release_id
    first = (bundle / "model_card.md").read_text(encoding="utf-8")
    last = json.loads((planted / "dataset.json").read_text(encoding="utf-8"))["last_event"]
    told = (f"# Release {release}", "200 users", f"Last event: {last}", "the last is the test's target", "N@10: 0.")
    for words in (*told, "Not evaluated yet"):
        assert words in first
    evaluate(planted, bundle, tmp_path)
    assert (bundle / "model_card.md").read_text(encoding="utf-8") == first  # only with --card
    evaluate(planted, bundle, tmp_path, "--card")
    second = (bundle / "model_card.md").read_text(encoding="utf-8")
    for words in ("leave-one-out test, 200 users", "95 % intervals", "Not clearly better than transition-knn on the test"):
        assert words in second
    assert "Not evaluated yet" not in second
    assert read_bundle(bundle).release_id == release


def test_a_split_that_the_bundle_was_not_trained_with_is_refused(known: Bundle, held: Bundle) -> None:
    bundle = known
    assert split_to_test(bundle, None, QUIET).kind == split_to_test(bundle, "leave-one-out", QUIET).kind == "leave-one-out"
    with pytest.raises(DatasetError, match="its weights have seen what temporal would test"):
        split_to_test(bundle, "temporal", QUIET)
    with pytest.raises(DatasetError, match="its weights have seen what leave-one-out would test"):
        split_to_test(held, "leave-one-out", QUIET)
    everything = {"split": {"kind": "all"}, "config": {"split": {"kind": "all"}}}
    with pytest.raises(DatasetError, match="nothing is left to test it on"):
        split_to_test(with_training(bundle, **everything), None, QUIET)
    old = with_training(bundle, split="leave-one-out: validation and test targets were not trained on", config={})
    assert split_to_test(old, None, QUIET) == SplitConfig()


def test_a_bundle_that_does_not_say_is_tested_as_asked_with_a_warning(
    known: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    silent = with_training(known, split=None, config=None)
    assert split_to_test(silent, "temporal", Progress()).kind == "temporal"
    assert "does not say what it was trained on" in capsys.readouterr().err


def test_moments_are_those_of_the_fit_where_shares_of_newer_events_would_be_others(held: Bundle) -> None:
    config = split_to_test(held, None, QUIET)
    assert config.validation_from == held.manifest.training["split"]["validation_from"]
    assert config.test_from == held.manifest.training["split"]["test_from"]


def test_another_split_of_the_same_events_and_other_cold_items_are_refused(
    planted: Path, fitted: Path, held: Bundle, exam: Exam, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = held
    account = bundle.manifest.training["split"]
    with pytest.raises(DatasetError, match="another split"):
        check_split(exam, with_training(bundle, split=account | {"training_events": 1}), same=True, progress=QUIET)
    with pytest.raises(DatasetError, match="are not those that it was trained without"):
        check_cold(exam, with_training(bundle, split=account | {"cold_items_sha256": "0" * 64}))
    assert bundle.item_residuals is not None
    with pytest.raises(DatasetError, match="are not those that it was trained without"):
        check_cold(exam, replace(bundle, item_residuals=bundle.item_residuals + 1))
    assert main(["evaluate", "--data", str(planted), "--bundle", str(fitted), "--cold", "--quiet"]) == 2
    assert "was trained without cold items" in capsys.readouterr().err


def test_text_knn_stands_beside_where_the_bundle_has_an_encoder(held: Bundle, exam: Exam, tmp_path: Path) -> None:
    bundle = replace(held, text_encoder=write_tiny_encoder(tmp_path / "encoder"))
    models = cold_scorers(exam, bundle, QUIET)
    assert set(models) == {"towerbridge", "popularity", "random", "text-knn", "category-knn"}
    questions = next(ask(exam.data, exam.cold.starts, exam.cold.ends, exam.cold.target, history_length=8))
    scores = models["text-knn"](questions)
    assert scores.shape == (len(questions.place), 60) and bool(scores.isfinite().all())
    assert questions.history.length[0] == 1  # then the nearest is that item itself
    assert float(scores[0].max()) == pytest.approx(float(scores[0, questions.history.item[0, 0]]))


def test_every_option_is_documented(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    options = set(re.findall(r"--[a-z]+", capsys.readouterr().out)) - {"--help", "--data", "--bundle", "--set"}
    assert len(options) > 5 and all(f"`{option}" in DOCS for option in options)


def test_the_result_has_the_documented_fields(planted: Path, fitted: Path, tmp_path: Path) -> None:
    rows = DOCS[DOCS.index("## The result as JSON") : DOCS.index("## Model card")]
    documented = set(re.findall(r"`([a-z_]+)`", "\n".join(line.split("|")[1] for line in rows.splitlines() if "|" in line)))
    assert set(evaluate(planted, fitted, tmp_path)) == documented - {"groups", "cold"}


@pytest.mark.parametrize("training", [{}, {"dataset": "clicks", "split": ["mine"], "config": 3, "versions": None}])
def test_a_card_can_be_written_for_a_bundle_that_says_nothing_of_its_training(known: Bundle, training: Any) -> None:
    manifest = known.manifest.model_copy(update={"training": training, "offline_metrics": {}})
    text = card(manifest, "0123456789abcdef")
    assert text.startswith("# Release 0123456789abcdef") and text.count("The bundle does not say.") >= 2
