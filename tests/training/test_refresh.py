"""`python -m training refresh`: a real server's journal becomes its next release, or nothing changes."""

import itertools
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import towerbridge
from towerbridge import v1

from bench.process import ServerProcess
from index.bundle import Bundle, read_bundle
from tests.training.conftest import planted_events
from tests.training.newer import FASTER, NEW_RING, newer_events, newer_items, write_parquet
from tests.training.test_split import interactions
from training.cli import main
from training.config import SplitConfig
from training.data.split import make_split
from training.errors import ConfigError
from training.incremental.replay import taught_before
from training.refresh.gate import held_out_rows, parse_requirement, unmet
from training.refresh.record import Record

LIVE = v1.ReleaseState.RELEASE_STATE_LIVE


def refresh(out: Path, *flags: object) -> int:
    return main(["refresh", "--out", str(out), "--quiet", "--set", *FASTER, "--threads", "1", *map(str, flags)])


def steps(printed: str) -> dict[str, str]:
    """What was said of each step: the line that begins with its name."""
    names = ("export", "screen", "import", "fit", "evaluate", "load", "promote")
    return {line.split()[0]: line for line in printed.splitlines() if line.split()[:1] and line.split()[0] in names}


@pytest.fixture
def exported(tmp_path: Path) -> tuple[Path, Path]:
    """Events and items as an export would be."""
    return write_parquet(tmp_path, planted_events() + newer_events(), newer_items())


def test_what_the_gate_refused_goes_on_where_it_was_when_the_rule_is_another(
    exported: tuple[Path, Path], fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events, items = exported
    out, given = tmp_path / "next", ("--bundle", fitted, "--events", events, "--items", items)
    assert refresh(out, *given, "--require", "N@10>=2*current") == 2
    refused = capsys.readouterr()
    assert "is not promoted: N@10 0." in refused.err and "(N@10>=2*current)" in refused.err and refused.err.count("\n") == 1
    assert (tmp_path / "next.refresh").stat().st_mode & 0o077 == 0  # people's events, which nobody else may read
    made = read_bundle(out).release_id
    assert refresh(out, *given, "--json", tmp_path / "report.json") == 0
    said = steps(capsys.readouterr().out)
    assert all(said[name].endswith("was done before") for name in ("import", "fit", "evaluate"))
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["new"] == made == read_bundle(out).release_id
    assert report["evaluation"]["new"]["N@10"] > report["evaluation"]["current"]["N@10"]
    assert report["drift"]["items"]["new"] == 10 and set(report["steps"]) == {"import", "fit", "evaluate"}
    assert not (tmp_path / "next.refresh").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), "give --journal DIR"),
        (("--events", "x.parquet"), "give --bundle, or the --target"),
        (("--events", "{folder}/none.parquet", "--bundle", "{fitted}"), "none.parquet: cannot be read"),
        (("--events", "x", "--bundle", "{fitted}", "--require", "N@10>95%"), "--require N@10>95%: write R@5|R@10"),
        (("--events", "x", "--bundle", "{fitted}", "--work", "{folder}"), "no refresh made it"),
        (("--journal", "{folder}", "--bundle", "{fitted}"), "export: {folder}/default holds no journal"),
        (("--events", "x", "--target", "127.0.0.1:1", "--timeout", "1"), "UNAVAILABLE"),
    ],
)
def test_a_refresh_that_cannot_be_is_refused_in_one_line(
    flags: tuple[str, ...], said: str, fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").write_text("not a refresh's")
    filled = [flag.format(folder=tmp_path, fitted=fitted) for flag in flags]
    assert refresh(tmp_path / "next", *filled) == 2
    error = capsys.readouterr().err
    assert said.format(folder=tmp_path) in error and error.count("\n") == 1
    assert not (tmp_path / "next").exists() and (tmp_path / "mine").exists()


def test_a_bundle_that_somebody_may_serve_is_not_replaced(
    fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refresh(fitted, "--events", "x", "--bundle", fitted) == 2
    assert "is the current bundle" in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    assert refresh(tmp_path / "other", "--events", "x", "--bundle", fitted) == 2
    assert "exists, and a server may need it" in capsys.readouterr().err


def test_a_requirement_is_a_number_or_a_share_of_the_current_bundle() -> None:
    current = {"R@5": 0.1, "R@10": 0.2, "N@5": 0.05, "N@10": 0.1}
    share, number = parse_requirement("N@10>=0.95*current"), parse_requirement(" R@10 >= .15 ")
    assert unmet([share, number], current | {"N@10": 0.0951}, current) == []
    assert unmet([share], current | {"N@10": 0.0949}, current) == ["N@10 0.0949 is below 0.0950 (N@10>=0.95*current)"]
    assert len(unmet([number], current | {"R@10": 0.149}, current)) == 1
    for wrong in ("N@7>=0.1", "N@10", "N@10>=1.2.3", "N@10>=0.9*best", "N@10<=1"):
        with pytest.raises(ConfigError, match="such as N@10"):
            parse_requirement(wrong)


def test_a_record_of_another_command_or_of_another_live_release_is_not_gone_on_with(tmp_path: Path) -> None:
    record = Record.read(tmp_path / "work", {"out": "a"}, "bundles/first", "r1")
    record.prepare()
    record.made.append("r2")
    assert record.step("import", lambda: {"events": "7"})[1]
    (tmp_path / "work" / "events.parquet").write_text("somebody's")
    for live in (("bundles/first", "r1"), ("bundles/a", "r2")):  # the second one if some servers promoted already
        again = Record.read(tmp_path / "work", {"out": "a"}, *live)
        again.prepare()
        given, ran = again.step("import", lambda: {"events": "8"})
        assert given["events"] == "7" and not ran and (tmp_path / "work" / "events.parquet").exists()
        assert (again.bundle, again.release_id) == ("bundles/first", "r1")
    assert Record.read(tmp_path / "work", {"out": "a"}, "bundles/other", "r3").done == {}
    other = Record.read(tmp_path / "work", {"out": "b"}, "bundles/first", "r1")
    other.prepare()
    assert other.done == {} and not (tmp_path / "work" / "events.parquet").exists()


def test_a_step_runs_again_when_it_is_given_something_else(tmp_path: Path) -> None:
    record = Record.read(tmp_path / "work", {}, "first", "r1")
    record.prepare()
    assert record.begin("fit", "a", "evaluate")
    for name in ("import", "fit", "evaluate"):
        record.step(name, dict)
    assert not record.begin("fit", "a", "evaluate") and set(record.done) == {"import", "fit", "evaluate"}
    assert record.begin("fit", "b", "evaluate") and set(record.done) == {"import"}
    assert not Record.read(tmp_path / "work", {}, "first", "r1").begin("fit", "b", "evaluate")


def test_changed_settings_and_events_are_fitted_anew_whatever_an_earlier_attempt_left(
    exported: tuple[Path, Path], fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events, items = exported
    out, settings, report = tmp_path / "next", tmp_path / "own.yaml", tmp_path / "report.json"
    given = ("--bundle", fitted, "--events", events, "--items", items, "--config", settings)
    settings.write_text("warm_start: {epochs: 1}\n")
    assert refresh(out, *given, "--require", "R@10>=1.5", "--json", report) == 2
    told = json.loads(report.read_text())
    assert "is not promoted: R@10" in told["failed"] and told["evaluation"]["new"]["R@10"] < 1.5

    settings.write_text("warm_start: {epochs: 2}\ntraining: {checkpoint_minutes: 1.0e-9}\n")
    line = ["-m", "tests.training.killed", "SIGKILL", "2", "refresh", "--out", out, "--set", *FASTER, "--threads", "1", *given]
    assert subprocess.run([sys.executable, *map(str, line)], check=False, timeout=240).returncode == -signal.SIGKILL
    assert (tmp_path / "next.checkpoint").is_dir()

    table = pq.read_table(events)
    pq.write_table(table.filter(pc.field("user") != "fresh-0"), events)  # as if it were screened
    capsys.readouterr()
    assert refresh(out, *given) == 0
    said = steps(capsys.readouterr().out)
    assert not any(said[name].endswith("was done before") for name in ("import", "fit", "evaluate"))
    told = read_bundle(out).manifest.training
    assert (told["epochs"], told["dataset"]["counts"]["users"]) == (2, 259)
    assert not (tmp_path / "next.checkpoint").exists() and not (tmp_path / "next.refresh").exists()


def test_where_nothing_is_new_nobodys_events_stay_behind(
    fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = [row for row in planted_events() if int(str(row["user"]).removeprefix("user-")) < 5]
    old = [row for row, after in itertools.pairwise(old) if row["user"] == after["user"]][:3]  # trained on, all of them
    events, items = write_parquet(tmp_path, old, newer_items())
    assert refresh(tmp_path / "next", "--bundle", fitted, "--events", events, "--items", items) == 2
    error = capsys.readouterr().err
    assert error.startswith("fit: nothing to learn that") and error.count("\n") == 1
    assert not (tmp_path / "next.refresh").exists() and not (tmp_path / "next").exists()


@pytest.fixture
def server(fitted: Path, planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerProcess]:
    """A server over a copy of the fitted bundle, whose journal has the planted history."""
    for purpose in ("PERSONALISATION", "TRAINING"):
        monkeypatch.setenv(f"TOWERBRIDGE__CONSENT__{purpose}", "opt_out")
    monkeypatch.setenv("TOWERBRIDGE__ENGINE__COMPILE", "false")
    subprocess.run(["cp", "-r", str(fitted), str(tmp_path / "first")], check=True)
    command = [sys.executable, "-m", "server.journal", "import", str(planted / "events.parquet")]
    subprocess.run([*command, "--data", str(tmp_path / "state")], check=True, capture_output=True)
    running = ServerProcess(tmp_path / "first", tmp_path / "state", "--log-level", "error")
    yield running
    running.kill()


def tell(client: towerbridge.Client) -> None:
    """The new ring's items, and what people did yesterday, through the API."""
    items = [row for row in newer_items() if str(row["item_id"]).startswith(f"item-{NEW_RING}")]
    client.upsert_items([towerbridge.item(str(row["item_id"]), categories=str(row["categories"]).split("|")) for row in items])
    events = [
        towerbridge.event(
            str(row["event"]), str(row["item"]), user_id=str(row["user"]), occurred_at=datetime.fromisoformat(str(row["time"]))
        )
        for row in newer_events(start=datetime.now(UTC) - timedelta(hours=20))
    ]
    # The live release does not know purchases yet: they are kept, and count for the next one.
    expected = {v1.EventStatus.EVENT_STATUS_ACCEPTED, v1.EventStatus.EVENT_STATUS_ACCEPTED_UNKNOWN_TYPE}
    assert {result.status for result in client.record_events(events).results} <= expected


def live(client: towerbridge.Client) -> str:
    return next(one.release_id for one in client.list_releases().releases if one.state == LIVE)


def test_from_a_server_s_events_to_its_next_release_and_a_bad_one_stays_out(
    server: ServerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with towerbridge.Client(server.target, timeout_s=60.0) as client:
        tell(client)
        first, given = live(client), ("--journal", tmp_path / "state")

        # The load fails, since the server may not read what it is told to; nothing changed but the new bundle on disk.
        wrong = ("--target", server.target, "--path-on-server", "/etc")
        assert refresh(tmp_path / "next", *given, *wrong) == 2
        failed = capsys.readouterr()
        assert failed.err.startswith("load: INVALID_ARGUMENT") and "the live release is as it was" in failed.err
        assert "260 people" in steps(failed.out)["export"] and live(client) == first

        # Somebody is erased meanwhile: the same command goes on without them.
        client.erase_user(user_id="fresh-0")
        others = ("--target", server.target, "--target", "127.0.0.1:1", "--timeout", "60")
        assert refresh(tmp_path / "next", *given, *others) == 2
        said = steps(capsys.readouterr().out)
        assert said["export"].endswith("was done before") and " 0 events removed" not in said["screen"]
        assert not said["import"].endswith("was done before") and not said["fit"].endswith("was done before")
        new = read_bundle(tmp_path / "next")

        # Some servers have promoted it and others have not: the same command goes on with the others.
        client.promote_release(new.release_id)
        assert refresh(tmp_path / "next", *given, "--target", server.target) == 0
        assert steps(capsys.readouterr().out)["fit"].endswith("was done before")
        assert live(client) == new.release_id != first
        assert new.manifest.training["dataset"]["counts"]["users"] == 259
        assert not (tmp_path / "next.refresh").exists()

        # The new item is known by behaviour: after two steps along its ring the next one comes first.
        client.record_events([towerbridge.event("view", f"item-{NEW_RING}-{place}", user_id="probe") for place in (3, 4)])
        found = client.recommend(user_id="probe", limit=2, exclude_seen=True)
        assert found.release_id == new.release_id and f"item-{NEW_RING}-5" in found.item_ids

        # A bundle that unlearnt everything is not even loaded.
        bad = ("warm_start.learning_rate=5", "training.final_learning_rate=5")
        assert refresh(tmp_path / "bad", *given, "--target", server.target, "--set", *bad) == 2
        refused = capsys.readouterr()
        assert refused.err.startswith("evaluate: ") and "is not promoted: N@10" in refused.err
        assert "load" not in steps(refused.out) and live(client) == new.release_id


def test_every_option_is_documented() -> None:
    docs = (Path(__file__).parents[2] / "docs" / "retraining.md").read_text(encoding="utf-8")
    done = subprocess.run([sys.executable, "-m", "training", "refresh", "--help"], capture_output=True, text=True, check=True)
    options = set(re.findall(r"^  (--[a-z-]+)", done.stdout, re.MULTILINE))
    assert len(options) > 20
    for option in options:
        assert f"`{option}`" in docs, option


@pytest.mark.parametrize("kind", ["all", "leave-one-out"])
def test_the_gate_asks_only_for_what_neither_bundle_was_taught(fitted: Path, kind: str) -> None:
    random = np.random.default_rng(1)
    people = [random.choice(60, random.integers(2, 6), replace=False).tolist() for _ in range(2000)]
    data, settings = interactions(*people, items=60), SplitConfig.model_validate({"kind": kind, "cold_items": 0.1})
    split = make_split(data, settings)
    bundle = read_bundle(fitted)

    def taught(until: datetime | None) -> Bundle:
        told = {"config": {"split": settings.model_dump()}, "split": split.describe()}
        more = {} if until is None else {"taught_until": until.isoformat()}
        return replace(bundle, manifest=bundle.manifest.model_copy(update={"training": told | more}))

    rows, newer = held_out_rows(data, taught(None), taught(None))
    held_out = split.validation if kind == "all" else split.test
    assert len(rows) == (held_out >= 0).sum() > 50 and not newer
    at = dict(zip(data.user[rows].tolist(), data.item[rows].tolist(), strict=True))
    for user, item in at.items():
        trained = split.data.item[split.data.offsets[user] : split.train_end[user]]
        assert item not in trained and not split.cold[item] and item == split.data.item[held_out[user]]
    # The one before knew all up to second 2. Whatever it held out then, a third item or whom it drew, is still asked for.
    moment = datetime.fromtimestamp(2, UTC)
    later, newer = held_out_rows(data, taught(None), taught(moment))
    ends = taught_before(split.data, 2_000_000, settings)
    fresh = held_out[(held_out >= ends) & (held_out >= 0)]
    fresh = fresh[split.data.time_us[fresh] > 2_000_000] if newer else fresh
    assert split.data.item[fresh].tolist() == data.item[later].tolist()
