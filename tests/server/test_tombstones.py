"""Tombstones and their key: nobody can be read from them, they survive, and a wrong key is noticed."""

import secrets
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from server.errors import StartupError
from server.journal.database import JournalFile, open_journal
from server.journal.erase import seen_by
from server.journal.events import USER, VISITOR, Event, Person, RecordEvents
from server.journal.removal import apply_tombstones
from server.journal.slack import sweep
from server.journal.tombstones import Exported, Tombstones, open_tombstones
from server.journal.writer import Transaction
from tests.server.producer import Everyone

ANN, BEN = Person(USER, "ann"), Person(VISITOR, "ben")
NOW_US = 1_800_000_000_000_000


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "data" / "default"


def key_of(directory: Path) -> Path:
    return directory.parent.with_name("data.erasure-key")


def write(file: JournalFile, *events: Event, received_us: int = NOW_US) -> None:
    everyone = Everyone(file)
    transaction = Transaction(file)
    with file.connection:
        RecordEvents(events, received_us, everyone, everyone.publish).commit(transaction)
    file.head = transaction.head


def rows(file: JournalFile, table: str) -> int:
    return int(str(file.connection.execute(f"SELECT count(*) FROM {table}").get))


def test_who_was_erased_is_known_after_a_restart(directory: Path):
    with closing(open_tombstones(directory)) as tombstones:
        assert tombstones.erased_us(ANN) is None
        tombstones.add([(ANN, None), (BEN, Exported("epoch", 3))], 50, [b"e" * 16], expires_us=1000)
    with closing(open_tombstones(directory)) as tombstones:
        assert tombstones.erased_us(ANN) == tombstones.erased_us(BEN) == 50
        assert tombstones.erased_us(Person(VISITOR, "ann")) is None
        assert tombstones.exported(ANN) is None
        assert tombstones.exported(BEN) == Exported("epoch", 3)
        assert tombstones.is_erased_event(b"e" * 16)
        assert not tombstones.is_erased_event(b"f" * 16)


def test_the_latest_erasure_counts(directory: Path):
    with closing(open_tombstones(directory)) as tombstones:
        tombstones.add([(ANN, None)], 50)
        tombstones.add([(ANN, None)], 40)
        assert tombstones.erased_us(ANN) == 50
        tombstones.add([(ANN, None)], 60)
        assert tombstones.erased_us(ANN) == 60
    with closing(open_tombstones(directory)) as tombstones:
        assert tombstones.erased_us(ANN) == 60


def test_event_ids_are_forgotten_once_producers_no_longer_repeat_them(directory: Path):
    with closing(open_tombstones(directory)) as tombstones:
        tombstones.add([(ANN, None)], 50, [b"e" * 16], expires_us=100)
        tombstones.add([(BEN, None)], 100)
        assert tombstones.is_erased_event(b"e" * 16)
        tombstones.add([(BEN, None)], 101)
        assert not tombstones.is_erased_event(b"e" * 16)


def test_writes_go_on_while_other_threads_open_the_file(directory: Path):
    """Of one process: a commit that keeps the interpreter's lock would wait for a reader that waits for that lock."""
    done = threading.Event()

    def open_all_the_time() -> None:
        while not done.is_set():
            with closing(open_tombstones(directory)) as opened:
                opened.withdrawn(ANN)

    with closing(open_tombstones(directory)) as tombstones, ThreadPoolExecutor(1) as other:
        opening = other.submit(open_all_the_time)
        try:
            for number in range(300):
                tombstones.add([(Person(USER, f"user-{number}"), None)], NOW_US)
        finally:
            done.set()
        opening.result()
        assert len(tombstones) == 300


def test_the_file_names_nobody(directory: Path):
    person = Person(USER, "zebra-in-the-tombstones")
    with closing(open_tombstones(directory)) as tombstones:
        tombstones.add([(person, None)], 50, [b"0123456789abcdef"], expires_us=100)
        data = tombstones.path.read_bytes()
    assert b"zebra" not in data
    assert b"0123456789abcdef" not in data


def test_the_key_is_readable_by_its_owner_alone(directory: Path):
    open_tombstones(directory).close()
    assert key_of(directory).stat().st_mode & 0o777 == 0o600
    key_of(directory).chmod(0o640)
    with pytest.raises(StartupError, match="chmod 600"):
        open_tombstones(directory)


def test_a_key_inside_the_data_directory_is_refused(directory: Path):
    with pytest.raises(StartupError, match="inside the data directory; move it out"):
        open_tombstones(directory, directory.parent / "key")


def test_a_configured_key_is_used(directory: Path, tmp_path: Path):
    open_tombstones(directory, tmp_path / "elsewhere.key").close()
    assert len((tmp_path / "elsewhere.key").read_bytes()) == 32
    assert not key_of(directory).exists()


def test_a_missing_key_is_made_only_while_nobody_is_erased(directory: Path):
    open_tombstones(directory).close()
    key_of(directory).unlink()
    with closing(open_tombstones(directory)) as tombstones:
        tombstones.add([(ANN, None)], 50)
    key_of(directory).unlink()
    with pytest.raises(StartupError, match="is missing, but people were erased"):
        open_tombstones(directory)
    assert not key_of(directory).exists()


def test_another_key_is_noticed(directory: Path):
    with closing(open_tombstones(directory)) as tombstones:
        tombstones.add([(ANN, None)], 50)
    key_of(directory).write_bytes(secrets.token_bytes(32))
    with pytest.raises(StartupError, match="not the one of"):
        open_tombstones(directory)
    key_of(directory).write_bytes(b"short")
    with pytest.raises(StartupError, match="32 bytes"):
        open_tombstones(directory)


def test_a_damaged_file_is_refused(directory: Path):
    directory.mkdir(parents=True)
    (directory / "tombstones.sqlite").write_bytes(b"no tombstones at all" * 100)
    with pytest.raises(StartupError, match="erased people could come back"):
        open_tombstones(directory)


def erased(directory: Path, file: JournalFile, erased_us: int, hashes: tuple[bytes, ...] = ()) -> Tombstones:
    tombstones = open_tombstones(directory)
    tombstones.add([(ANN, None)], erased_us, hashes, expires_us=erased_us * 2)
    return tombstones


def test_applying_removes_what_is_older_and_keeps_what_came_after(directory: Path):
    file = open_journal(directory)
    write(
        file,
        Event("1", ANN, "x", "view", NOW_US - 5),
        Event("2", ANN, "x", "view", NOW_US + 5),  # it came in before the erasure, from a clock that is ahead
        Event("3", BEN, "x", "view", NOW_US - 5),
        received_us=NOW_US - 1,
    )
    write(file, Event("4", ANN, "y", "view", NOW_US + 10), received_us=NOW_US + 10)
    key = Everyone(file).keys[ANN]
    for position, given_us in ((100, NOW_US), (101, NOW_US + 1)):
        file.connection.execute("INSERT INTO consents VALUES (?, ?, 1, 1, 'x', ?, 0)", (key, position, given_us))
    file.connection.execute("INSERT INTO profiles VALUES (?, 1, '{}', ?)", (key, NOW_US))
    file.connection.execute("INSERT INTO links VALUES (?, ?, 1, ?)", (Everyone(file).keys[BEN], key, NOW_US))
    with closing(erased(directory, file, NOW_US)) as tombstones:
        head = file.head
        assert apply_tombstones(file.connection, tombstones) == 1
        assert file.head == head
        held = file.connection.execute("SELECT item_id FROM events WHERE person_key = ?", (key,)).fetchall()
        assert held == [("y",)]
        counts = {table: rows(file, table) for table in ("events", "event_ids", "consents", "profiles", "links", "people")}
        assert counts == {"events": 2, "event_ids": 2, "consents": 1, "profiles": 0, "links": 0, "people": 2}
        assert apply_tombstones(file.connection, tombstones) == 0
    file.close()


def test_applying_leaves_nothing_of_a_person_without_newer_data(directory: Path):
    file = open_journal(directory)
    write(file, Event("1", ANN, "x", "view", NOW_US), Event("2", ANN, "x", "view", NOW_US + 7), received_us=NOW_US)
    hashes = tuple(row[0] for row in file.connection.execute("SELECT event_hash FROM events"))
    with closing(erased(directory, file, NOW_US, hashes)) as tombstones:
        assert apply_tombstones(file.connection, tombstones) == 1
    assert [rows(file, table) for table in ("events", "event_ids", "people")] == [0, 0, 0]
    file.close()


def test_a_journal_without_erased_people_is_not_read(directory: Path):
    file = open_journal(directory)
    with closing(open_tombstones(directory)) as tombstones:
        assert apply_tombstones(file.connection, tombstones) == 0
    file.close()


def test_which_bundles_saw_a_person_is_known_across_restores(directory: Path):
    file = open_journal(directory)
    connection = file.connection
    connection.execute("UPDATE meta SET value = 'new' WHERE key = 'epoch'")
    connection.execute("INSERT INTO meta VALUES ('earlier_epochs', '{\"old\": 100}')")  # a backup at 100 was restored
    bundles = {"silent": (None, None), "old-20": ("old", 20), "old-120": ("old", 120), "new-20": ("new", 20), "x": ("x", 50)}
    for release_id, (epoch, position) in bundles.items():
        connection.execute("INSERT INTO bundles VALUES (?, ?, ?, 0)", (release_id, epoch, position))
    assert seen_by(connection, [None]) == ([], ["old-120", "silent", "x"])
    assert seen_by(connection, [Exported("new", 15)]) == (["new-20", "old-120", "old-20"], ["silent", "x"])
    assert seen_by(connection, [Exported("new", 110)]) == ([], ["old-120", "silent", "x"])  # exported after the restore
    assert seen_by(connection, [Exported("old", 110)]) == (["old-120"], ["silent", "x"])  # exported before it
    file.close()


def test_clearing_free_space_leaves_no_copy_and_loses_no_row(tmp_path: Path):
    path = tmp_path / "rows.sqlite"
    connection = apsw.Connection(str(path))
    connection.pragma("secure_delete", True)
    connection.execute("CREATE TABLE t (k INTEGER, n INTEGER, text TEXT, PRIMARY KEY (k, n)) WITHOUT ROWID")
    words = {}
    for n in range(6000):
        key = secrets.randbelow(200)
        word = words.setdefault(key, secrets.token_hex(12))
        connection.execute("INSERT INTO t VALUES (?, ?, ?)", (key, n, word + "x" * secrets.randbelow(60)))
    gone = list(words)[:100]
    with connection:
        for key in gone:
            connection.execute("DELETE FROM t WHERE k = ?", (key,))
    left = connection.execute("SELECT * FROM t ORDER BY k, n").fetchall()
    connection.close()
    sweep(path)
    data = path.read_bytes()
    assert not [key for key in gone if words[key].encode() in data]
    connection = apsw.Connection(str(path))
    assert connection.execute("SELECT * FROM t ORDER BY k, n").fetchall() == left
    assert connection.execute("PRAGMA integrity_check").get == "ok"
    connection.close()


def test_a_torn_part_of_the_log_names_no_page(directory: Path):
    """Found by the power-loss soak: a frame of zeros named page 0, and the next start failed."""
    with closing(open_journal(directory)) as file:
        file.connection.pragma("wal_autocheckpoint", 0)
        write(file, Event("e", ANN, "item", "view", NOW_US))
        log = file.path.with_name("journal.sqlite-wal")
        before = file.pages.logged_pages()
        with log.open("ab") as torn:
            torn.write(bytes(2 * (24 + 4096)))
        assert file.pages.logged_pages() == before
        assert file.pages.clear(before) == 0
