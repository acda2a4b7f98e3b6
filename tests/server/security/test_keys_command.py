"""python -m server.keys, as it is typed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from server.keys import _EPILOG
from server.security.key_file import read_keys
from server.security.keys import KeyRing


def keys(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "server.keys", *map(str, arguments)]
    root = Path(__file__).parents[3]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TOWERBRIDGE__")}
    env = {**inherited, "PYTHONPATH": f"{root}:{root / 'client'}", **environment}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=60)


def test_create_prints_the_key_alone_and_says_that_it_is_shown_once(tmp_path: Path):
    done = keys("create", "--tenant", "acme", "--name", "shop", "--roles", "read,ingest", "--file", "my.json", cwd=tmp_path)
    assert done.returncode == 0 and re.fullmatch(r"tb_[A-Za-z0-9_-]{43}\n", done.stdout)
    assert "shown this once" in done.stderr and done.stdout.strip() not in done.stderr
    caller = KeyRing(tmp_path / "my.json").caller([("authorization", f"Bearer {done.stdout.strip()}")])
    assert caller is not None and (caller.tenant, caller.name) == ("acme", "shop")


def test_list_shows_everything_but_secrets(tmp_path: Path):
    made = json.loads(keys("create", "--name", "shop", "--roles", "admin,read", "--json", cwd=tmp_path).stdout)
    other = json.loads(keys("create", "--name", "shop", "--roles", "audience", "--json", cwd=tmp_path).stdout)
    keys("revoke", other["id"], cwd=tmp_path)
    table, rows = keys("list", cwd=tmp_path), json.loads(keys("list", "--json", cwd=tmp_path).stdout)
    assert [row.split()[:4] for row in table.stdout.splitlines()] == [
        ["ID", "TENANT", "NAME", "ROLES"],
        [made["id"], "default", "shop", "read,admin"],
        [other["id"], "default", "shop", "audience"],
    ]
    assert [row.split()[5] == "-" for row in table.stdout.splitlines()[1:]] == [True, False]
    assert rows[0] == {name: value for name, value in made.items() if name != "key"}
    assert rows[1].keys() == rows[0].keys() | {"revoked_at"}
    for stored in read_keys(tmp_path / "keys.json")[1]:
        assert stored.sha256 not in table.stdout + json.dumps(rows)


def test_a_key_is_replaced_without_a_gap(tmp_path: Path):
    first, second = (
        json.loads(keys("create", "--name", "shop", "--roles", "read", "--json", cwd=tmp_path).stdout) for _ in "12"
    )
    third = keys("create", "--name", "shop", "--roles", "read", cwd=tmp_path)
    assert third.returncode == 2 and not third.stdout and third.stderr.startswith("error: ") and "revoke" in third.stderr
    done = keys("revoke", first["id"], cwd=tmp_path)
    assert done.returncode == 0 and "is revoked since" in done.stdout
    ring = KeyRing(tmp_path / "keys.json")
    assert ring.caller([("authorization", f"Bearer {first['key']}")]) is None
    assert ring.caller([("authorization", f"Bearer {second['key']}")]) is not None
    assert json.loads(keys("revoke", first["id"], "--json", cwd=tmp_path).stdout)["id"] == first["id"]


def test_the_file_is_the_servers_setting_by_default(tmp_path: Path):
    file = tmp_path / "elsewhere.json"
    assert (
        keys("create", "--name", "a", "--roles", "read", cwd=tmp_path, TOWERBRIDGE__SECURITY__KEYS_FILE=str(file)).returncode
        == 0
    )
    assert len(read_keys(file)[1]) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("create", "--name", "shop", "--roles", "read,write"), "some of read, ingest, admin, audience"),
        (("create", "--name", "shop", "--roles", "open"), "some of read, ingest, admin, audience"),
        (("create", "--name", "shop", "--roles", ""), "some of read, ingest, admin, audience"),
        (("create", "--name", "a shop", "--roles", "read"), "--name: must be letters"),
        (("create", "--tenant", "../acme", "--name", "shop", "--roles", "read"), "--tenant: must be lower-case"),
        (("create", "--tenant", "Acme", "--name", "shop", "--roles", "read"), "--tenant: must be lower-case"),
        (("revoke", "k_0123456789ab"), "there is no file of API keys"),
        (("list",), "there is no file of API keys"),
        (("list", "--file", "missing/keys.json"), "there is no file of API keys"),
        (("create", "--name", "shop", "--roles", "read", "--file", "missing/keys.json"), "check the directory"),
    ],
)
def test_what_is_wrong_is_said_with_the_remedy_and_nothing_is_written(tmp_path: Path, arguments: tuple[str, ...], says: str):
    done = keys(*arguments, cwd=tmp_path)
    assert done.returncode == 2 and says in done.stderr and not done.stdout and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_examples_of_help_run_as_written(tmp_path: Path):
    shown = keys("--help", cwd=tmp_path)
    assert shown.returncode == 0
    examples = re.findall(r"^  python -m server\.keys (.*)$", _EPILOG, re.MULTILINE)
    assert len(examples) == 4
    for example in examples:
        assert example in shown.stdout
        if "k_0123456789ab" in example:
            example = example.replace("k_0123456789ab", read_keys(tmp_path / "keys.json")[1][0].id)
        assert keys(*example.split(), cwd=tmp_path).returncode == 0
