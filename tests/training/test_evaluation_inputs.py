"""What `evaluate` does with data, files and options that are not as they should be."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from index.bundle import read_bundle
from training.cli import main
from training.config import SplitConfig
from training.data.dataset import read_dataset
from training.errors import DatasetError
from training.evaluation.card import card
from training.evaluation.exam import set_exam
from training.evaluation.page import short
from training.evaluation.profiles import read_profiles, warn_of_strangers
from training.progress import Progress


def test_events_on_an_item_that_no_catalogue_has_are_left_out_and_not_given_to_another_item(
    planted: Path, fitted: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(planted, data)
    items, bundle = pq.read_table(data / "items.parquet"), read_bundle(fitted)
    first, last = items["item_id"][0].as_py(), items["item_id"][-1].as_py()
    pq.write_table(items.slice(1), data / "items.parquet")
    exam = set_exam(read_dataset(data), bundle, SplitConfig(kind="leave-one-out"))
    events = read_dataset(data).events["item_id"]
    row = {name: bundle.item_ids.index(name) for name in (first, last)}
    for name, expected in ((first, 0), (last, pc.sum(pc.equal(events, last)).as_py())):
        assert int((exam.data.item == row[name]).sum()) <= expected
    lost = np.bincount(exam.data.item, minlength=60)
    assert lost[row[first]] == 0 < lost[row[last]]


@pytest.mark.parametrize("option", ["--json", "--html"])
@pytest.mark.parametrize("place", [".", "file/page", "folder/page"])
def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, place: str
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder" / "page").mkdir(parents=True)
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", "--data", "none", "--bundle", "none", option, str(tmp_path / place)])
    error = capsys.readouterr().err
    assert f"argument {option}" in error and str(tmp_path / place) in error


def test_groups_with_dollar_signs_are_drawn_as_they_are(planted: Path, fitted: Path, tmp_path: Path) -> None:
    rows = [f"user-{n},{'$10_$' if n < 100 else 'a$'}" for n in range(200)]
    (tmp_path / "people.csv").write_text("\n".join(["user_id,$price_$", *rows, ""]))
    command = ["evaluate", "--data", str(planted), "--bundle", str(fitted), "--quiet", "--html", str(tmp_path / "page.html")]
    assert main([*command, "--profiles", str(tmp_path / "people.csv")]) == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 3 and "$10_$" in page


def test_profiles_of_nobody_who_is_asked_are_warned_of(planted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    users = pa.array(["user-1", "user-2"])
    warn_of_strangers(pa.table({"user_id": ["user-2"]}), users, Progress())
    assert capsys.readouterr().err == ""
    warn_of_strangers(pa.table({"user_id": ["USER-1", "user-3"]}), users, Progress())
    error = capsys.readouterr().err
    assert "warning: none of the 2 profiles is of anyone who is asked, such as user-1" in error and "USER-1" in error


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_profiles_with_one_name_twice_are_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"people.{kind}"
    if kind == "csv":
        path.write_text("user_id,side,side\na,1,2\n")
    else:
        pq.write_table(pa.table([pa.array(["a"])] * 3, ["user_id", "side", "side"]), path)
    with pytest.raises(DatasetError, match=r"two columns have one name|Multiple matches"):
        read_profiles(path)


@pytest.mark.parametrize(
    "split",
    [{"kind": "all"}, {"kind": "temporal", "test_from": 3}, {"kind": ["all"]}, {"kind": "all", "validation_users": "x"}],
)
def test_a_card_can_be_written_for_a_bundle_that_says_little_of_its_split(fitted: Path, split: dict[str, Any]) -> None:
    manifest = read_bundle(fitted).manifest.model_copy(update={"training": {"split": split}})
    text = card(manifest, "0123456789abcdef")
    assert "## Split\n\nThe bundle does not say" in text


def test_the_plot_of_deciles_names_each_in_short() -> None:
    assert [short(name) for name in ("1 (3 events)", "10 (1,000-2,000 events)", "not in the bundle")] == [
        "1",
        "10",
        "not in\nthe bundle",
    ]
