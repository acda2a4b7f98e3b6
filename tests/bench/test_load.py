"""`python -m bench.load` on a real server: what its result holds, and that it means what it says."""

import json
import re
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from bench.load.arrivals import arrivals, replay_arrivals
from bench.load.job import Phase
from bench.load.mix import KINDS, METHODS, read_mix, read_replay
from bench.load.requests import Requests
from bench.world.ids import read_ids
from tests.bench.load_server import answering, load, same

KEYS = {
    *("offered_rps", "achieved_rps", "latency_ms", "codes", "shed", "recall_at_k", "freshness_lag_ms"),
    *("send_lateness_ms", "client_cpu", "knee_rps", "valid", "hardware"),
}
PLACES = {"p50", "p90", "p99", "p99_9", "max"}

pytestmark = pytest.mark.usefixtures("never_late")


@pytest.fixture(scope="module")
def measured(target: str, ids: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """JSON and HTML of reads, events and pairs together."""
    folder = tmp_path_factory.mktemp("measured")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.load.result.LATE_MS", float("inf"))
        status, result = load(target, ids, folder, "--rate", "40", "--events", "20", "--pairs", "10", "--duration", "2")
    assert status == 0
    return result, (folder / "r.html").read_text(encoding="utf-8")


def test_the_json_has_the_fields_that_others_read(measured: tuple[dict[str, Any], str]):
    result, _ = measured
    assert result.keys() >= KEYS
    assert result["latency_ms"].keys() == PLACES
    assert result["freshness_lag_ms"].keys() == {"p50", "p99"} and "p99" in result["send_lateness_ms"]
    assert result["valid"] is True and result["knee_rps"] is None and result["shed"] == 0
    assert {"cpu", "cores", "python", "versions"} <= result["hardware"].keys()


def test_every_call_is_counted_once_and_percentiles_rise(measured: tuple[dict[str, Any], str]):
    result, _ = measured
    assert result["codes"] == {"OK": result["calls"]} and result["failed"] == 0
    assert result["calls"] == sum(result["windows"]["calls"]) == round(result["offered_rps"] * result["seconds"])
    rows = result["methods"]
    assert set(rows) == {"recommend", "events", "pair", "pair_events", "pair_recommend"}
    assert result["calls"] == sum(sum(row["codes"].values()) for name, row in rows.items() if name != "pair")
    assert 0 < rows["pair"]["codes"]["OK"] == rows["pair_recommend"]["codes"]["OK"] == rows["pair_events"]["codes"]["OK"]
    for row in (result, *rows.values()):
        values = [row["latency_ms"][name] for name in ("p50", "p90", "p99", "p99_9", "max")]
        assert values == sorted(values) and values[0] > 0


def test_recall_and_freshness_come_from_the_same_run(measured: tuple[dict[str, Any], str]):
    result, _ = measured
    assert result["recall_at_k"] == 1.0 and result["recall_samples"] == 5  # so few items are searched exactly
    assert result["freshness"]["samples"] > 0 and result["freshness_lag_ms"]["p50"] > 0


def test_the_verdict_says_so_if_nobody_got_an_answer_of_their_own(target: str, tmp_path: Path):
    strangers = tmp_path / "strangers.json"
    strangers.write_text(json.dumps({"user_ids": ["nobody"], "item_ids": ["x"], "event_types": ["view"]}), encoding="utf-8")
    _, result = load(target, strangers, tmp_path, "--rate", "20")
    assert result["recall_at_k"] is None and "NO RECALL: no answer came from a person's vector" in result["verdict"]


def test_the_report_is_one_page_that_refers_to_nothing_outside(measured: tuple[dict[str, Any], str]):
    result, html = measured
    assert html.startswith("<!doctype html>") and html.count("<html") == 1 and html.rstrip().endswith("</html>")
    assert not re.search(r"<(script|link|img|iframe|image|object)\b", html)
    assert not re.search(r"""(src|href)\s*=\s*["'](?!#)""", html) and "@import" not in html
    assert not re.search(r"url\((?!['\"]?#)", html)
    assert html.count("<svg") == 3 and result["verdict"].split(";")[0] in html


def test_the_same_seed_makes_the_same_arrivals_and_requests_and_another_makes_others(ids: Path):
    def all_of(seed: int) -> list[Any]:
        random = np.random.default_rng(seed)
        return list(arrivals({"recommend": 200.0, "events": 100.0}, [Phase(1.0), Phase(1.0, 2.0)], random))

    def sent(seed: int) -> list[bytes]:
        requests = Requests(read_ids(ids), list(METHODS), limit=5, dim=8, seed=seed, run="run")
        return [requests.ready(kind, 3) for kind in range(len(KINDS)) if KINDS[kind] != "events"] + [requests.event(7)[1]]

    assert all_of(1) == all_of(1) != all_of(2)
    assert sent(1) == sent(1) != sent(2)


def test_a_factor_multiplies_reads_and_leaves_events(ids: Path):
    phases = [Phase(50.0), Phase(50.0, 3.0)]
    found = list(arrivals({"recommend": 100.0, "events": 50.0}, phases, np.random.default_rng(1)))
    assert [one.due for one in found] == sorted(one.due for one in found)
    reads, events = KINDS.index("recommend"), KINDS.index("events")
    for kind, first, second in ((reads, 5_000, 15_000), (events, 2_500, 2_500)):
        early = sum(one.kind == kind and one.due < 50 for one in found)
        late = sum(one.kind == kind and one.due >= 50 for one in found)
        assert early == pytest.approx(first, rel=0.1) and late == pytest.approx(second, rel=0.1)


def test_a_mix_shares_the_rate_by_its_weights(target: str, ids: Path, tmp_path: Path):
    mix = tmp_path / "mix.yaml"
    mix.write_text("".join(f"{kind}: 1\n" for kind in KINDS), encoding="utf-8")
    assert read_mix(mix) == pytest.approx(dict.fromkeys(KINDS, 1 / 7))
    status, result = load(target, ids, tmp_path, "--rate", "140", "--mix", str(mix))
    assert status == 0 and result["codes"].keys() == {"OK"} and set(result["methods"]) == set(KINDS)


def test_a_replay_sends_each_event_once_in_the_order_of_their_times(target: str, ids: Path, world: Path, tmp_path: Path):
    known = read_ids(world)
    rows = [f"{known.user_ids[n]},{known.item_ids[n]},{100 + n / 10},view" for n in range(20)]
    (tmp_path / "events.csv").write_text("user_id,item_id,occurred_at,type\n" + "\n".join(rows[::-1]), encoding="utf-8")
    replay = read_replay(tmp_path / "events.csv", speed=2.0)
    assert replay.user_ids == list(known.user_ids[:20]) and replay.due.tolist() == pytest.approx([n / 20 for n in range(20)])
    parts = [one.pick for part in range(3) for one in replay_arrivals(replay, part, 3, seconds=60.0)]
    assert sorted(parts) == list(range(20))
    asked = ("--replay", str(tmp_path / "events.csv"), "--replay-speed", "2", "--warm-up", "0", "--duration", "1.5")
    status, result = load(target, ids, tmp_path, *asked)
    assert status == 0 and result["methods"]["events"]["codes"] == {"OK": 20}


def test_beside_an_echo_every_pair_and_the_median_ratio_are_reported(target: str, ids: Path, tmp_path: Path):
    asked = ("--rate", "80", "--events", "20", "--duration", "0.5", "--echo", "--interleave", "2")
    status, result = load(target, ids, tmp_path, *asked)
    assert status == 0
    echo = result["echo"]
    assert echo["kind"] in ("aio", "sync") and set(echo["reply_bytes"]) == {METHODS["recommend"], METHODS["events"]}
    assert len(echo["pairs"]) == 2
    for pair in echo["pairs"]:
        assert pair["echo"]["codes"].keys() == {"OK"} == pair["ours"]["codes"].keys()
        assert pair["ratio"]["p99"] == round(pair["ours"]["latency_ms"]["p99"] / pair["echo"]["latency_ms"]["p99"], 3)
    assert echo["median_ratio"].keys() == {"p50", "p99"}
    assert result["calls"] == pytest.approx(2 * 50, rel=0.5)  # of ours alone
    assert "Beside the echo" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_calls_that_fail_and_calls_that_are_shed_are_told_apart(ids: Path, tmp_path: Path):
    codes = iter([*(None,) * 20, *(grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL, None) * 1_000])

    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        code = next(codes)
        if code is not None:
            context.abort(code, "no")
        return same("item-1")(request, context)

    with answering(answer) as target:
        status, result = load(target, ids, tmp_path, "--rate", "60", "--recall-queries", "0")
    assert status == 0 and result["valid"]  # the run can be trusted; the server is another matter
    counted = result["codes"]
    assert result["shed"] == counted["RESOURCE_EXHAUSTED"] > 0 and result["failed"] == counted["INTERNAL"] > 0
    assert result["calls"] == sum(counted.values()) and "not good" in result["verdict"]


def test_a_run_that_was_sent_late_is_invalid_and_exits_1(
    target: str, ids: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("bench.load.result.LATE_MS", -1.0)
    status, result = load(target, ids, tmp_path, "--rate", "20")
    assert status == 1 and result["valid"] is False
    assert "sent late" in result["invalid_because"][0] and result["verdict"].startswith("INVALID")


def test_the_result_is_json_without_nan(measured: tuple[dict[str, Any], str]):
    json.dumps(measured[0], allow_nan=False)
