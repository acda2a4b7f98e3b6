"""RetailRocket and Online Retail as kinds of their own."""

import gzip
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.training.conftest import info
from training.cli import main
from training.data.dataset import read_dataset

HEAD = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n"


def rocket(folder: Path, text: str) -> Path:
    (folder / "events.csv").write_text(text)
    assert main(["import", "retailrocket", str(folder / "events.csv"), "--out", str(folder / "data")]) == 0
    return folder / "data"


def retail(folder: Path, lines: list[str], *, head: str = HEAD, name: str = "retail.csv", encoding: str = "utf-8") -> Path:
    content = (head + "\n".join(lines) + "\n").encode(encoding)
    (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert main(["import", "online-retail", str(folder / name), "--out", str(folder / "data")]) == 0
    return folder / "data"


def test_retailrocket_as_published_has_milliseconds_and_gets_the_services_event_types(tmp_path: Path) -> None:
    head = "timestamp,visitorid,event,itemid,transactionid\n"
    rows = (
        "1433221332117,257597,view,355908,\n1433222276276,257597,addtocart,355908,\n1433222276276,257597,transaction,355908,7\n"
    )
    data = rocket(tmp_path, head + rows)
    events = read_dataset(data).events.table().to_pylist()
    assert [row["event_type"] for row in events] == ["view", "cart", "purchase"]
    assert events[0]["user_id"] == "257597"
    assert events[0]["occurred_at"] == datetime(2015, 6, 2, 5, 2, 12, 117_000, UTC)
    assert info(data)["kind"] == "retailrocket"


def test_a_part_of_retailrocket_in_names_of_ones_own_is_read_as_well(tmp_path: Path) -> None:
    data = rocket(tmp_path, "timestamp,user,item,event\n1430623510,1176,6768,view\n1430623535,1176,6768,buy\n")
    assert read_dataset(data).events["event_type"].to_pylist() == ["view", "purchase"]


def test_online_retail_keeps_purchases_of_goods_by_known_customers_and_says_why_not_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        "1,85123A,LANTERN,6,2010-12-01 08:26:00,2.5,17850,United Kingdom",
        "1,71053,HOLDER ,6,2010-12-01 08:26:00,3.5,17850,United Kingdom",
        "1,71053,HOLDER,1,2010-12-01 08:26:00,3.5,17850,United Kingdom",
        "1,POST,POSTAGE,1,2010-12-01 08:26:00,18,17850,France",
        "2,71053,damaged,6,2010-12-02 08:26:00,3.5,,United Kingdom",
        "C3,71053,HOLDER,-6,2010-12-03 08:26:00,3.5,17850,United Kingdom",
        "4,71053,HOLDER,0,2010-12-03 08:26:00,3.5,17850,United Kingdom",
        "5,71053,HOLDER,2,soon,3.5,17850,United Kingdom",
        "6,71053,WHITE HOLDER,1,2010-12-04 10:00:00,4.5,17851.0,United Kingdom",
        "7,71053,WHITE HOLDER,1,2010-12-04 11:00:00,4.5,17851,United Kingdom",
    ]
    data = retail(tmp_path, lines)
    dataset = read_dataset(data)
    assert [tuple(row.values())[:3] for row in dataset.events.table().to_pylist()] == [
        ("17850", "85123A", "purchase"),
        ("17850", "71053", "purchase"),
        ("17851", "71053", "purchase"),
        ("17851", "71053", "purchase"),
    ]
    assert dataset.items.to_pylist() == [
        {"item_id": "71053", "text": "HOLDER", "categories": [], "description": "HOLDER", "price": 4.0},
        {"item_id": "85123A", "text": "LANTERN", "categories": [], "description": "LANTERN", "price": 2.5},
    ]
    assert info(data)["rejected"] == {
        "duplicate of an earlier row": 1,
        "no goods but postage, fees, vouchers and the like": 1,
        "user_id missing": 1,
        "cancelled invoice": 1,
        "quantity unreadable or not above 0": 1,
        "time unreadable or outside 1969-2100": 1,
    }
    assert "cancelled invoice, such as events row 6: {'InvoiceNo': 'C3'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("stamps", "first"),
    [
        (["12/1/2010 8:26", "12/13/2010 9:00"], datetime(2010, 12, 1, 8, 26, tzinfo=UTC)),
        (["12/1/10 8:26", "12/13/10 9:00"], datetime(2010, 12, 1, 8, 26, tzinfo=UTC)),
        (["01/12/2010 08:26", "13/12/2010 09:00"], datetime(2010, 12, 1, 8, 26, tzinfo=UTC)),
        (["01-12-2010 08:26", "13-12-2010 09:00"], datetime(2010, 12, 1, 8, 26, tzinfo=UTC)),
        (["40513.3513888889", "40525.375"], datetime(2010, 12, 1, 8, 26, tzinfo=UTC)),
    ],
)
def test_online_retail_takes_the_stamps_that_spreadsheets_write(tmp_path: Path, stamps: list[str], first: datetime) -> None:
    data = retail(tmp_path, [f"1,7105{place},HOLDER,6,{stamp},3,17850,France" for place, stamp in enumerate(stamps)])
    assert read_dataset(data).events["occurred_at"].to_pylist() == [first, datetime(2010, 12, 13, 9, tzinfo=UTC)]


def test_online_retail_is_read_gzipped_in_latin_1_and_with_the_second_editions_columns(tmp_path: Path) -> None:
    head = "Invoice,StockCode,Description,Quantity,InvoiceDate,Price,Customer ID,Country\n"
    lines = ["1,71053,VOUCHER £5,6,2010-12-01 08:26:00,3,17850.0,France"]
    data = retail(tmp_path, lines, head=head, name="retail.csv.gz", encoding="latin-1")
    assert read_dataset(data).items["text"].to_pylist() == ["VOUCHER £5"]
    assert read_dataset(data).events["user_id"].to_pylist() == ["17850"]


@pytest.mark.parametrize(
    ("kind", "words"), [("online-retail", "no column InvoiceNo or Invoice; it has a, b"), ("retailrocket", "it has a, b")]
)
def test_a_file_of_another_kind_ends_the_import_and_its_columns_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, words: str
) -> None:
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    assert main(["import", kind, str(tmp_path / "x.csv"), "--out", str(tmp_path / "data")]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not (tmp_path / "data").exists()


def test_a_torn_gzip_file_ends_the_import(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = "\n".join(f"1,{code},LAMP {code},1,2010-12-01 08:26:00,1,17850,France" for code in range(20_000, 29_000))
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress((HEAD + lines).encode())[:2000])
    assert main(["import", "online-retail", str(tmp_path / "x.csv.gz"), "--out", str(tmp_path / "data")]) == 2
    assert "not readable as csv" in capsys.readouterr().err
