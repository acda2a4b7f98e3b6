"""Stray quotes in a CSV: what they swallow is rejected or told of, never lost in silence."""

import gzip
from pathlib import Path
from typing import Any

import pytest

from tests.training.conftest import info
from tests.training.test_importers import csv_import, events_of, items_of, rejects_of, run

HEAD = "user_id,item_id,timestamp,event_type\n"
GOOD = "".join(f"u{row},g,{1_700_000_200 + row},view\n" for row in range(20))
SWALLOWED = "u1,a,1700000000,view\nu1,b,1700000100,{quote}oops\n" + GOOD + 'u1,c,1700000300,z"\nu1,d,1700000400,view\n'
MANY_LINES = "rows with line breaks inside quotes"


def notes(data: Path) -> dict[str, Any]:
    found = info(data)["notes"]
    assert isinstance(found, dict)
    return found


def test_an_event_with_a_line_break_in_a_field_that_is_read_is_rejected(tmp_path: Path) -> None:
    data = csv_import(tmp_path, HEAD + SWALLOWED.format(quote='"'))
    assert [(row["row"], row["reason"]) for row in rejects_of(data)] == [(2, "line break in a field")]
    assert [row["item_id"] for row in events_of(data)] == ["a", "d"]
    assert notes(data)[MANY_LINES] == {"count": 1, "examples": [{"table": "events", "row": 2, "lines": 22}]}


def test_line_breaks_in_columns_that_are_not_read_are_told_of_with_how_many_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = csv_import(tmp_path, HEAD.replace("event_type", "remark") + SWALLOWED.format(quote='"'))
    assert rejects_of(data) == [] and [row["item_id"] for row in events_of(data)] == ["a", "b", "d"]
    assert notes(data)[MANY_LINES] == {"count": 1, "examples": [{"table": "events", "row": 2, "lines": 22}]}
    assert f"1   {MANY_LINES}, such as table events, row 2, lines 22" in capsys.readouterr().out


def test_items_may_have_texts_of_several_lines_and_the_longest_ones_are_shown(tmp_path: Path) -> None:
    rows = [f'i{row},"one\n{"two" * (row % 2)}"\n' for row in range(6)]
    items = "item_id,title\n" + "".join(rows) + 'j,"' + "k,x\n" * 50 + '"\nl,"x"\n'
    data = csv_import(tmp_path, HEAD + "a,i1,1700000000,view\n", items)
    assert len(items_of(data)) == 8 and items_of(data)[1]["text"] == "one\ntwo"
    found = notes(data)[MANY_LINES]
    assert found["count"] == 7 and found["examples"][0] == {"table": "items", "row": 7, "lines": 51}


def test_a_row_of_several_lines_with_too_many_fields_says_how_many_lines_it_has(tmp_path: Path) -> None:
    rows = HEAD + 'u1,"b,1700000100,view\n' + GOOD + 'u1,"c,1700000300,view,more\nu1,d,1700000400,view\n'
    data = csv_import(tmp_path, rows)
    assert next((row["row"], row["reason"]) for row in rejects_of(data)) == (1, "wrong number of fields")
    assert notes(data)[MANY_LINES]["examples"] == [{"table": "events", "row": 1, "lines": 22}]


@pytest.mark.parametrize(("sign", "given"), [(";", ";"), ("\t", "tab"), ("|", "|")])
def test_fields_may_be_separated_by_another_sign_than_a_comma(tmp_path: Path, sign: str, given: str) -> None:
    events = "user,item,ts\na,x,1700000000\nb,'y;\t|',1700000001\nc,z\n".replace(",", sign).replace("'", '"')
    items = f'item_id{sign}title\nx{sign}"one, two{sign}"\n"y;\t|"{sign}\n'
    data = csv_import(tmp_path, events, items, "--delimiter", given)
    assert [row["item_id"] for row in events_of(data)] == ["x", "y;\t|"]
    assert [row["text"] for row in items_of(data)] == [f"one, two{sign}".strip(), ""]
    assert [(row["row"], row["reason"]) for row in rejects_of(data)] == [(3, "wrong number of fields")]


@pytest.mark.parametrize("row", ['c;"z\n', 'c;"z;1;2\n', 'c,"z";"1\n', '"c'])
def test_a_quote_that_is_never_closed_ends_the_import_whatever_separates_the_fields(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], row: str
) -> None:
    (tmp_path / "clicks.csv").write_text("user;item;ts\na;x;1700000000\n" + row)
    assert run(tmp_path / "data", "csv", "--delimiter", ";", "--events", tmp_path / "clicks.csv") == 2
    assert "row 2 opens a quote that is never closed" in capsys.readouterr().err


@pytest.mark.parametrize("sign", ["", ";;", "a", "1", '"', "é", "\n"])
def test_a_delimiter_that_cannot_be_one_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], sign: str) -> None:
    with pytest.raises(SystemExit):
        run(tmp_path / "data", "csv", "--events", "clicks.csv", "--delimiter", sign)
    assert "argument --delimiter: " in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["", "\n", "\n\n", '""\n'])
@pytest.mark.parametrize("place", ["last field", "first field"])
@pytest.mark.parametrize("name", ["clicks.csv", "clicks.csv.gz"])
def test_a_quote_that_is_never_closed_ends_the_import(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str, place: str, name: str
) -> None:
    opened = 'u1,b,1700000100,"oops\n' if place == "last field" else '"u1,b,1700000100,oops\n'
    content = (HEAD + "u1,a,1700000000,view\n" + opened + GOOD + "u1,c,1700000300,z" + ending).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert run(tmp_path / "data", "csv", "--events", tmp_path / name) == 2
    error = capsys.readouterr().err
    assert "row 2 opens a quote that is never closed" in error and name in error and error.count("\n") == 1
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "last", ['"x\n"', '"x\ny"', '"x\ny"\n', '"x\n""y"""\n', '"x\ny"z\n', '"x\ny"z"\n', "x\n", '"x",2,"\n"']
)
def test_quotes_that_are_closed_in_the_last_row_are_not_taken_for_open(tmp_path: Path, last: str) -> None:
    data = csv_import(tmp_path, HEAD.replace("event_type", "remark") + "u1,a,1700000000,\nu1,b,1700000100," + last)
    assert len(events_of(data)) + len(rejects_of(data)) == 2


def test_an_open_quote_in_the_items_ends_the_import(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "events.csv").write_text(HEAD + "a,x,1700000000,view\n")
    (tmp_path / "items.csv").write_text('item_id,title\nx,X\ny,"Y\n' + "".join(f"z{row},Z\n" for row in range(50)))
    arguments = ["csv", "--events", tmp_path / "events.csv", "--items", tmp_path / "items.csv"]
    assert run(tmp_path / "data", *arguments) == 2
    assert "items.csv: row 2 opens a quote that is never closed" in capsys.readouterr().err


def test_a_row_with_too_many_fields_that_is_not_utf_8_is_rejected_and_the_others_stay(tmp_path: Path) -> None:
    rows = b"\xc3\xa4,x,1,view\nb,\xff,2,view,more\nc,\xfe,3,view\nd\xc3,y,4\n\xc3\xa9,z,5,view\n"
    (tmp_path / "events.csv").write_bytes(HEAD.encode() + rows)
    assert run(tmp_path / "data", "csv", "--events", tmp_path / "events.csv") == 0
    assert [row["user_id"] for row in events_of(tmp_path / "data")] == ["ä", "é"]
    found = {row["row"]: (row["reason"], row["values"]) for row in rejects_of(tmp_path / "data")}
    assert found[2] == ("wrong number of fields", {"line": "b,\ufffd,2,view,more", "fields": 5, "expected": 4})
    assert found[3][0] == "not UTF-8" and found[4][0] == "wrong number of fields"
