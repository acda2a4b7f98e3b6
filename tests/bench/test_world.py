"""`python -m bench.world`: what a world holds, that a seed makes it again, and what it leaves alone."""

import hashlib
import json
import sqlite3
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import towerbridge
from safetensors.numpy import load_file

from bench.world.__main__ import main
from bench.world.ids import BUNDLE, DATA, read_ids
from index.bundle import check_bundle
from server.journal.database import lock_directory

ITEMS, USERS, HISTORY = 40, 20, 3
UNTIL = "2026-01-31T12:00:00Z"


def make(folder: Path, *more: str, seed: int = 1) -> int:
    """The exit code of making a small world."""
    sizes = ("--items", str(ITEMS), "--users", str(USERS), "--dim", "8", "--history", str(HISTORY))
    return main([*sizes, "--until", UNTIL, "--seed", str(seed), "--out", str(folder), *more])


def histories(world: Path) -> list[tuple[str, str, str, int]]:
    """(person, item, type, time) of all events, in their order."""
    with sqlite3.connect(world / DATA / "default" / "journal.sqlite") as connection:
        return connection.execute(
            "SELECT subject_id, item_id, type, occurred_us FROM events JOIN people USING (person_key) ORDER BY position"
        ).fetchall()


def contents(world: Path) -> list[object]:
    """Everything that a seed decides."""
    vectors = load_file(world / BUNDLE / "item_vectors.safetensors")["vectors"]
    return [pq.read_table(world / BUNDLE / "items.parquet").to_pylist(), vectors.tobytes(), histories(world), read_ids(world)]


def files_of(folder: Path) -> dict[str, str]:
    """Hashes of all files by path."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("worlds") / "one"
    assert make(folder) == 0
    return folder


def test_a_seed_and_a_time_make_the_same_world_again_and_another_seed_another(made: Path, tmp_path: Path):
    assert make(tmp_path / "again") == 0 and make(tmp_path / "other", seed=2) == 0
    mine, again, other = (contents(folder) for folder in (made, tmp_path / "again", tmp_path / "other"))
    assert mine == again
    assert all(one != another for one, another in zip(mine, other, strict=True))


def test_the_bundle_passes_every_check_that_a_server_makes(made: Path):
    report = check_bundle(made / BUNDLE)
    assert report.release_id


def test_everyone_has_as_many_events_as_asked_for_on_known_items_and_none_is_later_than_until(made: Path):
    events, ids = histories(made), read_ids(made)
    assert Counter(person for person, *_ in events) == dict.fromkeys(ids.user_ids, HISTORY)
    assert {item for _, item, *_ in events} <= set(ids.item_ids) and {name for *_, name, _ in events} <= set(ids.event_types)
    assert max(time_us for *_, time_us in events) <= 1_769_860_800_000_000


def test_the_list_of_ids_is_complete(made: Path):
    ids = read_ids(made)
    assert list(ids.item_ids) == pq.read_table(made / BUNDLE / "items.parquet").column("item_id").to_pylist()
    assert len(set(ids.item_ids)) == ITEMS and len(set(ids.user_ids)) == USERS
    assert set(ids.event_types) == {"view", "cart", "purchase"} and (ids.dim, ids.seed) == (8, 1)


def test_a_server_of_a_world_answers_everyone_from_their_history(target: str, ids: Path):
    known = read_ids(ids)
    with towerbridge.Client(target, timeout_s=20) as client:
        answers = [client.recommend(user_id=user_id, limit=5) for user_id in known.user_ids[:10]]
        assert client.recommend(user_id="nobody", limit=5).degraded  # so that the next line says something
    assert all(len(answer.item_ids) == 5 and not answer.degraded for answer in answers)
    assert len({tuple(answer.item_ids) for answer in answers}) > 1


def test_a_new_world_replaces_an_earlier_one_and_leaves_all_other_files(tmp_path: Path):
    assert make(tmp_path) == 0
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    (tmp_path / DATA / "other").mkdir()
    (tmp_path / DATA / "other" / "journal.sqlite").write_text("mine too", encoding="utf-8")
    first = contents(tmp_path)
    assert make(tmp_path, seed=2) == 0
    assert all(one != another for one, another in zip(first, contents(tmp_path), strict=True))
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "mine"
    assert (tmp_path / DATA / "other" / "journal.sqlite").read_text(encoding="utf-8") == "mine too"


OWN_IDS = json.dumps({"user_ids": ["u"], "item_ids": ["i"], "event_types": ["view"]})


@pytest.mark.parametrize("name", ["notes.txt", "ids.json"])
def test_a_folder_that_is_no_world_is_refused_and_left_as_it_is(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A list of one's own for bench.load is called ids.json too."""
    (tmp_path / DATA / "default").mkdir(parents=True)
    (tmp_path / DATA / "default" / "journal.sqlite").write_text("a shop's", encoding="utf-8")
    (tmp_path / name).write_text(OWN_IDS, encoding="utf-8")
    before = files_of(tmp_path)
    assert make(tmp_path) == 2
    error = capsys.readouterr().err
    assert "was not made by bench.world" in error and error.count("\n") == 1
    assert files_of(tmp_path) == before


def test_a_world_that_a_server_uses_is_refused_and_left_as_it_is(made: Path, capsys: pytest.CaptureFixture[str]):
    before = files_of(made)
    with lock_directory(made / DATA / "default"):
        assert make(made, seed=2) == 2
    error = capsys.readouterr().err
    assert "in use by another process" in error and error.count("\n") == 1
    assert files_of(made) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--items", "0"), "--items: must be a whole number from 1"),
        (("--items", "many"), "--items: must be a whole number from 1"),
        (("--users", "-1"), "--users"),
        (("--dim", "3"), "at least 4"),
        (("--history", "1001"), "1 to 1000"),
        (("--seed", "x"), "--seed: must be a whole number from 0"),
        (("--until", "yesterday"), "must be an ISO time"),
        (("--nonsense",), "--nonsense"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_2_and_nothing_is_made(
    arguments: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert make(tmp_path / "world", *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error
    assert not (tmp_path / "world").exists()


def test_a_file_in_the_place_of_the_folder_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "world").write_text("mine", encoding="utf-8")
    assert make(tmp_path / "world") == 2
    assert "is a file" in capsys.readouterr().err and (tmp_path / "world").read_text(encoding="utf-8") == "mine"
