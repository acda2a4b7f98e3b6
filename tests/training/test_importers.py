"""Importers: what is understood, what is rejected, and what ends an import."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.cli import main
from training.data.dataset import read_dataset
from training.errors import DatasetError
from training.importers.flow import import_tables

EVENTS = "user_id,item_id,event_type,timestamp\n"


def run(out: Path, *arguments: object) -> int:
    return main(["import", *map(str, arguments), "--out", str(out)])


def csv_import(folder: Path, events: str, items: str | None = None, *more: str) -> Path:
    (folder / "events.csv").write_text(events, encoding="utf-8")
    arguments: list[object] = ["csv", "--events", folder / "events.csv", *more]
    if items is not None:
        (folder / "items.csv").write_text(items, encoding="utf-8")
        arguments += ["--items", folder / "items.csv"]
    assert run(folder / "data", *arguments) == 0
    return folder / "data"


def events_of(data: Path) -> list[dict[str, Any]]:
    return list(read_dataset(data).events.table().to_pylist())


def items_of(data: Path) -> list[dict[str, Any]]:
    return read_dataset(data).items.to_pylist()


def rejects_of(data: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (data / "rejects.jsonl").read_text(encoding="utf-8").splitlines()]


def test_csv_events_come_out_sorted_by_user_and_time_with_equal_times_in_source_order(tmp_path: Path) -> None:
    rows = "b,x,view,30\na,y,view,20\nb,z,view,10\na,w,view,20\na,v,view,5\n"
    data = csv_import(tmp_path, EVENTS + rows)
    assert [(row["user_id"], row["item_id"]) for row in events_of(data)] == [
        ("a", "v"),
        ("a", "y"),
        ("a", "w"),
        ("b", "z"),
        ("b", "x"),
    ]
    assert (data / "rejects.jsonl").read_text() == ""


@pytest.mark.parametrize(
    "value",
    [
        "1700000000",
        "1700000000000",
        "1700000000000000",
        "1700000000000000000",
        "1700000000.0",
        "2023-11-14T22:13:20Z",
        "2023-11-14 22:13:20",
        "2023-11-14T23:13:20+01:00",
        "2023-11-14T22:13:20.000000",
    ],
)
def test_times_are_read_as_unix_seconds_to_nanoseconds_or_iso(tmp_path: Path, value: str) -> None:
    data = csv_import(tmp_path, EVENTS + f"a,x,view,{value}\n")
    assert events_of(data)[0]["occurred_at"] == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)


def test_bad_rows_are_left_out_and_written_to_rejects_with_row_and_reason(tmp_path: Path) -> None:
    rows = [
        "a,x,view,100",
        ",x,view,100",
        "a,,view,100",
        f"{'u' * 257},x,view,100",
        f"a,{'é' * 129},view,100",
        "a,x,two words,100",
        "a,x,,100",
        "a,x,view,soon",
        "a,x,view,nan",
        "a,x,view,",
        "a,x,view,9999999999",
        "a,x,view,100",
        "a,x,view",
        "a,x,view,100,more",
        "a\0,x,view,100",
        "b,y,Cart,200",
    ]
    data = csv_import(tmp_path, EVENTS + "\n".join(rows) + "\n")
    found = {row["row"]: row["reason"] for row in rejects_of(data)}
    assert found == {
        2: "user_id missing",
        3: "item_id missing",
        4: "user_id over 256 bytes",
        5: "item_id over 256 bytes",
        6: "event_type malformed",
        7: "event_type malformed",
        8: "time unreadable or outside 1969-2100",
        9: "time unreadable or outside 1969-2100",
        10: "time unreadable or outside 1969-2100",
        11: "time unreadable or outside 1969-2100",
        12: "duplicate of an earlier row",
        13: "wrong number of fields",
        14: "wrong number of fields",
        15: "user_id with a NUL character",
    }
    assert events_of(data)[1]["event_type"] == "cart"
    assert [(row["user_id"], row["item_id"]) for row in events_of(data)] == [("a", "x"), ("b", "y")]
    info = json.loads((data / "dataset.json").read_text())
    assert info["counts"]["events"] == 2
    assert info["rejected"]["time unreadable or outside 1969-2100"] == 4
    assert sum(info["rejected"].values()) == len(rows) - 2


def test_a_row_that_is_not_utf_8_is_rejected_and_the_others_stay(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_bytes(EVENTS.encode() + b"a,x,view,1\nb,\xff\xfe,view,2\nc,y,view,3\n")
    assert run(tmp_path / "data", "csv", "--events", tmp_path / "events.csv") == 0
    assert [row["user_id"] for row in events_of(tmp_path / "data")] == ["a", "c"]
    assert [(row["row"], row["reason"]) for row in rejects_of(tmp_path / "data")] == [(2, "not UTF-8")]


def test_the_summary_counts_events_users_items_types_and_shows_an_example_of_each_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    csv_import(tmp_path, EVENTS + "a,x,view,1\na,y,cart,2\nb,x,view,3\n,x,view,4\n")
    printed = capsys.readouterr().out
    for words in ("events               3", "view 2, cart 1", "1 with a single event", "user_id missing, such as events row 4"):
        assert words in printed


def test_spaces_around_the_names_in_a_header_do_not_count(tmp_path: Path) -> None:
    items = "item_id, categories, price ,\tstock\nx,red|blue,1.5,3\ny,red,2,4,5\n"
    data = csv_import(tmp_path, " user_id, item ,ts\na,x,100\na,x\n", items, "--columns", "item_id=item")
    assert items_of(data) == [{"item_id": "x", "text": "", "categories": ["red", "blue"], "price": 1.5, "stock": 3}]
    assert [(row["table"], row["row"]) for row in rejects_of(data)] == [("items", 2), ("events", 2)]


def test_usual_column_names_are_found_and_others_can_be_named(tmp_path: Path) -> None:
    data = csv_import(tmp_path, "timestamp,visitorid,event,itemid\n5,a,view,x\n")
    assert events_of(data)[0]["user_id"] == "a"
    data = csv_import(tmp_path, "wann,wer,was\n5,a,x\n", None, "--columns", "user_id=wer", "item_id=was", "occurred_at=wann")
    assert events_of(data)[0] == {
        "user_id": "a",
        "item_id": "x",
        "event_type": "view",
        "occurred_at": datetime(1970, 1, 1, 0, 0, 5, tzinfo=UTC),
    }


def test_items_take_title_as_text_split_categories_and_keep_the_rest_as_typed_attributes(tmp_path: Path) -> None:
    items = (
        "item_id,title,categories,year,price,available,note\n"
        'x,"A, quoted",red| blue|red|,1999,1.5,true,007\n'
        "y,,,2001,2,False,abc\n"
        "x,again,red,1,1,true,\n"
        ",nameless,red,1,1,true,\n"
    )
    data = csv_import(tmp_path, EVENTS + "a,x,view,1\na,z,view,2\n", items)
    first, second = items_of(data)
    assert first == {
        "item_id": "x",
        "text": "A, quoted",
        "categories": ["red", "blue"],
        "title": "A, quoted",
        "year": 1999,
        "price": 1.5,
        "available": True,
        "note": "007",
    }
    assert second["text"] == "" and second["categories"] == []
    reasons = [(row["table"], row["row"], row["reason"]) for row in rejects_of(data)]
    assert reasons == [
        ("items", 3, "item_id repeated"),
        ("items", 4, "item_id missing"),
        ("events", 2, "item not in the items file"),
    ]


def test_categories_are_split_at_commas_where_that_is_asked_for_and_else_a_note_says_that_they_were_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events, items = EVENTS + "a,x,view,1\n", 'item_id,categories\nx,"red, blue"\ny,red\nz,\n'
    data = csv_import(tmp_path, events, items)
    assert [row["categories"] for row in items_of(data)] == [["red, blue"], ["red"], []]
    said = "1   categories with commas, at which --category-separator ',' would split them, such as categories red, blue"
    assert said in capsys.readouterr().out
    data = csv_import(tmp_path, events, items, "--category-separator", ",")
    assert [row["categories"] for row in items_of(data)] == [["red", "blue"], ["red"], []]
    assert "with commas" not in capsys.readouterr().out
    data = csv_import(tmp_path, events, items + 'w,"home, garden|tools"\n')
    assert items_of(data)[3]["categories"] == ["home, garden", "tools"]
    assert "with commas" not in capsys.readouterr().out
    assert run(data, "csv", "--events", tmp_path / "events.csv", "--category-separator", "") == 2
    assert "--category-separator: is empty" in capsys.readouterr().err


def test_without_an_items_file_the_items_are_those_of_the_events(tmp_path: Path) -> None:
    data = csv_import(tmp_path, EVENTS + "a,y,view,1\na,x,view,2\nb,y,view,2\n")
    assert items_of(data) == [{"item_id": name, "text": "", "categories": []} for name in ("x", "y")]


def test_parquet_takes_integer_ids_timestamps_and_lists_of_categories(tmp_path: Path) -> None:
    events = pa.table(
        {
            "user": pa.array([2, 1, None], pa.int64()),
            "item": pa.array([10.0, 11.0, 10.0]),
            "ts": pa.array([datetime(2024, 5, 1), datetime(2024, 5, 2), datetime(2024, 5, 3)]),
        }
    )
    items = pa.table(
        {
            "id": pa.array([10, 11]),
            "name": ["ten", None],
            "tags": pa.array([["a", "b"], None], pa.list_(pa.string())),
            "weight": pa.array([1.5, None]),
        }
    )
    pq.write_table(events, tmp_path / "events.parquet")
    pq.write_table(items, tmp_path / "items.parquet")
    arguments = ["parquet", "--events", tmp_path / "events.parquet", "--items", tmp_path / "items.parquet"]
    assert run(tmp_path / "data", *arguments) == 0
    rows = events_of(tmp_path / "data")
    assert [(row["user_id"], row["item_id"]) for row in rows] == [("1", "11"), ("2", "10")]
    assert rows[0]["occurred_at"] == datetime(2024, 5, 2, tzinfo=UTC)
    assert items_of(tmp_path / "data") == [
        {"item_id": "10", "text": "ten", "categories": ["a", "b"], "name": "ten", "weight": 1.5},
        {"item_id": "11", "text": "", "categories": [], "name": None, "weight": None},
    ]


def test_amazon_sequences_become_ordinal_views_with_attributes_as_categories(tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_text("1 10 11 12\n\n2 11\n3\n1 9\n4 10 10\n")
    (tmp_path / "a.json").write_text('{"10": [3, 1], "11": [], "13": ["x"], "12": "no list"}')
    arguments = ["amazon", tmp_path / "s.txt", "--attributes", tmp_path / "a.json"]
    assert run(tmp_path / "data", *arguments) == 0
    data = tmp_path / "data"
    assert [(row["user_id"], row["item_id"], row["occurred_at"].second) for row in events_of(data)] == [
        ("1", "10", 0),
        ("1", "11", 1),
        ("1", "12", 2),
        ("2", "11", 0),
        ("4", "10", 0),
        ("4", "10", 1),
    ]
    assert {row["item_id"]: row["categories"] for row in items_of(data)} == {
        "10": ["3", "1"],
        "11": [],
        "12": [],
        "13": ["x"],
    }
    assert json.loads((data / "dataset.json").read_text())["times"] == "ordinal"
    reasons = sorted(row["reason"] for row in rejects_of(data))
    assert reasons == [
        "attributes are not a list of numbers or strings",
        "empty line",
        "user without items",
        "user_id repeated",
    ]


@pytest.mark.parametrize(
    ("events", "items", "more", "words"),
    [
        ("user_id,timestamp\na,1\n", None, [], "no column for item_id"),
        ("user_id,item_id\na,x\n", None, [], "no column for occurred_at"),
        (EVENTS, None, [], "holds no rows"),
        ("", None, [], "no header line"),
        (EVENTS + ",,,\n", None, [], "no usable event is left (1 user_id missing)"),
        (EVENTS + 'a,"x,view,1\nb,y,view,2\n', None, [], "row 1 opens a quote that is never closed"),
        (EVENTS + "a,x,view\n", None, [], "no usable event is left (1 wrong number of fields)"),
        (EVENTS + "a,x,view,1\n", "title\nsome\n", [], "no column for item_id"),
        (EVENTS + "a,x,view,1\n", None, ["--columns", "user_id=who"], "there is no column who"),
        (EVENTS + "a,x,view,1\n", None, ["--columns", "usr=who"], "--columns usr=who"),
        ("user_id,user_id,item_id,ts\na,b,x,1\n", None, [], "two columns have one name"),
    ],
)
def test_a_structural_fault_ends_the_import_with_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], events: str, items: str | None, more: list[str], words: str
) -> None:
    (tmp_path / "events.csv").write_text(events)
    arguments: list[object] = ["csv", "--events", tmp_path / "events.csv", *more]
    if items is not None:
        (tmp_path / "items.csv").write_text(items)
        arguments += ["--items", tmp_path / "items.csv"]
    assert run(tmp_path / "data", *arguments) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not (tmp_path / "data" / "dataset.json").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["csv", "--events", "missing.csv"],
        ["parquet", "--events", "missing.parquet"],
        ["amazon", "missing.txt"],
    ],
)
def test_a_missing_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert run(tmp_path / "data", *arguments) == 2
    assert arguments[-1] in capsys.readouterr().err


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "events.parquet").write_text("no parquet")
    assert run(tmp_path / "data", "parquet", "--events", tmp_path / "events.parquet") == 2
    assert "not readable as parquet" in capsys.readouterr().err


def test_a_torn_data_set_is_refused(planted: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="is missing"):
        read_dataset(tmp_path)
    for name in ("items.parquet", "dataset.json"):
        (tmp_path / name).write_bytes((planted / name).read_bytes())
    (tmp_path / "events.parquet").write_bytes((planted / "events.parquet").read_bytes()[:1000])
    with pytest.raises(DatasetError, match="cannot be read"):
        read_dataset(tmp_path)
    pq.write_table(pa.table({"user_id": ["a"]}), tmp_path / "events.parquet")
    with pytest.raises(DatasetError, match="column item_id is missing"):
        read_dataset(tmp_path)


def test_a_data_set_cannot_be_written_over_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "events.csv").write_text(EVENTS + "a,x,view,1\n")
    (tmp_path / "data").write_text("a file")
    assert run(tmp_path / "data", "csv", "--events", tmp_path / "events.csv") == 2
    assert "data: File exists" in capsys.readouterr().err


def test_events_of_a_servers_journal_keep_their_watermark(tmp_path: Path):
    table = pa.table({"user_id": ["a"], "item_id": ["x"], "occurred_at": pa.array([datetime(2024, 1, 1, tzinfo=UTC)])})
    pq.write_table(table.replace_schema_metadata({"towerbridge.journal": "e1:77"}), tmp_path / "events.parquet")
    import_tables(tmp_path / "data", "parquet", [tmp_path / "events.parquet"], None, [])
    assert read_dataset(tmp_path / "data").info["watermark"] == {"epoch": "e1", "position": 77}
    pq.write_table(table, tmp_path / "other.parquet")
    import_tables(tmp_path / "data", "parquet", [tmp_path / "other.parquet"], None, [])
    assert "watermark" not in read_dataset(tmp_path / "data").info
    pq.write_table(table.replace_schema_metadata({"towerbridge.journal": "77"}), tmp_path / "bad.parquet")
    with pytest.raises(DatasetError, match="not epoch:position"):
        import_tables(tmp_path / "data", "parquet", [tmp_path / "bad.parquet"], None, [])


def test_files_of_a_data_sets_names_that_are_none_are_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "events.parquet"
    table = pa.table({"user_id": ["ann"], "item_id": ["tea"], "timestamp": [1767225600], "revenue": [3.5]})
    pq.write_table(table, source)
    before = source.read_bytes()
    assert run(tmp_path, "parquet", "--events", source) == 2
    assert "its events.parquet is not of a data set" in capsys.readouterr().err
    assert source.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["events.parquet"]
    for _ in range(2):  # a data set may be
        assert run(tmp_path / "data", "parquet", "--events", source) == 0


def test_an_import_that_was_cut_off_while_it_replaced_a_data_set_can_be_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = csv_import(tmp_path, EVENTS + "ann,tea,view,1767225600\n")
    (data / "items.parquet").unlink()
    (data / "items.parquet").mkdir()  # which no file can replace
    assert run(data, "csv", "--events", tmp_path / "events.csv") == 2
    (data / "items.parquet").rmdir()
    pq.write_table(pa.table({"item_id": ["of the one before"]}), data / "items.parquet")
    with pytest.raises(DatasetError, match=r"cannot be read .* again"):
        read_dataset(data)
    assert run(data, "csv", "--events", tmp_path / "events.csv") == 0
    assert [row["item_id"] for row in items_of(data)] == ["tea"]


def test_words_for_the_time_of_the_import_are_no_times(tmp_path: Path) -> None:
    rows = "user,item,timestamp\nann,tea,1767225600\nann,cup,now\nann,pot,today\nann,tin,2026-01-02T00:00:00\n"
    assert [row["item_id"] for row in events_of(csv_import(tmp_path, rows))] == ["tea", "tin"]
