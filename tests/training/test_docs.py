"""docs/training.md and docs/data.md are a contract: they name every command, option, column name and reason that there is."""

import re
from pathlib import Path

import pytest

from training.cli import main
from training.importers.columns import ALIASES

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
DATA = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")


def test_every_column_name_that_is_understood_is_documented() -> None:
    for name, aliases in ALIASES.items():
        assert f"| `{name}` |" in DATA
        assert ", ".join(aliases) in DATA


def test_every_reason_to_reject_a_row_is_documented() -> None:
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "training" / "importers").glob("*.py"))
    reasons = re.findall(r'reject\(.*, f?"([^"]+)"\)\n', source)
    assert len(reasons) >= 7
    for reason in reasons:
        for name in ("user_id", "item_id"):
            assert reason.replace("{name}", name).replace("{MAX_ID_BYTES}", "256") in DATA


@pytest.mark.parametrize("command", ["fit", "evaluate", "check", "import csv", "import amazon"])
def test_every_option_s_help_is_more_than_its_name(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: python -m training {command.split()[0]}")
    assert f"python -m training {command.split()[0]}" in DOCS + DATA
