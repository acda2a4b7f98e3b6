"""Events that do not fit into memory: read in pieces, sorted on disk, mapped for training; several files are one table."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.training.conftest import info
from training.cli import main
from training.data import dataset, interactions, spill
from training.data.dataset import read_dataset
from training.data.distinct import Distinct
from training.data.interactions import Interactions, first_interactions, load_interactions, next_new_item
from training.errors import DatasetError
from training.importers import csv_rows, sorting, tables
from training.importers.events import NUMBERED_SCHEMA
from training.importers.sorting import EventSorter

ROOT = Path(__file__).parents[2]
CHILD = """
import resource, sys
from pathlib import Path
from training.data import spill
from training.data import dataset
from training.data.dataset import read_dataset
from training.importers import sorting, tables
from training.importers.flow import import_tables
from training.data.interactions import load_interactions
spill.IN_MEMORY_BYTES = 1 << 20
tables.ROWS_AT_ONCE = sorting.ROWS_AT_ONCE = dataset.EVENTS_AT_ONCE = 1 << 16
out = Path(sys.argv[2])
import_tables(out, "parquet", [Path(sys.argv[1])], None, [], sort_mib=64)
data = read_dataset(out)
events = len(load_interactions(data.events, data.items["item_id"]).item)
print(events, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def write_clicks(path: Path, rows: int) -> int:
    """Random clicks as parquet, out of order -> their size in memory in MiB."""
    random = np.random.default_rng(rows)
    size = 0
    with pq.ParquetWriter(path, pa.schema([("user", pa.string()), ("sku", pa.string()), ("ts", pa.int64())])) as writer:
        for _ in range(0, rows, 100_000):
            users = np.char.add("someone-with-a-long-identifier-", random.integers(0, rows // 20, 100_000).astype(str))
            items = np.char.add("item-with-a-long-identifier-", random.integers(0, 5000, 100_000).astype(str))
            times = random.integers(1_700_000_000, 1_710_000_000, 100_000)
            table = pa.table({"user": pa.array(users), "sku": pa.array(items), "ts": times})
            writer.write_table(table)
            size += table.nbytes
    return size >> 20


def test_four_times_as_many_events_take_hardly_more_memory(tmp_path: Path) -> None:
    few, many = 400_000, 1_600_000
    peaks, sizes = {}, {}
    environment = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"}  # gives memory back at once: steadier peaks
    for rows in (few, many):
        sizes[rows] = write_clicks(tmp_path / f"{rows}.parquet", rows)
        command = [sys.executable, "-c", CHILD, str(tmp_path / f"{rows}.parquet"), str(tmp_path / str(rows))]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=environment)
        events, peaks[rows] = map(int, done.stdout.split())
        assert events > 0.99 * rows
    # once in memory the events would take `sizes`, and what sorts them in memory holds them three times and more
    assert peaks[many] - peaks[few] < 0.5 * (sizes[many] - sizes[few])


def small_events(seed: int) -> list[dict[str, Any]]:
    """Few users, items and instants, so that there are duplicates and users that go on from batch to batch."""
    random = np.random.default_rng(seed)
    names = zip(random.integers(0, 6, 300), random.integers(0, 5, 300), random.integers(0, 25, 300), strict=True)
    return [{"user": f"u{user}", "item": f"i{item}", "ts": 1_700_000_000 + int(time)} for user, item, time in names]


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is done in pieces is done in tiny ones, and every array lies on disk."""
    monkeypatch.setattr(tables, "ROWS_AT_ONCE", 7)
    monkeypatch.setattr(sorting, "ROWS_AT_ONCE", 5)
    monkeypatch.setattr(dataset, "EVENTS_AT_ONCE", 3)
    monkeypatch.setattr(interactions, "EVENTS_AT_ONCE", 4)
    monkeypatch.setattr(spill, "IN_MEMORY_BYTES", 0)


def import_small(folder: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), folder / "events.parquet")
    assert main(["import", "parquet", "--events", str(folder / "events.parquet"), "--out", str(folder / "data")]) == 0
    return folder / "data"


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("seed", range(3))
def test_events_in_pieces_are_sorted_and_freed_of_duplicates_as_a_whole_would_be(tmp_path: Path, seed: int) -> None:
    rows = small_events(seed)
    data = import_small(tmp_path, rows)
    first: dict[tuple[Any, ...], int] = {}
    for number, row in enumerate(rows, start=1):
        first.setdefault(tuple(row.values()), number)
    expected = sorted(first, key=lambda row: (row[0], row[2], first[row]))
    found = read_dataset(data).events.table()
    assert list(zip(found["user_id"].to_pylist(), found["item_id"].to_pylist(), strict=True)) == [row[:2] for row in expected]
    rejected = [json.loads(line)["row"] for line in (data / "rejects.jsonl").read_text().splitlines()]
    assert sorted([*rejected, *first.values()]) == list(range(1, 301))
    counts = info(data)["counts"]
    assert isinstance(counts, dict)
    assert (counts["events"], counts["users"], counts["items"]) == (len(expected), 6, 5)


@pytest.mark.usefixtures("small_pieces")
def test_notes_do_not_depend_on_the_size_of_the_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = small_events(4)
    pieces = info(import_small(tmp_path, rows))
    monkeypatch.undo()
    assert info(import_small(tmp_path, rows)) == pieces


@pytest.mark.usefixtures("small_pieces")
def test_arrays_read_in_pieces_and_mapped_equal_those_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = read_dataset(import_small(tmp_path, small_events(5)))
    mapped = derive(load_interactions(data.events, data.items["item_id"]))
    assert mapped["item"].flags.writeable and not mapped["item"].flags.owndata
    monkeypatch.undo()
    held = derive(load_interactions(data.events.table(), data.items["item_id"]))
    for name, values in held.items():
        np.testing.assert_array_equal(mapped[name], values, err_msg=name)
        assert mapped[name].dtype == values.dtype


def derive(data: Interactions) -> dict[str, Any]:
    fields = {name: getattr(data, name) for name in ("item", "kind", "time_us", "offsets", "user")}
    train_end = data.offsets[1:] - np.arange(data.users) % 3
    return {**fields, "first": first_interactions(data), "next": next_new_item(data, train_end)}


def test_next_new_items_are_right_where_users_have_no_events() -> None:
    item = np.array([3, 3, 4, 5, 6], dtype=np.int64)
    data = Interactions(item, np.ones_like(item), np.arange(5), np.array([0, 0, 3, 3, 5, 5]), {"view": 1}, 9)
    assert next_new_item(data, data.offsets[1:]).tolist() == [4, 4, -1, 6, -1]


@pytest.mark.usefixtures("small_pieces")
def test_events_that_are_not_sorted_are_refused_wherever_a_piece_ends() -> None:
    times = pa.array([1, 2, 3, 2, 5, 6], pa.timestamp("us", tz="UTC"))
    for users, words in (("aaaaaa", "sorted by occurred_at"), ("aabcca", "sorted by user_id"), ("aaaabb", "occurred_at")):
        table = pa.table({"user_id": list(users), "item_id": ["x"] * 6, "event_type": ["view"] * 6, "occurred_at": times})
        with pytest.raises(DatasetError, match=words):
            load_interactions(table, pa.chunked_array([["x"]]))


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_the_unit_of_times_is_told_by_the_whole_column_and_not_by_a_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(csv_rows, "BLOCK_BYTES", 64)
    stamps = [5, 6, 7, 8, 9, 10, 11, 12, *range(1_700_000_000_000, 1_700_000_000_020)]  # milliseconds, the first from 1970
    table = pa.table({"user": ["a"] * 28, "item": ["x"] * 28, "ts": stamps})
    if kind == "csv":
        (tmp_path / "events.csv").write_text("user,item,ts\n" + "".join(f"a,x,{stamp}\n" for stamp in stamps))
    else:
        pq.write_table(table, tmp_path / "events.parquet")
    assert main(["import", kind, "--events", str(tmp_path / f"events.{kind}"), "--out", str(tmp_path / "data")]) == 0
    micros = read_dataset(tmp_path / "data").events["occurred_at"].cast(pa.int64()).to_pylist()
    assert micros == [stamp * 1000 for stamp in stamps]


def test_rows_of_a_csv_keep_their_numbers_where_torn_lines_lie_between_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_rows, "BLOCK_BYTES", 64)
    lines = [f"a,x,{row}" if row % 3 else f"a,x,{row},torn" for row in range(1, 60)]
    lines[9] = ",x,10"
    (tmp_path / "events.csv").write_text("user,item,ts\n" + "\n".join([*lines, ",x,60"]) + "\n")
    assert main(["import", "csv", "--events", str(tmp_path / "events.csv"), "--out", str(tmp_path / "data")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "data" / "rejects.jsonl").read_text().splitlines()]
    assert [row["row"] for row in rows if row["reason"] == "wrong number of fields"] == list(range(3, 60, 3))
    assert [row["row"] for row in rows if row["reason"] == "user_id missing"] == [10, 60]


def part(path: Path, users: list[str], start: int, watermark: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"user": users, "item": ["x"] * len(users), "ts": list(range(start, start + len(users)))})
    metadata = {} if watermark is None else {"towerbridge.journal": watermark}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return path


@pytest.mark.parametrize("how", ["directory", "pattern", "list"])
def test_several_files_are_one_table_and_bad_rows_name_their_file(
    tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "clicks"
    one = part(folder / "day=1" / "part-0.parquet", ["a", "b"], 1)
    two = part(folder / "day=2" / "part-0.parquet", ["a", "", "c"], 10)
    (folder / "_SUCCESS").write_text("")
    part(folder / "_temporary" / "part-0.parquet", ["nobody"], 1)
    paths = {"directory": [folder], "pattern": [folder / "day=*" / "*.parquet"], "list": [one, two]}[how]
    assert main(["import", "parquet", "--events", *map(str, paths), "--out", str(tmp_path / "data")]) == 0
    assert read_dataset(tmp_path / "data").events["user_id"].to_pylist() == ["a", "a", "b", "c"]
    row = json.loads((tmp_path / "data" / "rejects.jsonl").read_text())
    assert (row["file"], row["row"], row["reason"]) == (str(two), 2, "user_id missing")
    assert f"events row 2 of {two}" in capsys.readouterr().out


def test_different_values_of_a_column_come_in_the_order_of_their_first_rows() -> None:
    random = np.random.default_rng(0)
    values = [f"v{value}" for value in random.zipf(1.5, 500)]
    found = Distinct()
    for begin in range(0, 500, 9):
        found.see(pa.chunked_array([values[begin : begin + 9]]))
    assert found.finish().to_pylist() == list(dict.fromkeys(values))


def test_a_directory_without_files_of_the_kind_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    part(tmp_path / "clicks" / "a.parquet", ["a"], 1)
    assert main(["import", "csv", "--events", str(tmp_path / "clicks"), "--out", str(tmp_path / "data")]) == 2
    assert "has no file that ends in .csv or .csv.gz" in capsys.readouterr().err
    assert main(["import", "csv", "--events", str(tmp_path / "*.csv"), "--out", str(tmp_path / "data")]) == 2
    assert "*.csv: no such file" in capsys.readouterr().err


@pytest.mark.parametrize("other", ["e1:78", "e2:77", None])
def test_files_of_a_journal_need_one_watermark(tmp_path: Path, capsys: pytest.CaptureFixture[str], other: str | None) -> None:
    one, same = part(tmp_path / "1.parquet", ["a"], 1, "e1:77"), part(tmp_path / "2.parquet", ["b"], 1, "e1:77")
    assert main(["import", "parquet", "--events", str(one), str(same), "--out", str(tmp_path / "data")]) == 0
    assert info(tmp_path / "data")["watermark"] == {"epoch": "e1", "position": 77}
    different = part(tmp_path / "3.parquet", ["c"], 1, other)
    assert main(["import", "parquet", "--events", str(one), str(different), "--out", str(tmp_path / "more")]) == 2
    error = capsys.readouterr().err
    assert "not exported from one journal at one time" in error and "watermark e1:77" in error
    assert not (tmp_path / "more").exists()


def test_a_failed_import_leaves_nothing_and_an_older_data_set_whole(tmp_path: Path) -> None:
    good, bad = part(tmp_path / "good.parquet", ["a"], 1), part(tmp_path / "bad.parquet", ["", ""], 1)
    assert main(["import", "parquet", "--events", str(bad), "--out", str(tmp_path / "data")]) == 2
    assert not (tmp_path / "data").exists()
    assert main(["import", "parquet", "--events", str(good), "--out", str(tmp_path / "data")]) == 0
    assert main(["import", "parquet", "--events", str(bad), "--out", str(tmp_path / "data")]) == 2
    assert read_dataset(tmp_path / "data").events["user_id"].to_pylist() == ["a"]
    names = {path.name for path in (tmp_path / "data").iterdir()}
    assert names == {"events.parquet", "items.parquet", "dataset.json", "rejects.jsonl"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_sorting_ends_the_import_with_one_line_and_leaves_nothing(
    tmp_path: Path, number: signal.Signals
) -> None:
    write_clicks(tmp_path / "clicks.parquet", 1_000_000)
    child = "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "  # a background job ignores it
    child += "runpy.run_module('training', run_name='__main__')"
    arguments = ["import", "parquet", "--events", str(tmp_path / "clicks.parquet"), "--out", str(tmp_path / "data")]
    with subprocess.Popen([sys.executable, "-c", child, *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not list(tmp_path.glob("data/.import-*/events.parquet")):  # made when sorting begins
            time.sleep(0.01)
        process.send_signal(number)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error == "interrupted; nothing was written\n"
    assert not (tmp_path / "data").exists()


def test_what_cannot_be_sorted_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    sorter = EventSorter(tmp_path, 64)
    sorter.add(pa.Table.from_pylist([dict.fromkeys(NUMBERED_SCHEMA.names)], schema=NUMBERED_SCHEMA))
    sorter.close()
    (tmp_path / "unsorted.parquet").write_bytes(b"torn")
    with pytest.raises(DatasetError, match="free space where DATA lies, or give --sort-memory more"):
        list(sorter.batches())


def test_too_little_memory_for_sorting_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = part(tmp_path / "1.parquet", ["a"], 1)
    assert main(["import", "parquet", "--events", str(path), "--out", str(tmp_path / "data"), "--sort-memory", "1"]) == 2
    assert "give at least 64" in capsys.readouterr().err
