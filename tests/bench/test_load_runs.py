"""What runs of `python -m bench.load` find out: an overload, a command in the middle, mixed answers, deadlines, processes."""

import threading
from collections import defaultdict
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray
from towerbridge import v1

from bench.load.channel import Reach
from bench.load.drive import Measured
from bench.load.job import RECORDS, Load, Phase
from bench.load.mix import KINDS
from bench.load.releases import ReleaseCheck, read_owners
from bench.load.stages import overload_of
from tests.bench.load_server import AtMost, answering, load, same

pytestmark = pytest.mark.usefixtures("never_late")
SHED = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
RECOMMEND = KINDS.index("recommend")


def test_an_overload_says_what_was_answered_what_was_shed_and_how_fast(ids: Path, tmp_path: Path):
    with answering(AtMost(30, at_once=20)) as target:
        status, result = load(target, ids, tmp_path, "--rate", "20", "--overload", "8", "--recall-queries", "0")
    assert status == 0 and result["valid"]
    found = result["overload"]
    before, during, after = (found[name] for name in ("before", "during", "after"))
    assert (found["factor"], found["base_rps"]) == (8.0, 20.0)
    assert during["offered_rps"] > 3 * before["offered_rps"] and during["offered_rps"] > 3 * after["offered_rps"]
    assert found["shed"] == during["shed"] == found["codes"]["RESOURCE_EXHAUSTED"] > 0
    assert sum(found["codes"].values()) == during["calls"] and found["codes"].keys() == {"OK", "RESOURCE_EXHAUSTED"}
    assert found["goodput_rps"] == found["codes"]["OK"] > 0  # the overload lasts a second
    assert found["goodput_share"] == round(found["goodput_rps"] / 20, 3)
    assert found["p99_ms"] == during["latency_ms"]["p99"] > 0
    assert f"{found['shed']} calls shed" in result["verdict"]


def overloaded(*refused: tuple[float, float], slow: tuple[float, float] = (0, 0), p99_s: float = 0.01) -> Measured:
    """An overload from 2 s to 4 s, to 6 s; calls every 10 ms. refused, slow: from and until when calls were due."""
    records: NDArray[Any] = np.zeros(600, dtype=RECORDS)
    records["due"] = np.arange(600) / 100
    records["kind"] = RECOMMEND
    records["taken"] = np.where((records["due"] >= slow[0]) & (records["due"] < slow[1]), 10 * p99_s, p99_s)
    for begin, end in refused:
        records["code"][(records["due"] >= begin) & (records["due"] < end)] = SHED
    phases = [Phase(2.0), Phase(2.0, 2.0), Phase(2.0)]
    rates = {"recommend": 100.0, "events": 50.0}
    asked = Load(Reach("x:1"), "ids", phases, 0.0, rates, limit=5, dim=8, deadline_s=1.0, seed=0)
    return Measured(asked, records, 1, 0.0, [0.0], [], 0, 0, None)


@pytest.mark.parametrize(
    ("measured", "recovery_s"),
    [
        (overloaded(), 0.0),
        (overloaded((2.0, 4.0)), 0.0),
        (overloaded((2.0, 4.3)), 0.5),
        (overloaded((2.0, 4.3), (4.6, 4.7)), 1.0),
        (overloaded(slow=(3.0, 4.9)), 1.0),
        (overloaded(slow=(3.0, 6.0)), None),
        (overloaded((5.5, 6.0), slow=(3.0, 5.5)), None),
        (overloaded((0.0, 2.0)), None),  # nothing to compare with
    ],
)
def test_recovery_is_the_time_until_reads_are_as_quick_as_before_and_none_is_refused(
    measured: Measured, recovery_s: float | None
):
    assert overload_of(measured)["recovery_s"] == recovery_s


def test_goodput_counts_reads_against_the_rate_of_reads_and_its_p99_is_of_those_answered():
    found = overload_of(overloaded((2.0, 3.0), slow=(2.0, 3.0)))
    assert found["goodput_rps"] == 50.0 and found["goodput_share"] == 0.5  # of reads: 50 events a second were asked for too
    assert found["p99_ms"] == pytest.approx(10.0, rel=0.01) and found["codes"] == {"OK": 100, "RESOURCE_EXHAUSTED": 100}


def test_before_during_and_after_a_command_are_told_apart(target: str, ids: Path, tmp_path: Path):
    asked = ("--rate", "60", "--duration", "3", "--during", "sleep 0.3; echo done", "--recall-queries", "0")
    _, result = load(target, ids, tmp_path, *asked)
    found = result["during"]
    assert found["command"] == "sleep 0.3; echo done" and (found["status"], found["output"]) == (0, "done\n")
    assert found["began_s"] >= 1.0 and found["ended_s"] - found["began_s"] >= 0.3
    assert result["valid"] is not found["outlived_the_load"]  # on a machine that is too busy it may
    assert set(found["p99_ms"]) == {"before", "during", "after"} and found["p99_ms"]["before"] > 0
    assert found["p99_ms"] == {name: found[name]["latency_ms"]["p99"] for name in ("before", "during", "after")}
    assert sum(found[name]["calls"] for name in ("before", "during", "after")) == result["calls"]
    assert found["ratio"] == round(found["p99_ms"]["during"] / found["p99_ms"]["before"], 3)


def test_a_command_that_fails_and_outlives_the_load_makes_the_run_invalid_for_both(target: str, ids: Path, tmp_path: Path):
    asked = ("--rate", "20", "--during", "echo no luck >&2; sleep 1; exit 3", "--recall-queries", "0")
    status, result = load(target, ids, tmp_path, *asked)
    assert status == 1 and result["valid"] is False and result["verdict"].startswith("INVALID")
    failed, outlived = result["invalid_because"]
    assert "status 3" in failed and "longer than the load" in outlived
    assert result["during"]["output"] == "no luck\n" and result["during"]["outlived_the_load"]


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    """Of r1: one.txt; of r2: two.json."""
    (tmp_path / "one.txt").write_text("item-1\nonly of r1\n", encoding="utf-8")
    (tmp_path / "two.json").write_text('["item-2"]', encoding="utf-8")
    (tmp_path / "releases.json").write_text('{"r1": "one.txt", "r2": "two.json"}', encoding="utf-8")
    return tmp_path / "releases.json"


def in_turn(*answers: Callable[..., v1.RecommendResponse]) -> Callable[..., v1.RecommendResponse]:
    """One answer after the other, again and again."""
    number = count()
    return lambda request, context: answers[next(number) % len(answers)](request, context)


@pytest.mark.parametrize(("strange", "is_mixed"), [("item-2", True), ("item-3", False)])
def test_mixed_answers_are_found_in_what_a_server_says_and_none_in_honest_ones(
    strange: str, is_mixed: bool, lists: Path, ids: Path, tmp_path: Path
):
    answer = in_turn(same("item-1", strange), same("item-2", "item-3", release_id="r2"))
    asked = ("--rate", "40", "--check-releases", str(lists), "--recall-queries", "0")
    with answering(answer) as target:
        _, result = load(target, ids, tmp_path, *asked)
    found = result["releases"]
    assert found["checked"] == sum(found["answers"].values()) > 0 and set(found["answers"]) == {"r1", "r2"}
    assert found["mixed"] == (found["answers"]["r1"] if is_mixed else 0)
    assert set(found["examples"]) == ({"an answer of r1 holds item-2 of r2"} if is_mixed else set())
    assert f"{found['mixed']} of {found['checked']} answers mix releases" in result["verdict"]


OF_R1 = {"release_id": "r1", "item_ids": ["item-1", "item-2"]}


@pytest.mark.parametrize(
    ("kind", "reply"),
    [
        ("recommend", v1.RecommendResponse(**OF_R1)),
        ("pair_recommend", v1.RecommendResponse(**OF_R1)),
        ("similar", v1.FindSimilarItemsResponse(**OF_R1)),
        ("batch_recommend", v1.BatchRecommendResponse(results=[{"response": OF_R1}])),
        ("search", v1.SearchVectorsResponse(release_id="r1", results=[{"item_ids": OF_R1["item_ids"]}])),
    ],
)
def test_every_kind_of_answer_with_items_is_looked_at(kind: str, reply: Any, lists: Path):
    check = ReleaseCheck(read_owners(lists))
    check.look(kind, reply.SerializeToString())
    assert check.result()["mixed"] == check.result()["checked"] == 1


@pytest.mark.parametrize("text", ["{0}-a\n{0}-b", "{0}-a\n{0}-b\n", "{0}-a\r\n{0}-b\r\n", "{0}-a\n\n{0}-b\n\n"])
def test_a_list_of_ids_may_end_in_a_newline_of_any_kind(text: str, tmp_path: Path):
    for name in ("r1", "r2"):
        (tmp_path / f"{name}.txt").write_bytes(text.format(name).encode())
    (tmp_path / "releases.json").write_text('{"r1": "r1.txt", "r2": "r2.txt"}', encoding="utf-8")
    owners = read_owners(tmp_path / "releases.json")
    assert owners == {"r1-a": "r1", "r1-b": "r1", "r2-a": "r2", "r2-b": "r2"}


def test_calls_that_run_out_of_time_are_counted_as_such(ids: Path, tmp_path: Path):
    asked_before, over = count(), threading.Event()

    def answer(request: v1.RecommendRequest, context: grpc.ServicerContext) -> v1.RecommendResponse:
        if next(asked_before) >= 20:  # as many are asked for before the load, for their size
            over.wait(30)
        return same("item-1")(request, context)

    with answering(answer) as target:
        asked = ("--rate", "20", "--deadline-ms", "100", "--recall-queries", "0")
        status, result = load(target, ids, tmp_path, *asked)
        over.set()
    assert status == 0 and result["codes"] == {"DEADLINE_EXCEEDED": result["calls"]} and result["calls"] > 0
    assert result["failed"] == result["calls"] and result["shed"] == 0 and result["achieved_rps"] == 0
    assert set(result["latency_ms"].values()) == {None} and "no call was answered" in result["verdict"]


def test_several_processes_share_a_load_and_none_sends_what_another_does(ids: Path, tmp_path: Path):
    asked: defaultdict[str, list[str]] = defaultdict(list)  # people, by connection

    def answer(request: v1.RecommendRequest, context: grpc.ServicerContext) -> v1.RecommendResponse:
        asked[context.peer()].append(request.subject.user_id)
        return same("item-1")(request, context)

    with answering(answer) as target:
        _, result = load(target, ids, tmp_path, "--rate", "60", "--processes", "2", "--recall-queries", "0")
    assert result["processes"] == 2 and result["codes"] == {"OK": result["calls"]}
    assert result["calls"] == pytest.approx(60, rel=0.5)
    _, one, other = (sorted(people) for people in asked.values())  # the first connection was there before the load
    assert one != other
    assert "2 process" in (tmp_path / "r.html").read_text(encoding="utf-8")
