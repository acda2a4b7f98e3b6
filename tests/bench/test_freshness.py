"""The freshness replay, on people who walk along a circle of items: what is late cannot know where they are."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from bench.freshness.__main__ import main
from bench.freshness.agreement import compare
from bench.freshness.before import write_before
from bench.freshness.measure import DELAYS_S, Settings, measure_items, measure_users, schedule_of
from bench.freshness.policies import POLICIES
from bench.freshness.replay import POPULARITY, Replayed
from bench.freshness.service import Answer
from bench.freshness.timeline import Timeline, read_timeline
from index.bundle import Bundle, read_bundle
from tests.bench.freshness_world import ITEMS, NEW_ITEMS, World, items_table, make_world, write_events
from training.data.dataset import read_dataset
from training.progress import Progress

QUIET = Progress(quiet=True)
SETTINGS = Settings(resamples=400)


@pytest.fixture(scope="session")
def walk(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("walk"))


@pytest.fixture(scope="session")
def timeline(walk: World) -> Timeline:
    return read_timeline(read_dataset(walk.data))


@pytest.fixture(scope="session")
def bundle(walk: World) -> Bundle:
    return read_bundle(walk.bundle)


@pytest.fixture(scope="session")
def measured(timeline: Timeline, bundle: Bundle) -> tuple[dict[str, Any], Replayed]:
    return measure_users(timeline, bundle, SETTINGS, QUIET)


def by_policy(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["policy"]: row for row in rows}


def test_a_fresh_vector_finds_twice_what_popularity_finds_and_a_later_one_less_and_less(
    measured: tuple[dict[str, Any], Replayed],
):
    rows = by_policy(measured[0]["policies"])
    assert rows["event"]["low"] > 2 * rows[POPULARITY]["R@10"]
    recalls = [rows[name]["R@10"] for name in ("event", "10s", "2min", "10min", "1h")]
    assert recalls == sorted(recalls, reverse=True)
    assert rows["1h"]["minus_event"]["high"] < 0, "the paired interval says so too"
    assert rows["10s"]["minus_popularity"]["low"] > 0
    assert list(rows) == [*(policy.name for policy in POLICIES), POPULARITY]


def test_every_policy_answers_the_same_questions_from_the_same_candidates(measured: tuple[dict[str, Any], Replayed]):
    _, replayed = measured
    assert {len(ranks) for ranks in replayed.ranks.values()} == {len(replayed.targets)}
    for name, has_vector in replayed.has_vector.items():
        without = ~has_vector
        assert np.array_equal(replayed.ranks[name][without], replayed.ranks[POPULARITY][without])
    assert (~replayed.has_vector["never"]).any()


def test_ranks_are_those_of_a_plain_sort_of_all_unseen_items(
    timeline: Timeline, bundle: Bundle, measured: tuple[dict[str, Any], Replayed]
):
    _, replayed = measured
    rows = {item_id: place for place, item_id in enumerate(bundle.item_ids)}
    users, items, types = (timeline.table[name].to_pylist() for name in ("user_id", "item_id", "event_type"))
    times_us = timeline.events.time_us
    codes = bundle.manifest.event_types
    for name in ("event", "10min"):
        as_of = schedule_of(timeline, name, SETTINGS).as_of(times_us, timeline.events.user)
        for number in range(0, len(replayed.targets), 23):
            target = int(replayed.targets[number])
            own = [
                row for row in range(len(users)) if users[row] == users[target] and items[row] in rows and types[row] in codes
            ]
            seen = {rows[items[row]] for row in own if times_us[row] < times_us[target]}
            read = [row for row in own if times_us[row] < as_of[target]][-10:]
            if not read:
                assert not replayed.has_vector[name][number]
                continue
            vector = bundle.encode_users(
                bundle.item_vectors[[rows[items[row]] for row in read]][None],
                np.array([[codes[types[row]] for row in read]]),
                np.array([[(times_us[read[-1]] - times_us[row]) / 1e6 for row in read]], dtype=np.float32),
                np.array([len(read)]),
            )[0]
            scores = bundle.item_vectors @ vector
            order = [place for place in np.argsort(-scores, kind="stable") if place not in seen]
            place = rows[items[target]]
            # A batch's last bit may put two items that are as near the other way round.
            assert abs(scores[order[replayed.ranks[name][number]]] - scores[place]) < 1e-6


def test_targets_are_first_meetings_after_the_cut_with_items_from_before_it(tmp_path: Path):
    second = 1_000_000
    rows = [(f"a{number}", f"i{number % 4}", "view", number * second) for number in range(16)]  # the cut is at 16 s
    rows += [("a0", "i0", "view", 16 * second), ("a0", "i1", "view", 17 * second), ("a0", "i1", "cart", 18 * second)]
    rows += [("a1", "new", "view", 19 * second)]
    data = write_events(tmp_path / "data", rows, items_table(["i0", "i1", "i2", "i3", "new", "unused"]))
    found = read_timeline(read_dataset(data))
    assert found.cut_us == 16 * second
    items = found.table["item_id"].to_pylist()
    assert [(items[row], int(found.events.time_us[row]) // second) for row in found.targets] == [("i1", 17)]
    assert found.excluded_share == 0.5, "of i1 and new, new was not known"


def test_gaps_and_fallbacks_split_the_same_targets(measured: tuple[dict[str, Any], Replayed]):
    result, _ = measured
    assert sum(row["targets"] for row in result["strata"]) == result["targets"]
    event = by_policy(result["policies"])["event"]["R@10"]
    total = sum(row["targets"] * row["R@10"]["event"] for row in result["strata"] if row["targets"])
    assert total / result["targets"] == pytest.approx(event)
    short = {row["gap"]: row["R@10"] for row in result["strata"]}["under 10 s"]
    assert short["event"] > 3 * short["2min"], "after a short pause it is the last event that counts"
    never = [row for row in result["fallback"] if row["policy"] == "never"]
    assert never[0]["replaced_share"] > never[-1]["replaced_share"]


def test_new_items_are_found_when_they_are_visible_and_not_before(timeline: Timeline, bundle: Bundle):
    entries = {entry["placed_by"]: entry for entry in measure_items(timeline, bundle, SETTINGS, QUIET)}
    assert entries["content"]["placed_items"] == NEW_ITEMS // 2, "those with a category"
    assert entries["visitors"]["placed_items"] == entries["visitors"]["new_items"]
    late = ~timeline.known[timeline.events.item] & (timeline.events.item < ITEMS)
    assert late.any(), "the bundle knows an item before anybody has met it, and that must not help"
    for entry in entries.values():
        assert [row["policy"] for row in entry["new"]] == list(DELAYS_S)
        assert entry["targets"]["new"] + entry["targets"]["known"] == entry["targets"]["all"]
        assert by_policy(entry["new"])["never"]["R@10"] == 0
        visible = [row["visible"] for row in entry["new"]]
        assert visible == sorted(visible, reverse=True)
        assert all(row["R@10"] <= row["visible"] for row in entry["new"])
        assert visible[-1] == 0
        assert max(row["R@10"] for row in entry["new"]) > 0
    never = [by_policy(entry["known"])["never"]["R@10"] for entry in entries.values()]
    assert never[0] == never[1] > 0, "without new items the way to place them does not matter"


def test_the_service_gives_the_same_hits_as_the_offline_replay(walk: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "result.json"
    command = ["--data", str(walk.data), "--bundle", str(walk.bundle), "--json", str(file), "--quiet", "--resamples", "50"]
    status = main([*command, "--plot", str(tmp_path / "plot.png"), "--through-service", "event", "10min"])
    result = json.loads(file.read_text(encoding="utf-8"))
    found = result["through_service"]
    assert status == 0
    assert found["passed"]
    assert found["compared"] == 2 * result["targets"]
    assert found["same"] + found["ties"] == found["compared"]
    for row in found["policies"]:
        assert row["same_scores"] == row["compared"]
        assert row["largest_difference"] < 1e-5
    assert (tmp_path / "plot.png").stat().st_size > 1000
    assert "passed" in capsys.readouterr().out


def test_answers_from_other_vectors_are_told_from_ties(bundle: Bundle, measured: tuple[dict[str, Any], Replayed]):
    _, replayed = measured
    answers = [Answer(bundle.item_ids[:10], [0.5] * 10)] * len(replayed.targets)
    agreement = compare(bundle, replayed, "event", answers, QUIET)
    assert agreement.different > 0
    assert agreement.same_scores == 0
    assert not agreement.passed
    lucky = replace(
        replayed, ranks={"event": np.full(len(replayed.targets), 10)}
    )  # as if all were misses, and all answers empty
    empty = compare(bundle, lucky, "event", [Answer([], [])] * len(replayed.targets), QUIET)
    assert empty.same == empty.compared
    assert empty.as_json()["largest_difference"] is None


def test_what_the_model_is_taught_says_of_itself_what_holds_before_the_cut(timeline: Timeline, tmp_path: Path):
    table = timeline.table.filter(pa.array(timeline.events.time_us < timeline.cut_us))
    info = {"first_event": "too early", "last_event": "too late", "notes": {"of": "all"}, "watermark": {"position": 7}}
    dataset = replace(timeline.dataset, info=timeline.dataset.info | info)
    write_before(replace(timeline, dataset=dataset), tmp_path)
    written = read_dataset(tmp_path)
    assert set(written.info) == {"kind", "source", "times", "counts", "first_event", "last_event", "rejected"}
    times = sorted(table["occurred_at"].to_pylist())
    assert (written.info["first_event"], written.info["last_event"]) == (times[0].isoformat(), times[-1].isoformat())
    assert written.info["counts"] == {
        "events": table.num_rows,
        "users": len(table["user_id"].unique()),
        "items": int(timeline.known.sum()),
    }


def test_without_a_bundle_one_is_trained_on_what_was_before_the_cut_and_kept(walk: World, tmp_path: Path, capfd: Any):
    file, kept, data = tmp_path / "result.json", tmp_path / "bundle", tmp_path / "data"
    shutil.copytree(walk.data, data)
    all_of_it = read_timeline(read_dataset(data)).table["occurred_at"].to_pylist()
    says = {"first_event": min(all_of_it).isoformat(), "last_event": max(all_of_it).isoformat()}
    says |= {"notes": {"of": "all"}, "watermark": {"epoch": "1" * 32, "position": 7}}
    info = json.loads((data / "dataset.json").read_text(encoding="utf-8"))
    (data / "dataset.json").write_text(json.dumps(info | says), encoding="utf-8")
    settings = ["towers.dim=8", "towers.history_length=6", "towers.hidden=8", "training.epochs=2", "training.positions=256"]
    command = ["--data", str(data), "--bundle", str(kept), "--json", str(file), "--resamples", "50"]
    assert main([*command, "--set", "text.encoder=none", *settings]) == 0
    result = json.loads(file.read_text(encoding="utf-8"))
    bundle, timeline = read_bundle(kept), read_timeline(read_dataset(data))
    before = [time for time in all_of_it if time.timestamp() * 1e6 < timeline.cut_us]
    taught = bundle.manifest.training
    assert taught["taught_until"] == max(before).isoformat(), "what comes after the cut is new to a warm start"
    assert taught["dataset"]["counts"]["events"] == len(before)
    assert bundle.manifest.watermark is None, "it is of a journal that goes on after the cut"
    assert result["bundle"]["release_id"] == bundle.release_id
    assert len(bundle.item_ids) == int(timeline.known.sum())
    assert bundle.items["popularity"].to_numpy().sum() <= (timeline.events.time_us < timeline.cut_us).sum()
    capfd.readouterr()
    assert main(command) == 0
    assert "warning" not in capfd.readouterr().err, "it is known to be of just these events"
    again = json.loads(file.read_text(encoding="utf-8"))
    assert again["policies"] == result["policies"]


@pytest.mark.parametrize(
    ("change", "says"),
    [({"times": "ordinal"}, "no times"), ({}, "trained on this data's events")],
    ids=["no times", "other items"],
)
def test_what_cannot_be_replayed_is_refused_in_one_line(
    change: dict[str, str], says: str, walk: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rows = [(f"a{number}", f"i{number % 4}", "view", number) for number in range(16)]
    rows += [("a0", f"i{number}", "view", 16 + number) for number in range(4)]
    data = write_events(tmp_path / "data", rows, items_table([f"i{number}" for number in range(4)]))
    info = json.loads((data / "dataset.json").read_text(encoding="utf-8"))
    (data / "dataset.json").write_text(json.dumps(info | change), encoding="utf-8")
    file = tmp_path / "result.json"
    assert main(["--data", str(data), "--bundle", str(walk.bundle), "--json", str(file), "--quiet"]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert not file.exists()
