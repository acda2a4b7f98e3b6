"""Imports point one way, and nothing else may creep in."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("client", "index", "training", "server", "bench")
TOWERS = {"training.towers", "training.export.bundle", "training.data.catalogue", "training.config"}
DATA = {"training.data.dataset", "training.data.interactions", "training.data.windows", "training.errors", "training.progress"}
REPLAY = {"training.fitting.fit", "training.data.text", "training.evaluation.intervals", "server.app", "server.config"}
ALLOWED = {
    "client": {"towerbridge"},
    "index": {"index"},
    "training": {"training", "index"},
    "server": {"server", "index", "towerbridge.v1"},
    # The journal alone is what durable calls are compared with. bench.world fills a journal, and exports training's towers, so
    # that what is measured has the operators that are served. bench.freshness reads what training imports, trains on the part
    # before the cut, places new items by their text, and runs a whole server in its own process, since the server's clock must
    # be the replay's.
    "bench": {"bench", "index", "towerbridge", "server.journal", "server.errors", *TOWERS, *DATA, *REPLAY},
}
# A command that calls a running server, as any client does; nothing imports it.
COMMANDS = {"server/release.py": {"towerbridge"}}
# Of training, in the order in which data flows: each imports only from those before it.
TRAINING = (
    "progress",
    "data",
    "importers",
    "towers",
    "export",
    "evaluation",
    "incremental",
    "fitting",
    "refresh",
    "commands",
    "cli",
)
EVERYWHERE = {"errors", "config"}
OURS = {"towerbridge", "index", "training", "server", "bench", "tests"}


def imports(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return {name for name in names if name.partition(".")[0] in OURS}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_the_rooms_below_it(room: str):
    files = [file for file in (ROOT / room).rglob("*.py") if not file.name.endswith(("_pb2.py", "_pb2_grpc.py"))]
    assert files
    for file in files:
        permitted = ALLOWED[room] | COMMANDS.get(file.relative_to(ROOT).as_posix(), set())
        for name in imports(file):
            assert any(name == allowed or name.startswith(f"{allowed}.") for allowed in permitted), f"{file}: {name}"
            assert f"{name.replace('.', '/')}.py" not in COMMANDS, f"{file}: {name} is a command"


@pytest.mark.parametrize("room", TRAINING)
def test_a_room_of_training_imports_only_from_those_before_it(room: str):
    before = {*TRAINING[: TRAINING.index(room) + 1], *EVERYWHERE}
    files = [*(ROOT / "training" / room).rglob("*.py"), *(ROOT / "training").glob(f"{room}.py")]
    assert files
    for file in files:
        for name in imports(file):
            rooms = name.split(".")
            assert rooms[0] != "training" or rooms[1] in before, f"{file}: {name}"


def test_a_breach_would_be_seen(tmp_path: Path):
    file = tmp_path / "breach.py"
    file.write_text("def late():\n    from training.fitting.fit import fit\n    import numpy\n", encoding="utf-8")
    assert imports(file) == {"training.fitting.fit"}


def test_the_protos_folder_holds_the_contract_and_nothing_else():
    names = {path.relative_to(ROOT / "protos").as_posix() for path in (ROOT / "protos").rglob("*") if path.is_file()}
    assert all(name == "generate.sh" or (name.startswith("towerbridge/v1/") and name.endswith(".proto")) for name in names)
