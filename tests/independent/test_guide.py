"""docs/load-testing.md: what it tells people to type works, and it names every field and option that there is."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from bench.load.options import parse
from bench.load.sweep import step_of
from tests.independent.serving import PROTOS, ROOT

GUIDE = (ROOT / "docs" / "load-testing.md").read_text(encoding="utf-8")
PATIENCE_S = 240
PLAIN = ("steady", "mix", "replay", "a", "b")
RESULTS = (*PLAIN, "overload", "swap", "echo", "both")
KEYS_OF_DATA = ("codes", "answers", "methods", "methods_us", "reply_bytes", "settings", "versions")
"""Objects whose keys are no names of fields: codes, release ids, kinds of calls, options, packages."""
# A run that was sent late on a busy machine says so with 1; that is no fault of the guide.
PYTHON = """#!/bin/bash
case "$*" in
  "-m bench.load"*) {python} "$@" || [ $? = 1 ] ;;
  *) exec {python} "$@" ;;
esac
"""


def blocks(*languages: str) -> list[tuple[str, str]]:
    """Language and text, in the guide's order."""
    return re.findall(rf"^```({'|'.join(languages)})\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)


def free_port() -> str:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return str(sock.getsockname()[1])


def script() -> str:
    """The guide as one script, without what this machine lacks a program for, on ports of its own."""
    parts = []
    for language, text in blocks("sh", "python"):
        if "npm ci" in text and (shutil.which("node") is None or shutil.which("npm") is None):
            continue
        parts.append(text if language == "sh" else f"python - <<'END'\n{text}END\n")
    return "\n".join(parts).replace("50051", free_port()).replace("9464", free_port())


def run(text: str, cwd: Path, environment: dict[str, str]) -> tuple[int, str]:
    """Exit status and all that was said. Nothing that the script started outlives it."""
    command = ["bash", "-euo", "pipefail", "-c", text]
    with (cwd / "said").open("wb") as said:
        process = subprocess.Popen(
            command, cwd=cwd, env=environment, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            status = -1
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return status, (cwd / "said").read_text(encoding="utf-8", errors="replace")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What lies in the guide's folder when all of it was typed."""
    checkout = tmp_path_factory.mktemp("checkout")
    (checkout / "protos").symlink_to(PROTOS)
    shutil.copytree(ROOT / "tests" / "independent", checkout / "tests" / "independent", ignore=lambda *_: ["node_modules"])
    programs = checkout / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "python").write_text(PYTHON.format(python=sys.executable), encoding="utf-8")
    (programs / "python").chmod(0o755)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'client'}"}
    environment.pop("TOWERBRIDGE_API_KEY", None)
    status, said = run(script(), checkout, environment)
    assert status == 0, said
    return checkout / "build" / "load"


def result(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("name", RESULTS)
def test_the_commands_run_as_written_and_calls_are_answered(folder: Path, name: str):
    found = result(folder, name)
    assert found["calls"] > 0 and found["codes"]["OK"] > 0, found["codes"]
    assert (folder / f"{name}.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_the_release_that_changes_under_load_mixes_no_answers(folder: Path):
    found = result(folder, "swap")
    assert found["during"]["status"] == 0, found["during"]["output"]
    assert found["releases"]["mixed"] == 0 and found["releases"]["checked"] > 100
    owners = json.loads((folder / "releases.json").read_text(encoding="utf-8"))
    assert set(found["releases"]["answers"]) == set(owners) and len(owners) == 2


def fields(value: Any) -> Iterator[str]:
    """Names of fields at any depth."""
    if isinstance(value, list):
        for one in value:
            yield from fields(one)
    if not isinstance(value, dict):
        return
    for name, inner in value.items():
        yield name
        if name not in KEYS_OF_DATA:
            yield from fields(inner)
        elif name == "methods":
            yield from fields(list(inner.values()))


@pytest.mark.parametrize("name", RESULTS)
def test_every_field_of_a_result_is_in_the_guide(folder: Path, name: str):
    missing = {field for field in fields(result(folder, name)) if f"`{field}`" not in GUIDE}
    assert not missing


def test_every_field_of_a_sweeps_step_is_in_the_guide(folder: Path):
    missing = {field for field in fields(step_of(50.0, result(folder, "steady"), 20.0)) if f"`{field}`" not in GUIDE}
    assert not missing


def test_every_option_is_in_the_guide(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        parse(["--help"])
    options = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", capsys.readouterr().out)) - {"--help"}
    assert len(options) > 20
    assert not {option for option in options if not re.search(rf"{option}(?![\w-])", GUIDE)}


def test_commands_that_are_to_be_adapted_are_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ca.pem").write_text("", encoding="utf-8")
    text = "\n".join(block for _, block in blocks("console")).replace("\\\n", "")
    lines = re.findall(r"^\$ python -m bench\.load (.*)$", text, re.MULTILINE)
    assert len(lines) >= 2
    for line in lines:
        assert parse(shlex.split(line)).rate > 0
