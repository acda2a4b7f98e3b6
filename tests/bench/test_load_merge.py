"""`python -m bench.load merge`: results of several hosts as one."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench.load.__main__ import main
from bench.load.figures import decoded
from tests.bench.load_server import load

pytestmark = pytest.mark.usefixtures("never_late")


@pytest.fixture(scope="module")
def hosts(target: str, ids: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Results of two runs, only the second of which has events."""
    files = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.load.result.LATE_MS", float("inf"))
        for extra in ((), ("--events", "20")):
            folder = tmp_path_factory.mktemp("host")
            load(target, ids, folder, "--rate", "40", *extra)
            files.append(folder / "r.json")
    return files


def merged(files: list[Path], folder: Path) -> tuple[int, Path]:
    out = folder / "all.json"
    return main(["merge", *map(str, files), "--json", str(out), "--html", str(folder / "all.html")]), out


def test_a_result_is_not_added_to_itself(hosts: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    status, out = merged([hosts[0], hosts[1], hosts[0]], tmp_path)
    assert status == 2 and not out.exists()
    assert "one result is there twice" in capsys.readouterr().err


def test_calls_rates_and_codes_are_added_and_percentiles_come_from_all_latencies(hosts: list[Path], tmp_path: Path):
    status, out = merged(hosts, tmp_path)
    assert status == 0
    one, other, both = (json.loads(path.read_text(encoding="utf-8")) for path in (*hosts, out))
    for name in ("calls", "shed", "failed", "processes"):
        assert both[name] == one[name] + other[name]
    for name in ("offered_rps", "achieved_rps", "client_cpu"):
        assert both[name] == pytest.approx(one[name] + other[name], abs=0.01)
    assert both["codes"]["OK"] == one["codes"]["OK"] + other["codes"]["OK"]
    assert both["latency_ms"]["max"] == pytest.approx(max(x["latency_ms"]["max"] for x in (one, other)), rel=0.001)
    assert decoded(both["histograms"]["latency_us"]).get_total_count() == sum(
        x["methods"]["recommend"]["codes"]["OK"] for x in (one, other)
    )
    rows = [x["methods"]["recommend"] for x in (one, other, both)]
    assert rows[2]["offered_rps"] == pytest.approx(rows[0]["offered_rps"] + rows[1]["offered_rps"], abs=0.02)
    assert both["methods"]["events"] == other["methods"]["events"]
    assert len(both["hardware"]) == len(both["merged"]) == 2
    assert "Hosts" in (tmp_path / "all.html").read_text(encoding="utf-8")


def without_kinds(result: dict[str, Any]) -> None:
    del result["histograms"]["methods_us"]


def without_one_kind(result: dict[str, Any]) -> None:
    result["histograms"]["methods_us"].pop("recommend")


def damaged(result: dict[str, Any]) -> None:
    result["histograms"]["latency_us"] = "AAAA"


def without_codes(result: dict[str, Any]) -> None:
    del result["codes"]


def with_another_limit(result: dict[str, Any]) -> None:
    result["settings"]["limit"] += 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without_kinds, "lacks histograms.methods_us: an older version wrote it; measure again"),
        (without_one_kind, "lacks the histogram of recommend"),
        (damaged, "damaged histogram"),
        (without_codes, "lacks codes"),
        (with_another_limit, "differ in --limit"),
    ],
)
def test_results_that_cannot_be_added_are_one_line_and_exit_2(
    change: Any, said: str, hosts: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    result = json.loads(hosts[1].read_text(encoding="utf-8"))
    change(result)
    (tmp_path / "changed.json").write_text(json.dumps(result), encoding="utf-8")
    capsys.readouterr()
    status, out = merged([hosts[0], tmp_path / "changed.json"], tmp_path)
    error = capsys.readouterr().err
    assert status == 2 and error.count("\n") == 1 and said in error and not out.exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", "no json"])
def test_what_is_no_result_is_one_line_and_exit_2(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "x.json").write_text(text, encoding="utf-8")
    status, _ = merged([tmp_path / "x.json"], tmp_path)
    error = capsys.readouterr().err
    assert status == 2 and error.startswith("error: ") and error.count("\n") == 1
