"""The command line of the freshness replay: what is wrong is said in one line before any work, and options do what they say."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.freshness.__main__ import main
from bench.freshness.errors import ReplayError
from bench.freshness.measure import Settings, measure_users, schedule_of
from bench.freshness.service import replay_through_service
from bench.freshness.timeline import read_timeline
from index.bundle import read_bundle
from tests.bench.freshness_world import START_US, World, items_table, make_world, write_events
from training.data.dataset import read_dataset
from training.progress import Progress

QUIET = Progress(quiet=True)
SECOND = 1_000_000


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("walk"))


def result_of(walk: World, file: Path, *more: str) -> dict[str, Any]:
    command = ["--data", str(walk.data), "--bundle", str(walk.bundle), "--json", str(file), "--quiet", "--resamples", "20"]
    assert main([*command, *more]) == 0
    result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return result


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--lag", "-1"], "--lag"),
        (["--lag", "nan"], "--lag"),
        (["--lag", "inf"], "--lag"),
        (["--lag", "soon"], "--lag"),
        (["--threads", "0"], "--threads"),
        (["--resamples", "0"], "--resamples"),
        (["--seed", "-1"], "--seed"),
        (["--through-service", "weekly"], "--through-service"),
        (["--plot", "picture.txt"], ".png, .svg or .pdf"),
        (["--plot", "picture"], ".png, .svg or .pdf"),
        (["--json", "."], "is a folder"),
        (["--json", "file/result.json"], "is no folder"),
        (["--json", "same.svg", "--plot", "same.svg"], "the same file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_impossible_option_is_refused_in_one_line_before_any_work(
    options: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    command = ["--data", "there is none", "--json", "result.json"]  # which would be the next thing to be refused
    assert main([*command, *options]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_lag_makes_every_vector_later_but_that_of_the_cut(walk: World, tmp_path: Path):
    results = [result_of(walk, tmp_path / f"{lag}.json", "--lag", str(lag)) for lag in (0, 90.5)]
    assert results[1]["settings"]["lag_s"] == 90.5
    prompt, late = ({row["policy"]: row for row in result["policies"]} for result in results)
    for name in ("event", "10s", "2min", "10min"):
        assert late[name]["R@10"] < prompt[name]["R@10"]
        assert late[name]["behind"] > prompt[name]["behind"]
    for name in ("never", "popularity"):
        assert late[name]["R@10"] == prompt[name]["R@10"]


def test_the_options_come_out_as_documented(walk: World, tmp_path: Path):
    more = ["--items", "--seed", "3", "--threads", "2", "--plot", str(tmp_path / "new" / "picture.svg")]
    result = result_of(walk, tmp_path / "new" / "result.json", *more)
    assert result["settings"] == {"seed": 3, "lag_s": 0.0, "resamples": 20}
    assert {entry["placed_by"] for entry in result["items"]} == {"content", "visitors"}
    assert "<svg" in (tmp_path / "new" / "picture.svg").read_text(encoding="utf-8")
    other = result_of(walk, tmp_path / "other.json", "--seed", "4")
    found = [{row["policy"]: row["N@10"] for row in one["policies"]} for one in (result, other)]
    assert found[0]["event"] == found[1]["event"]
    assert found[0] != found[1], "another seed, other phases"


def test_a_lag_is_that_of_the_service_too_even_one_of_a_month(walk: World, tmp_path: Path):
    for lag_s in (0.25, 31 * 86_400):
        found = result_of(walk, tmp_path / "result.json", "--lag", str(lag_s), "--through-service")["through_service"]
        assert [row["policy"] for row in found["policies"]] == ["event"]
        assert found["passed"]
        assert found["compared"] == found["same"] + found["ties"] > 0


def refused_once(tmp_path: Path, name: str) -> Path:
    """People of a small world; the item of the last event before the cut has this id."""
    rows = [(f"a{number}", f"item-{number % 4}", "view", START_US + number * SECOND) for number in range(15)]
    rows += [("b", name, "view", START_US + 15 * SECOND)]
    rows += [("a0", f"item-{number - 16}", "view", START_US + number * SECOND) for number in range(17, 21)]
    return write_events(tmp_path / "data", rows, items_table([*(f"item-{number}" for number in range(5)), name]))


def test_what_the_server_refuses_ends_the_replay_in_one_line(walk: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data, file = refused_once(tmp_path, "x" * 300), tmp_path / "result.json"
    command = ["--data", str(data), "--bundle", str(walk.bundle), "--json", str(file), "--quiet", "--resamples", "20"]
    assert main([*command, "--through-service"]) == 2
    said = capsys.readouterr().err
    assert "the server refused an event of the replay" in said
    assert "256 bytes" in said
    assert said.count("\n") == 1
    assert not file.exists()


def test_a_server_that_does_not_start_or_answer_is_an_error_of_the_replay(walk: World, tmp_path: Path):
    timeline, bundle = read_timeline(read_dataset(refused_once(tmp_path, "item-5"))), read_bundle(walk.bundle)
    _, replayed = measure_users(timeline, bundle, Settings(resamples=20), QUIET)
    schedule = schedule_of(timeline, "event", Settings())
    with pytest.raises(ReplayError, match="nowhere"):
        replay_through_service(timeline, replace(bundle, path=tmp_path / "nowhere"), replayed, schedule, QUIET)


def test_a_target_with_more_held_back_than_a_call_may_exclude_is_left_out_and_counted(
    walk: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    crowd = [f"crowd-{number}" for number in range(10_001)]
    rows = [(f"a{number}", f"item-{number % 4}", "view", START_US + number * SECOND) for number in range(8)]
    rows += [("b", name, "view", START_US + 9 * SECOND) for name in crowd]  # all at the cut
    rows += [("a0", "item-1", "view", START_US + 10 * SECOND), ("b", "item-1", "view", START_US + 11 * SECOND)]
    items = items_table([*(f"item-{number}" for number in range(4)), *crowd])
    world = World(write_events(tmp_path / "data", rows, items), walk.bundle)
    found = result_of(world, tmp_path / "result.json", "--through-service", "never")["through_service"]
    assert (found["compared"], found["same"], found["not_asked"]) == (1, 1, 1)
    assert "not asked, too many items held back 1" in capsys.readouterr().out
