"""The knee that a sweep finds: of a server with a known limit, and what a late client makes of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.load.__main__ import main
from bench.load.sweep import sweep
from bench.load.verdict import verdict
from tests.bench.load_server import AtMost, answering, load

STEP = {"rate", "offered_rps", "achieved_rps", "p50", "p99", "valid", "passed", "why"}
LATE = "calls were sent late"
P99_MS = 20.0


def found(rate: float, p99: float = 1.0, late: bool = False) -> dict[str, Any]:
    """The result of a run in which every call was answered."""
    return {
        "offered_rps": rate,
        "achieved_rps": rate,
        "calls": 1000,
        "codes": {"OK": 1000},
        "shed": 0,
        "failed": 0,
        "latency_ms": {"p50": p99 / 2, "p99": p99},
        "send_lateness_ms": {"p99": 9.0 if late else 0.1},
        "client_cpu": 0.5,
        "processes": 1,
        "valid": not late,
        "invalid_because": [LATE] if late else [],
    }


class Runs:
    """Results by rate; keeps what was asked for."""

    def __init__(self, result: Callable[[float, int], dict[str, Any]]) -> None:
        self.asked: list[tuple[float, int]] = []
        self._result = result

    def __call__(self, rate: float, more: int) -> dict[str, Any]:
        self.asked.append((rate, more))
        return self._result(rate, more)


def limited(rate: float, more: int) -> dict[str, Any]:
    return found(rate, p99=5.0 if rate <= 1000 else 50.0)


@pytest.mark.parametrize("start", [10.0, 900.0, 1000.0, 20_000.0])
def test_the_knee_is_found_to_five_percent_from_below_and_from_above(start: float):
    swept = sweep(limited, start, P99_MS)
    assert swept.knee is not None and 950 <= swept.knee <= 1000
    assert not swept.client_was_the_limit and swept.best["offered_rps"] == pytest.approx(swept.knee, abs=0.1)


def test_a_step_that_is_late_and_quick_is_repeated_with_a_process_more_and_is_no_end_of_the_search():
    late_once: set[float] = set()

    def run(rate: float, more: int) -> dict[str, Any]:
        if 300 < rate <= 1000 and not more:
            late_once.add(rate)
            return found(rate, late=True)
        return limited(rate, more)

    runs = Runs(run)
    swept = sweep(runs, 100.0, P99_MS)
    assert swept.knee is not None and 950 <= swept.knee <= 1000 and not swept.client_was_the_limit
    assert late_once and all((rate, 1) in runs.asked for rate in late_once)
    noted = [step for step in swept.steps if not step["valid"]]
    assert {step["why"] for step in noted} == {LATE} and not any(step["passed"] or step["past_knee"] for step in noted)


def test_a_rate_that_stays_late_is_set_aside_and_the_search_goes_on_around_it():
    def run(rate: float, more: int) -> dict[str, Any]:
        return found(rate, late=True) if 400 < rate < 520 else limited(rate, more)

    swept = sweep(run, 200.0, P99_MS)  # 450 is a step on the way up
    assert swept.knee is not None and 950 <= swept.knee <= 1000 and not swept.client_was_the_limit


def test_where_the_client_gives_up_the_knee_is_said_to_be_a_lower_bound():
    swept = sweep(lambda rate, more: found(rate, late=rate > 500), 100.0, P99_MS)
    assert swept.knee is not None and 300 <= swept.knee <= 500 and swept.client_was_the_limit


def test_slow_answers_are_past_the_knee_even_if_they_were_sent_late_and_both_are_noted():
    def run(rate: float, more: int) -> dict[str, Any]:
        return found(rate, p99=5.0 if rate <= 1000 else 50.0, late=rate > 1000)

    runs = Runs(run)
    swept = sweep(runs, 100.0, P99_MS)
    assert swept.knee is not None and 950 <= swept.knee <= 1000 and not swept.client_was_the_limit
    assert not any(more for _, more in runs.asked)
    past = [step for step in swept.steps if step["past_knee"]]
    assert past and all("p99 50 ms" in step["why"] and LATE in step["why"] and not step["valid"] for step in past)


def test_an_echo_that_was_slow_since_it_was_called_late_says_nothing_of_the_echo():
    def run(rate: float, more: int) -> dict[str, Any]:
        return found(rate, p99=5.0 if rate <= 500 else 50.0, late=rate > 500)

    swept = sweep(run, 100.0, P99_MS, late_is_past=False)
    assert swept.knee is not None and 300 <= swept.knee <= 500 and swept.client_was_the_limit
    assert not any(step["past_knee"] for step in swept.steps)


def test_if_no_rate_is_good_there_is_no_knee_and_the_verdict_says_so():
    swept = sweep(lambda rate, more: found(rate, p99=50.0), 100.0, P99_MS)
    assert swept.knee is None and not swept.client_was_the_limit
    result = swept.best | {"knee_rps": None, "sweep": swept.steps, "recall_at_k": None, "k": 5, "releases": None}
    assert verdict(result, P99_MS).startswith("No rate was good:")


def test_if_every_rate_is_late_nothing_is_said_of_the_server():
    swept = sweep(lambda rate, more: found(rate, late=True), 100.0, P99_MS)
    assert swept.knee is None and swept.client_was_the_limit


@pytest.mark.usefixtures("never_late")
def test_a_server_with_a_limit_has_its_knee_there(ids: Path, tmp_path: Path):
    with answering(AtMost(40, at_once=25)) as target:
        asked = ("--sweep", "--rate", "30", "--duration", "0.5", "--recall-queries", "0")
        status, result = load(target, ids, tmp_path, *asked)
    assert status == 0 and result["valid"]
    assert 20 <= result["knee_rps"] <= 120  # 40 a second, and the 25 at once
    assert all(step.keys() >= STEP for step in result["sweep"])
    past = [step for step in result["sweep"] if not step["passed"]]
    assert past and all(step["codes"]["RESOURCE_EXHAUSTED"] and "not answered" in step["why"] for step in past)
    assert f"{result['knee_rps']:g} reads/s" in result["verdict"]
    assert "Steps of the sweep" in (tmp_path / "r.html").read_text(encoding="utf-8")


@pytest.mark.usefixtures("never_late")
def test_the_echo_is_swept_by_the_same_rules(target: str, ids: Path, tmp_path: Path):
    # One step each, which this seed has calls in.
    asked = ("--sweep", "--echo", "--rate", "1", "--p99-ms", "0.001", "--duration", "1", "--seed", "7", "--recall-queries", "0")
    status, result = load(target, ids, tmp_path, *asked)
    assert status == 0 and result["knee_rps"] is None and "No rate was good: " in result["verdict"]
    echo = result["echo"]
    assert echo["knees_rps"] == {"aio": None, "sync": None}
    assert echo["knee_rps"] is None and echo["knee_ratio"] is None and echo["client_was_the_limit"] is False
    assert "No rate was good on the echo" in result["verdict"]
    assert all(step.keys() >= STEP and step["past_knee"] for step in echo["sweep"])


def test_a_sweep_without_reads_would_never_end_and_is_refused(
    ids: Path, target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "mix.yaml").write_text("events: 1\n", encoding="utf-8")
    files = ["--json", str(tmp_path / "r.json"), "--html", str(tmp_path / "r.html"), "--mix", str(tmp_path / "mix.yaml")]
    assert main(["--target", target, "--ids", str(ids), *files, "--rate", "5", "--sweep"]) == 2
    assert "--mix has none" in capsys.readouterr().err
