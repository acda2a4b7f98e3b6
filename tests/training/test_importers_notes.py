"""Bad data is told of with counts and examples: what is rejected, and what is kept although it looks odd."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.training.conftest import info
from training.cli import main
from training.data.dataset import read_dataset
from training.importers import rejects, survey

HEAD = "user_id,item_id,event_type,timestamp\n"


def imported(folder: Path, events: str, items: str | None = None) -> Path:
    (folder / "events.csv").write_text(events, encoding="utf-8")
    arguments = ["import", "csv", "--events", str(folder / "events.csv"), "--out", str(folder / "data")]
    if items is not None:
        (folder / "items.csv").write_text(items, encoding="utf-8")
        arguments += ["--items", str(folder / "items.csv")]
    assert main(arguments) == 0
    return folder / "data"


def notes(data: Path) -> dict[str, Any]:
    found = info(data)["notes"]
    assert isinstance(found, dict)
    return found


def test_rows_that_come_after_a_later_one_of_their_user_are_sorted_and_counted(tmp_path: Path) -> None:
    data = imported(tmp_path, HEAD + "a,x,view,30\nb,x,view,5\na,y,view,10\na,z,view,40\nb,y,view,6\na,w,view,20\n")
    assert read_dataset(data).events["occurred_at"].cast(pa.int64()).to_pylist() == [n * 10**6 for n in (10, 20, 30, 40, 5, 6)]
    found = notes(data)[survey.UNORDERED]
    assert found == {"count": 1, "examples": [{"user_id": "a", "table": "events", "row": 6}]}  # 20 stands after 30 and 40


def test_a_reversed_source_is_out_of_order_in_all_rows_but_each_users_last(tmp_path: Path) -> None:
    rows = "".join(f"{user},x{time},view,{time}\n" for time in range(9, 0, -1) for user in "ab")
    assert notes(imported(tmp_path, HEAD + rows))[survey.UNORDERED]["count"] == 16


def test_users_with_a_single_event_are_counted_with_three_examples(tmp_path: Path) -> None:
    rows = "".join(f"{user},x,view,1\n" for user in "abcd") + "e,x,view,1\ne,x,view,2\n"
    data = imported(tmp_path, HEAD + rows)
    assert notes(data)[survey.SINGLE] == {"count": 4, "examples": [{"user_id": name} for name in "abc"]}


def test_items_without_text_and_items_without_events_are_counted(tmp_path: Path) -> None:
    items = "item_id,title\nx,Xylophone\ny,\nz,   \nw,Whistle\n"
    found = notes(imported(tmp_path, HEAD + "a,x,view,1\na,y,view,2\n", items))
    assert found[survey.NO_TEXT] == {"count": 2, "examples": [{"item_id": "y"}, {"item_id": "z"}]}
    assert found[survey.NO_EVENTS] == {"count": 2, "examples": [{"item_id": "z"}, {"item_id": "w"}]}


def test_users_with_very_many_events_are_named_with_how_many(tmp_path: Path) -> None:
    busy = "".join(f"robot,x,view,{time}\n" for time in range(1, 1202))
    people = "".join(f"p{person},x,view,{time}\n" for person in range(9) for time in range(1, 12))
    found = notes(imported(tmp_path, HEAD + busy + people))
    assert found[survey.MANY] == {"count": 1, "examples": [{"user_id": "robot", "events": 1201}]}
    few = notes(imported(tmp_path, HEAD + busy))  # who alone is there is no more than usual
    assert survey.MANY not in few


def test_events_of_one_user_at_one_instant_are_counted_and_keep_the_sources_order(tmp_path: Path) -> None:
    data = imported(tmp_path, HEAD + "a,z,view,7\na,y,view,7\na,x,view,7\nb,x,view,7\na,x,view,8\n")
    assert read_dataset(data).events["item_id"].to_pylist() == ["z", "y", "x", "x", "x"]
    example = {"user_id": "a", "occurred_at": "1970-01-01T00:00:07+00:00"}
    assert notes(data)[survey.INSTANT] == {"count": 2, "examples": [example]}


def test_the_summary_shows_each_note_with_its_count_and_an_example(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    imported(tmp_path, HEAD + "a,x,view,30\na,y,view,10\n")
    printed = capsys.readouterr().out
    assert "kept, but look at" in printed
    assert "1   events out of order in the source, such as user_id a, table events, row 2" in printed


def test_clean_data_has_no_notes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = imported(tmp_path, HEAD + "a,x,view,1700000000\na,y,view,1700000001\n", "item_id,title\nx,X\ny,Y\n")
    assert notes(data) == {}
    assert "look at" not in capsys.readouterr().out


def test_ids_and_times_that_are_nan_infinite_or_empty_are_rejected_in_a_csv(tmp_path: Path) -> None:
    rows = [
        "nan,x,view,1",
        "a,NULL,view,1",
        "  ,x,view,1",
        "inf,x,view,1",
        "a,x,view,inf",
        "a,x,view,NaN",
        "a,x,view,",
        "nancy,x,view,1",
    ]
    data = imported(tmp_path, HEAD + "\n".join(rows) + "\n")
    assert info(data)["rejected"] == {
        "time unreadable or outside 1969-2100": 3,
        "user_id is nan, inf, null or none": 2,
        "item_id is nan, inf, null or none": 1,
        "user_id missing": 1,
    }
    assert read_dataset(data).events["user_id"].to_pylist() == ["nancy"]


def test_ids_and_times_that_are_nan_infinite_or_null_are_rejected_in_parquet(tmp_path: Path) -> None:
    nan, infinite = float("nan"), float("inf")
    table = pa.table(
        {
            "user": pa.array([1.0, nan, infinite, None, 1.0, 1.0, 1.0, 1.0]),
            "item": pa.array([1.0, 1.0, 1.0, 1.0, nan, 2.0, 2.0, 2.0]),
            "time": pa.array([1.0, 1.0, 1.0, 1.0, 1.0, nan, -infinite, None]),
        }
    )
    pq.write_table(table, tmp_path / "events.parquet")
    assert main(["import", "parquet", "--events", str(tmp_path / "events.parquet"), "--out", str(tmp_path / "data")]) == 0
    assert info(tmp_path / "data")["rejected"] == {
        "user_id missing": 3,
        "time unreadable or outside 1969-2100": 3,
        "item_id missing": 1,
    }


def test_dates_that_do_not_exist_are_rejected_with_an_example(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = "a,x,view,2024-02-30T10:00:00\na,x,view,31.12.2024\na,x,view,2024-13-01\na,x,view,2024-02-29T10:00:00\n"
    data = imported(tmp_path, HEAD + rows)
    assert info(data)["rejected"] == {"time unreadable or outside 1969-2100": 3}
    assert "2024-02-30T10:00:00" in capsys.readouterr().out


def test_duplicates_are_counted_with_the_first_one_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = imported(tmp_path, HEAD + "a,x,view,9\nb,x,view,1\na,x,view,9\na,x,cart,9\na,x,view,9\n")
    assert info(data)["rejected"] == {"duplicate of an earlier row": 2}
    assert "duplicate of an earlier row, such as events row 3" in capsys.readouterr().out
    assert read_dataset(data).events.num_rows == 3


def test_bytes_of_parquet_that_are_not_utf_8_are_rejected(tmp_path: Path) -> None:
    users = pa.array([b"a", b"\xff", None], pa.binary())
    pq.write_table(pa.table({"user": users, "item": ["x"] * 3, "ts": [1, 2, 3]}), tmp_path / "events.parquet")
    assert main(["import", "parquet", "--events", str(tmp_path / "events.parquet"), "--out", str(tmp_path / "data")]) == 0
    assert info(tmp_path / "data")["rejected"] == {"not UTF-8": 1, "user_id missing": 1}


def test_of_a_reason_with_very_many_rows_all_are_counted_and_the_first_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rejects, "MOST_WRITTEN", 3)
    data = imported(tmp_path, HEAD + ",x,view,1\n" * 10 + "a,,view,1\na,x,view,1\n")
    assert info(data)["rejected"] == {"user_id missing": 10, "item_id missing": 1}
    assert len((data / "rejects.jsonl").read_text().splitlines()) == 4
    assert "rejects.jsonl, which has the first" in capsys.readouterr().out
