"""Columns of unusual types, times of unusual forms and paths that are not what they should be."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.training.conftest import info
from tests.training.test_importers import csv_import, events_of, items_of, rejects_of, run
from training.importers import survey

EVENTS = {"user_id": ["a", "b"], "item_id": ["x", "y"], "time": [1_700_000_000, 1_700_000_001]}
STRUCT = pa.array([{"k": 1}, {"k": 2}])


def write(path: Path, columns: dict[str, Any]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize(
    ("table", "column", "values"),
    [
        ("events", "user_id", pa.array([["a"], ["b"]])),
        ("events", "item_id", pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int64()))),
        ("events", "event_type", STRUCT),
        ("events", "time", STRUCT),
        ("items", "item_id", STRUCT),
        ("items", "text", STRUCT),
        ("items", "categories", STRUCT),
        ("items", "categories", pa.array([[{"k": 1}], []])),
    ],
)
def test_a_column_that_is_needed_and_is_of_no_plain_type_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], table: str, column: str, values: pa.Array
) -> None:
    columns: dict[str, dict[str, Any]] = {"events": dict(EVENTS), "items": {"item_id": ["x", "y"]}}
    columns[table][column] = values
    events, items = (write(tmp_path / f"{name}.parquet", columns[name]) for name in ("events", "items"))
    assert run(tmp_path / "data", "parquet", "--events", events, "--items", items) == 2
    error = capsys.readouterr().err
    assert f"{table}.parquet: column {column} is {str(values.type).split('<')[0]}<" in error and error.count("\n") == 1
    assert not (tmp_path / "data").exists()


def test_attributes_that_no_attribute_can_hold_are_left_out_with_a_note(tmp_path: Path) -> None:
    items = {
        "item_id": ["x", "y"],
        "categories": pa.array([["a", "b"], ["c", "a"]], pa.list_(pa.string(), 2)),
        "sizes": pa.array([[1, 2], [3, 4]], pa.list_(pa.int64(), 2)),
        "brand": ["B", None],
        "maker": STRUCT,
        "tags": pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int64())),
        "huge": pa.array([2**63, 1], pa.uint64()),
    }
    events = write(tmp_path / "events.parquet", EVENTS)
    assert run(tmp_path / "data", "parquet", "--events", events, "--items", write(tmp_path / "items.parquet", items)) == 0
    assert items_of(tmp_path / "data")[0] == {
        "item_id": "x",
        "text": "",
        "categories": ["a", "b"],
        "sizes": ["1", "2"],
        "brand": "B",
    }
    notes = info(tmp_path / "data")["notes"]
    assert isinstance(notes, dict)
    found = notes["attributes that cannot be kept"]
    assert found["count"] == 3 and found["examples"][2] == {"column": "huge", "type": "uint64"}


def test_a_price_in_float32_keeps_its_digits(tmp_path: Path) -> None:
    prices = [19.99, None, 1e-30, float("inf")]
    items = {"item_id": ["x", "y", "z", "w"], "price": pa.array(prices, pa.float32())}
    events = write(tmp_path / "events.parquet", EVENTS)
    assert run(tmp_path / "data", "parquet", "--events", events, "--items", write(tmp_path / "items.parquet", items)) == 0
    assert [row["price"] for row in items_of(tmp_path / "data")] == prices


def test_a_picture_beside_each_item_is_left_out_with_a_note_and_the_items_stay(tmp_path: Path) -> None:
    items = {
        "item_id": pa.array([b"x", b"y"]),
        "picture": pa.array([b"\x89PNG", None], pa.binary()),
        "brand": pa.array([b"B", "Ä".encode()]),
    }
    events = write(tmp_path / "events.parquet", EVENTS)
    assert run(tmp_path / "data", "parquet", "--events", events, "--items", write(tmp_path / "items.parquet", items)) == 0
    assert [(row["item_id"], row["brand"]) for row in items_of(tmp_path / "data")] == [("x", "B"), ("y", "Ä")]
    assert "picture" not in items_of(tmp_path / "data")[0] and info(tmp_path / "data")["rejected"] == {}
    notes = info(tmp_path / "data")["notes"]
    assert isinstance(notes, dict)
    assert notes["attributes that cannot be kept"]["examples"] == [{"column": "picture", "type": "binary"}]


def test_a_column_with_a_name_of_the_bundles_own_is_not_left_out_in_silence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = "sku,item_id,title,text,genres,categories,popularity,price\nx,1,A,long,g,c,9,2\n"
    named = ["--columns", "item_id=sku", "text=title", "categories=genres"]
    data = csv_import(tmp_path, "sku,user,ts\nx,a,1700000000\n", items, *named)
    assert items_of(data) == [{"item_id": "x", "text": "A", "categories": ["g"], "title": "A", "price": 2}]
    notes = info(data)["notes"]
    assert isinstance(notes, dict)
    assert notes["attributes that cannot be kept"]["count"] == 4
    assert "such as column item_id, reason a bundle has one of its own; rename it to keep it" in capsys.readouterr().out


def test_a_parquet_file_with_one_name_twice_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pa.table([pa.array(["a"]), pa.array(["x"]), pa.array(["z"]), pa.array([1])], ["user", "item", "item", "time"])
    pq.write_table(table, tmp_path / "events.parquet")
    assert run(tmp_path / "data", "parquet", "--events", tmp_path / "events.parquet") == 2
    assert "events.parquet: two columns have one name; it has user, item, item, time" in capsys.readouterr().err


@pytest.mark.parametrize("stamps", [["20240115", "20240229"], [20240115, 20240229], ["20240115.0", "20240229"]])
def test_a_column_of_eight_digits_that_are_all_dates_is_read_as_dates(tmp_path: Path, stamps: list[Any]) -> None:
    events = write(tmp_path / "events.parquet", EVENTS | {"time": stamps})
    assert run(tmp_path / "data", "parquet", "--events", events) == 0
    times = [row["occurred_at"] for row in events_of(tmp_path / "data")]
    assert times == [datetime(2024, 1, 15, tzinfo=UTC), datetime(2024, 2, 29, tzinfo=UTC)]


def test_eight_digits_that_are_not_all_dates_are_seconds_and_early_times_are_noted(tmp_path: Path) -> None:
    data = csv_import(tmp_path, "user,item,ts\na,x,20240115\na,y,20240230\na,z,1700000000\n")
    assert [row["occurred_at"].year for row in events_of(data)] == [1970, 1970, 2023]
    notes = info(data)["notes"]
    assert isinstance(notes, dict)
    example = {"user_id": "a", "occurred_at": "1970-08-23T06:15:15+00:00"}
    assert notes[survey.EARLY]["count"] == 2 and notes[survey.EARLY]["examples"][0] == example


def test_a_pattern_may_match_folders(tmp_path: Path) -> None:
    for day in (1, 2):
        (tmp_path / f"day={day}").mkdir()
        write(tmp_path / f"day={day}" / "part.parquet", EVENTS | {"time": [day, day + 10]})
    assert run(tmp_path / "data", "parquet", "--events", tmp_path / "day=*") == 0
    assert len(events_of(tmp_path / "data")) == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["csv", "--events", "a**b"], "a**b: no such file, and no pattern"),
        (["csv", "--events", "events.csv", "--items", "folder"], "folder: is a directory; give a file"),
        (["amazon", "folder"], "folder: is a directory; give a file"),
        (["amazon", "events.csv", "--attributes", "folder"], "folder: is a directory; give a file"),
        (["csv", "--events", "semicolons.csv"], "it has user;item;ts; import csv takes --delimiter ';'"),
        (["csv", "--events", os.fsdecode(b"\xff.csv")], "the name is not UTF-8; rename it"),
        (["csv", "--events", "named"], "the name is not UTF-8; rename it"),
        (["amazon", os.fsdecode(b"\xff.csv")], "the name is not UTF-8; rename it"),
    ],
)
def test_a_path_that_cannot_be_read_ends_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("folder", "named"):
        Path(folder).mkdir()
    Path("events.csv").write_text("user,item,ts\na,x,1\n")
    Path("semicolons.csv").write_text("user;item;ts\na;x;1\n")
    for name in ("named/", ""):
        Path(name + os.fsdecode(b"\xff.csv")).write_text("user,item,ts\na,x,1\n")
    assert run(Path("data"), *arguments) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not Path("data").exists()


def test_a_data_set_whose_name_is_not_utf_8_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = write(tmp_path / "events.parquet", EVENTS)
    assert run(tmp_path / os.fsdecode(b"\xff"), "parquet", "--events", events) == 2
    assert "the name is not UTF-8; choose another" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["events.parquet"]


def test_amazon_attributes_with_half_a_character_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_text("1 10 11\n")
    (tmp_path / "a.json").write_text('{"\\ud800": [1], "10": ["\\udfff"], "11": ["ok"], "12": [1.5], "": [1]}')
    assert run(tmp_path / "data", "amazon", tmp_path / "s.txt", "--attributes", tmp_path / "a.json") == 0
    reasons = [row["reason"] for row in rejects_of(tmp_path / "data")]
    assert reasons[:2] == ["not UTF-8", "not UTF-8"] and len(reasons) == 4
    assert {row["item_id"]: row["categories"] for row in items_of(tmp_path / "data")} == {"10": [], "11": ["ok"]}


def test_a_failed_import_leaves_none_of_the_folders_that_it_made(tmp_path: Path) -> None:
    (tmp_path / "q").mkdir()
    (tmp_path / "events.csv").write_text("user,item,ts\n,x,1\n")
    assert run(tmp_path / "q" / "r" / "s", "csv", "--events", tmp_path / "events.csv") == 2
    assert list((tmp_path / "q").iterdir()) == []
