"""The docs of training are a contract: they name every command, column name and reason to reject a row that there is."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from training.cli import main
from training.importers.columns import ALIASES

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
DATA = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
MORE = "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("evaluation.md", "retraining.md"))


def test_every_column_name_that_is_understood_is_documented() -> None:
    for name, aliases in ALIASES.items():
        assert f"| `{name}` |" in DATA
        assert ", ".join(aliases) in DATA


def test_the_documented_reasons_to_reject_a_row_are_those_that_are_given() -> None:
    table = DATA[DATA.index("| reason | rows |") : DATA.index("A missing file or column")]
    rows = [row for row in table.splitlines()[2:] if row]
    documented = {reason for row in rows for reason in row.split("|")[1].strip().split("; ")}
    given = {reason for path in (ROOT / "training" / "importers").glob("*.py") for reason in reasons(path)}
    named = {form.replace("{name}", name) for form in given for name in ("user_id", "item_id")}
    assert documented == {reason.replace("{MAX_ID_BYTES}", "256") for reason in named}


def reasons(path: Path) -> Iterator[str]:
    """What a module gives as reasons: to `Marks.reject`, to `Rejects.add`, and as answers of `_problem`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            place = {"reject": 1, "add": 2}.get(node.func.attr, len(node.args))
            yield from literal(*node.args[place : place + 1])
        if isinstance(node, ast.FunctionDef) and node.name == "_problem":
            for answer in ast.walk(node):
                yield from literal(answer.value) if isinstance(answer, ast.Return) else []


def literal(*nodes: ast.expr | None) -> Iterator[str]:
    """Those that are texts, as they are written; not the empty one."""
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            yield ast.unparse(node)[2:-1]
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value:
            yield node.value


KINDS = ["movielens-small", "amazon", "retailrocket", "online-retail", "csv", "parquet"]
COMMANDS = ["fit", "evaluate", "refresh", "check", "onnx", *(f"import {kind}" for kind in KINDS)]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_a_help_and_every_command_stands_in_the_docs(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: python -m training {command}")
    assert re.search(rf"python -m training {command}\b", DOCS + DATA + MORE)
    entries = re.split(r"\n  (?=-)", printed.split("options:")[1].split("\n\n")[0])[1:]
    assert len(entries) >= 1
    for entry in entries:
        assert re.fullmatch(r"\S+( [^ ].*?)??(  +|\n +)\S.*", entry, re.DOTALL), f"{command}: no help: {entry}"
