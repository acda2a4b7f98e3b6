"""Start-up errors that end in a traceback or in silence; each test fails until its bug is mended."""

from pathlib import Path

import pytest

from server.config_sources import load_config
from server.errors import StartupError
from server.journal.database import open_journal


@pytest.mark.parametrize("content", [b"bundle: \xfc", b"1: 2"], ids=["a file that is not UTF-8", "a key that is not a word"])
def test_a_config_file_that_cannot_be_used_is_refused_in_one_line(tmp_path: Path, content: bytes):
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(StartupError):
        load_config(tmp_path / "c.yaml", {"bundle": Path("b"), "data": Path("d")})


def test_a_section_in_the_environment_that_is_not_json_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TOWERBRIDGE__LISTEN", "oops")
    with pytest.raises(StartupError, match="listen"):
        load_config(None, {"bundle": Path("b"), "data": Path("d")})


@pytest.mark.parametrize("name", ["TOWERBRIDGE__BUNDEL", "TOWERBRIDGE__LISTENN__PORT"])
def test_an_unknown_variable_is_refused_and_not_ignored(monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setenv(name, "1")
    with pytest.raises(StartupError, match=name.removeprefix("TOWERBRIDGE__").split("__")[0].lower()):
        load_config(None, {"bundle": Path("b"), "data": Path("d")})


def test_a_journal_that_sqlite_cannot_open_is_refused_in_one_line(tmp_path: Path):
    (tmp_path / "tenant" / "journal.sqlite").mkdir(parents=True)
    with pytest.raises(StartupError, match=r"journal\.sqlite"):
        open_journal(tmp_path / "tenant")
