"""What the documents tell people to type works as it is written."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import towerbridge

from bench.process import running_server
from tests.tiny import write_tiny_bundle

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
GUIDES = sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))
# Run by hand and by whoever reads README first; too long for a test, or it serves until it is stopped.
NOT_HERE = ("make ", ". .venv/bin/activate", "python -m server ")


def blocks(document: str, language: str) -> list[str]:
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def shell(script: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": f"{ROOT}:{ROOT / 'client'}"}
    command = ["bash", "-euo", "pipefail", "-c", script]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=240)


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server over a tiny bundle in which MovieLens' ids 1, 2 and 3 stand for something."""
    folder = tmp_path_factory.mktemp("docs")
    write_tiny_bundle(folder / "bundle", text=True)
    films = [
        towerbridge.item(str(n), text=text, categories=["red"], attributes={"title": text})
        for n, text in ((1, "red running shoes"), (2, "red wool hats"), (3, "blue summer hats"))
    ]
    with running_server(folder / "bundle", folder / "data", "--log-level", "error") as server:
        with towerbridge.Client(server.target, timeout_s=60) as client:
            assert all(result.searchable for result in client.upsert_items(films).results)
            everyone = [item.item.item_id for item in client.get_items([f"item-{n}" for n in range(50)]).items]
            renamed = [towerbridge.item(item_id, categories=["green"], attributes={"title": item_id}) for item_id in everyone]
            client.upsert_items(renamed)
        yield server.target.rpartition(":")[2]


def test_readmes_own_data_walkthrough_runs_as_written(tmp_path: Path):
    lines = [line for block in blocks("README.md", "sh") for line in block.splitlines()]
    script = "\n".join(line for line in lines if not line.startswith(NOT_HERE))
    assert script.count("python -m") >= 5
    done = shell(script, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 events written" in done.stdout


def test_readmes_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(
        re.findall(r"\bmake ([a-z-]+)", "\n".join(blocks("README.md", "sh")) + (ROOT / "CONTRIBUTING.md").read_text())
    )
    assert {"demo", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:.*## ", makefile, re.MULTILINE), target


@pytest.mark.parametrize("document", ["docs/calling.md"])
def test_the_shell_commands_run_as_written(document: str, port: str, tmp_path: Path):
    for script in blocks(document, "sh"):
        done = shell(script.replace("50051", port), tmp_path)
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("document", ["README.md", "docs/calling.md"])
def test_the_python_runs_as_written(document: str, port: str, tmp_path: Path):
    script = "\n".join(blocks(document, "python")).replace("50051", port)
    file = tmp_path / "document.py"
    file.write_text(script, encoding="utf-8")
    done = shell(f"{sys.executable} document.py", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("document", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", *GUIDES])
def test_every_link_leads_somewhere(document: str):
    text = (ROOT / document).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)", text):
        if not link.startswith("http"):
            assert (ROOT / document).parent.joinpath(link).exists(), f"{document}: {link}"


@pytest.mark.parametrize("document", ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", *GUIDES])
def test_no_document_holds_a_placeholder(document: str):
    text = (ROOT / document).read_text(encoding="utf-8")
    assert not re.search(r"@@|TODO|FIXME|^[A-Z_]{4,}$", text, re.MULTILINE)
