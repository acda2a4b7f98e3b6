"""Pages of a journal that were overwritten: the server does not start, says what to do, and verify names what is wrong."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import apsw
import pytest

from server.errors import StartupError
from server.journal.database import FILE_NAME, open_journal
from server.journal.verify import verify
from tests.server.producer import PATIENCE_S, Producer, journal

PAGE = 4096
REMEDY = "restore a backup: python -m server.journal restore"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A closed journal of some hundred pages, free ones among them."""
    made, producer = tmp_path / "data" / "default", Producer(Random(0))
    with journal(made) as (file, writer, people):
        for _ in range(20):
            producer.submit(writer, people, producer.batch(200)).result(PATIENCE_S)
        file.connection.execute("CREATE TABLE passing (x)")
        file.connection.execute("INSERT INTO passing SELECT randomblob(3000) FROM event_ids LIMIT 20")
        file.connection.execute("DROP TABLE passing")
    return made


def page_of(path: Path, kind: str, table: str = "events") -> int:
    """The number of a page, from 1: 'header', or the first one of a kind."""
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        if kind == "header":
            return 1
        if kind == "free":
            return int.from_bytes(path.read_bytes()[32:36], "big")
        rows = connection.execute("SELECT pageno FROM dbstat WHERE name = ? AND pagetype = ?", (table, kind)).fetchall()
        return int(rows[0][0])
    finally:
        connection.close()


def overwrite(path: Path, page: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek((page - 1) * PAGE)
        file.write(content)


def garbage(seed: int) -> bytes:
    return Random(seed).randbytes(PAGE)


# Not zeros over a page of free pages: that is an empty one, and no row is hurt.
@pytest.mark.parametrize(
    ("kind", "content"),
    [(kind, garbage(seed)) for kind in ("header", "internal", "leaf", "free") for seed in range(3)]
    + [(kind, bytes(PAGE)) for kind in ("header", "internal", "leaf")],
)
@pytest.mark.parametrize("table", ["events", "event_ids"])
def test_an_overwritten_page_keeps_the_journal_from_opening_and_the_remedy_is_named(
    directory: Path, kind: str, table: str, content: bytes
):
    path = directory / FILE_NAME
    overwrite(path, page_of(path, kind, table), content)
    before = path.read_bytes()
    with pytest.raises(StartupError, match=REMEDY) as caught:
        open_journal(directory)
    assert "\n" not in str(caught.value)
    assert verify(path).problems
    assert path.read_bytes() == before, "evidence is kept as it was found"


def test_a_file_that_was_cut_short_keeps_the_journal_from_opening(directory: Path):
    path = directory / FILE_NAME
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2 // PAGE * PAGE)
    with pytest.raises(StartupError, match=REMEDY):
        open_journal(directory)


def test_the_server_leaves_with_status_2_and_one_line(directory: Path, bundle_path: Path):
    path = directory / FILE_NAME
    overwrite(path, page_of(path, "leaf"), garbage(3))
    command = [sys.executable, "-m", "server", "--bundle", str(bundle_path), "--data", str(directory.parent), "--port", "0"]
    server = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert server.returncode == 2
    [line] = server.stderr.splitlines()
    assert line.startswith(f"error: {path} is damaged") and REMEDY in line


def test_verify_says_that_a_whole_journal_is_whole_and_counts_its_rows(directory: Path):
    found = verify(directory / FILE_NAME)
    assert not found.problems
    assert found.counts["events"] == found.counts["event_ids"] == 4_000
    assert found.counts["people"] == 12


Spoil = Callable[[apsw.Connection], object]


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        (
            "UPDATE meta SET value = 10 WHERE key = 'head'",
            "events.position goes up to 4000, beyond the last position given out, 10",
        ),
        ("DELETE FROM meta WHERE key = 'event_key'", "meta lacks event_key"),
        ("DELETE FROM events WHERE position = 7", "1 event_ids have no event"),
        ("UPDATE event_ids SET person_key = 5 WHERE position = 7", "1 event_ids have no event"),
        ("UPDATE events SET position = 8 WHERE position = 7", "1 event"),
        ("DELETE FROM people WHERE person_key = (SELECT min(person_key) FROM people)", "rows of events are of nobody"),
        ("INSERT INTO consents VALUES (5, 1, 1, 1, 'test', 0, 0)", "1 rows of consents are of nobody"),
        ("INSERT INTO profiles VALUES (5, 1, '{}', 0)", "1 rows of profiles are of nobody"),
        ("INSERT INTO links VALUES (5, 6, 1, 0), (6, 7, 1, 0), (7, 5, 1, 0)", "links go round in a circle of 3 people"),
    ],
)
def test_verify_names_rows_that_disagree(directory: Path, sql: str, says: str):
    path = directory / FILE_NAME
    connection = apsw.Connection(str(path))
    connection.execute(sql)
    connection.close()
    assert any(says in problem for problem in verify(path).problems), verify(path).problems
