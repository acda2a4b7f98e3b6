"""python -m server.journal --tenant: each verb works on one tenant's journal and leaves the others alone."""

import io
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
import pytest

from server.journal.__main__ import main
from tests.server.test_export import events_file

AGREED = ("--consent", "personalisation,training", "--consent-source", "terms")


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def run(folder: Path, *arguments: object) -> Done:
    """What python -m server.journal does with these, without the seconds that a process takes to import it all."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["server.journal", *map(str, arguments)]
    try:
        with chdir(folder), redirect_stdout(out), redirect_stderr(err):
            code = main()
    except SystemExit as ended:  # argparse's
        code = int(ended.code or 0)
    finally:
        sys.argv = before
    return Done(code, out.getvalue(), err.getvalue())


def of(tenant: str) -> tuple[str, ...]:
    return ("--data", "state", "--tenant", tenant)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two tenants with people of the same ids."""
    for tenant, people in {"acme": ("ann", "ben", "ann"), "other": ("ann",)}.items():
        file = events_file(tmp_path / f"{tenant}.parquet", *people)
        done = run(tmp_path, "import", file, *AGREED, *of(tenant))
        assert done.returncode == 0 and done.stdout.startswith(f"{len(people)} events written"), done.stderr
    return tmp_path


def test_every_verb_reads_and_writes_its_tenants_journal_alone(folder: Path):
    assert sorted(path.name for path in (folder / "state").iterdir()) == ["acme", "other"]
    for tenant, events in {"acme": 3, "other": 1}.items():
        assert f"{events} events" in run(folder, "verify", *of(tenant)).stdout
        exported = folder / f"{tenant}-export.parquet"
        assert run(folder, "export", "--out", exported, *of(tenant)).returncode == 0
        assert pq.read_metadata(exported).num_rows == events
        assert run(folder, "screen", exported, *of(tenant)).stdout.endswith(f"0 events removed, {events} kept\n")
        assert f"{events} events" in run(folder, "backup", *of(tenant)).stdout
    [backup] = (folder / "state" / "other" / "backups").glob("*.sqlite")
    before = run(folder, "verify", *of("acme")).stdout
    restored = run(folder, "restore", backup, "--replace", *of("other"))
    assert restored.returncode == 0 and "1 events" in restored.stdout, restored.stderr
    assert run(folder, "verify", *of("acme")).stdout == before


def test_without_the_flag_it_is_the_default_tenant(folder: Path):
    missing = run(folder, "verify", "--data", "state")
    assert missing.returncode == 2 and "state/default holds no journal; check --data and --tenant" in missing.stderr
    assert run(folder, "import", folder / "other.parquet", *AGREED, "--data", "state").returncode == 0
    assert "1 events" in run(folder, "verify", "--data", "state").stdout


@pytest.mark.parametrize("name", ["..", "../acme", "/tmp", "Acme", "", "a.b", "_a", "a" * 64, "acme\n"])
def test_a_name_that_no_tenant_can_have_is_refused(tmp_path: Path, name: str):
    for verb in (["verify"], ["import", "x"], ["backup"], ["restore", "x"], ["export", "--out", "x"], ["screen", "x"]):
        done = run(tmp_path, *verb, *of(name))
        assert done.returncode == 2 and "--tenant: must be lower-case letters" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_tenant_that_the_settings_do_not_serve_is_refused_before_anything_is_made(folder: Path):
    settings = folder / "settings.yaml"
    settings.write_text(
        "tenants: {acme: {bundle: a}, default: {bundle: b}}\nsecurity: {keys_file: keys.json}\n", encoding="utf-8"
    )
    importing = ("import", folder / "other.parquet", *AGREED, "--config", settings)
    done = run(folder, *importing, *of("acne"))
    assert done.returncode == 2 and "serves no tenant acne, but acme, default; give --tenant NAME" in done.stderr
    assert not (folder / "state" / "acne").exists()
    assert run(folder, *importing, *of("acme")).returncode == 0
    assert run(folder, *importing, "--data", "state").returncode == 0
    settings.write_text("consent: {training: opt_out}\n", encoding="utf-8")  # says nothing of tenants
    assert run(folder, *importing, *of("acme")).returncode == 0
