"""The file of API keys: hashes only, two active keys of a name, and whole whatever happens."""

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.errors import StartupError
from server.security.key_file import ACTIVE_AT_ONCE, StoredKey, create, read_keys, revoke
from server.security.keys import KeyRing
from server.security.roles import GRANTED, Role
from tests.server.security.keyring import PATIENCE_S, bearer

READ = (Role.READ,)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def test_keys_have_256_random_bits_and_only_their_hashes_are_kept(path: Path):
    keys = [create(path, "acme", f"shop-{n}", READ)[0] for n in range(20)]
    assert len(set(keys)) == 20 and all(key.startswith("tb_") and len(key) == 46 for key in keys)
    text = path.read_text(encoding="utf-8")
    assert not any(key in text or key.removeprefix("tb_") in text for key in keys)
    assert all(sha256(key.encode()).hexdigest() in text for key in keys)


def test_the_file_and_what_lies_beside_it_are_the_owners_alone(path: Path):
    before = os.umask(0)
    try:
        create(path, "acme", "shop", READ)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    assert {file.name for file in path.parent.iterdir()} == {"keys.json", "keys.json.lock"}
    assert all(file.stat().st_mode & 0o077 == 0 for file in path.parent.iterdir())


def test_a_third_active_key_of_a_name_is_refused_with_the_remedy(path: Path):
    (_, first), (_, second) = (create(path, "acme", "shop", READ) for _ in range(2))
    before = path.read_bytes()
    with pytest.raises(StartupError, match=f"{first.id} and {second.id}; revoke"):
        create(path, "acme", "shop", READ)
    assert path.read_bytes() == before
    create(path, "acme", "another", READ)
    create(path, "other", "shop", READ)
    revoke(path, first.id)
    create(path, "acme", "shop", READ)


def test_revoking_twice_changes_nothing_and_an_unknown_id_is_refused(path: Path):
    _, stored = create(path, "acme", "shop", READ)
    revoked = revoke(path, stored.id)
    before = path.read_bytes()
    assert revoke(path, stored.id) == revoked
    with pytest.raises(StartupError, match="has no key k_ffffffffffff"):
        revoke(path, "k_ffffffffffff")
    assert path.read_bytes() == before
    with pytest.raises(StartupError, match="there is no file of API keys"):
        revoke(path.with_name("none"), stored.id)
    assert not list(path.parent.glob("none*"))


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("create"), st.sampled_from(["acme", "other"]), st.sampled_from(["shop", "app"])),
        st.tuples(st.just("revoke"), st.integers(0, 30), st.none()),
    ),
    max_size=30,
)


@given(ACTIONS)
@settings(max_examples=60, deadline=None)
def test_any_order_of_creating_and_revoking_keeps_the_rules(actions: list[tuple[str, object, object]]):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "keys.json"
        made: list[tuple[str, StoredKey]] = []
        revoked: set[str] = set()
        active: Counter[tuple[str, str]] = Counter()
        for kind, first, second in actions:
            if kind == "create":
                tenant, name = str(first), str(second)
                if active[tenant, name] == ACTIVE_AT_ONCE:
                    with pytest.raises(StartupError):
                        create(path, tenant, name, READ)
                    continue
                made.append(create(path, tenant, name, READ))
                active[tenant, name] += 1
            elif made:
                assert isinstance(first, int)
                _, stored = made[first % len(made)]
                revoke(path, stored.id)
                if stored.id not in revoked:
                    active[stored.tenant, stored.name] -= 1
                revoked.add(stored.id)
            if made:
                check(path, made, revoked)


def check(path: Path, made: list[tuple[str, StoredKey]], revoked: set[str]) -> None:
    _, keys = read_keys(path)
    assert [key.id for key in keys] == [stored.id for _, stored in made]
    assert {key.id for key in keys if not key.active} == revoked
    assert max(Counter((key.tenant, key.name) for key in keys if key.active).values(), default=0) <= ACTIVE_AT_ONCE
    ring = KeyRing(path)
    for key, stored in made:
        caller = ring.caller(bearer(key))
        assert (caller is None) if stored.id in revoked else (caller is not None and caller.key_id == stored.id)


WRITER = """
import sys
from pathlib import Path
from server.errors import StartupError
from server.security.key_file import create
from server.security.roles import Role

path, writer, made = Path(sys.argv[1]), sys.argv[2], 0
for n in range(10):
    create(path, "acme", f"{writer}-{n}", (Role.READ,))
for _ in range(3):
    try:
        create(path, "acme", "shared", (Role.READ,))
        made += 1
    except StartupError:
        pass
print(made)
"""


def test_many_writers_at_once_lose_nothing_and_never_exceed_two(path: Path):
    commands = [[sys.executable, "-c", WRITER, str(path), f"writer-{n}"] for n in range(3)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    said = [process.communicate(timeout=PATIENCE_S)[0] for process in running]
    assert sum(map(int, said)) == ACTIVE_AT_ONCE
    assert len(read_keys(path)[1]) == 3 * 10 + ACTIVE_AT_ONCE


CRASHES = """
import itertools, os, sys
from pathlib import Path
from server.security.key_file import create, read_keys, revoke
from server.security.roles import Role

STEPS = {"open", "os.rename", "os.remove", "fcntl.flock", "os.chmod", "os.chown"}  # what touches files passes the audit hook
path = Path(sys.argv[1])
read = (Role.READ,)
for change in ("create", "revoke"):
    for step in itertools.count():
        _, stored = create(path, "acme", f"{change}-{step}", read)
        before = read_keys(path)[1]
        child = os.fork()
        if child == 0:
            left = itertools.count(step, -1)
            sys.addaudithook(lambda event, _: os._exit(9) if event in STEPS and next(left) == 0 else None)
            create(path, "acme", f"{change}-{step}", read) if change == "create" else revoke(path, stored.id)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        after = read_keys(path)[1]
        assert code in (0, 9)
        assert after == before or after[: len(before)] == before or after[:-1] == before[:-1] and not after[-1].active
        print(change, code, after != before)
        if code == 0:
            break
"""


def test_a_crash_at_any_step_leaves_the_old_file_or_the_new_one(path: Path):
    done = subprocess.run([sys.executable, "-c", CRASHES, str(path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    seen = done.stdout.splitlines()
    for change in ("create", "revoke"):
        # Cut short before the rename, then after it, while the directory is synced, and in the end not at all.
        order = [line.removeprefix(change) for line in seen if line.startswith(change)]
        assert order == sorted(order, key=[" 9 False", " 9 True", " 0 True"].index) and len(set(order)) == 3


DAMAGED = [
    *("", "{", "{}", "[]", "null", "\x00" * 100, '{"format": 2, "keys": []}', '{"format": 1}', '{"keys": []}'),
    *('{"format": 1, "keys": [{}]}', '{"format": 1, "keys": [], "more": 1}'),
    *("ENTRY-tenant-../../etc", "ENTRY-roles-open", "ENTRY-roles-everything", "ENTRY-sha256-abc", "ENTRY-id-1", "TWICE"),
]


def damage(path: Path, how: str) -> None:
    entry = json.loads(path.read_text(encoding="utf-8"))["keys"][0]
    if how.startswith("ENTRY"):
        _, name, value = how.split("-", 2)
        how = json.dumps({"format": 1, "keys": [entry | {name: [value] if name == "roles" else value}]})
    elif how == "TWICE":
        how = json.dumps({"format": 1, "keys": [entry, entry]})
    path.write_text(how, encoding="utf-8")


@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_file_keeps_the_server_from_starting(path: Path, how: str):
    create(path, "acme", "shop", READ)
    damage(path, how)
    with pytest.raises(StartupError, match=r"are damaged .*put a copy back") as raised:
        KeyRing(path)
    assert "\n" not in str(raised.value)
    before = path.read_bytes()
    with pytest.raises(StartupError, match="are damaged"):
        create(path, "acme", "app", READ)  # what cannot be understood is not written over
    assert path.read_bytes() == before


def test_a_file_without_an_active_key_is_taken_with_a_warning(path: Path, caplog: pytest.LogCaptureFixture):
    revoke(path, create(path, "acme", "shop", READ)[1].id)
    KeyRing(path)
    [record] = caplog.records
    assert record.message == f"{path} has no active key: nobody can call; python -m server.keys create makes one"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o622, 0o611])
def test_a_file_that_others_can_use_keeps_the_server_from_starting(path: Path, mode: int):
    create(path, "acme", "shop", READ)
    path.chmod(mode)
    with pytest.raises(StartupError, match=f"run chmod 600 {path}"):
        KeyRing(path)


def test_a_missing_file_keeps_the_server_from_starting(path: Path):
    with pytest.raises(StartupError, match=r"python -m server\.keys create"):
        KeyRing(path)


def test_what_root_writes_stays_the_servers_own(path: Path):
    if os.geteuid() != 0:
        pytest.skip("needs root")
    _, stored = create(path, "acme", "shop", READ)
    os.chown(path, 12345, -1)
    create(path, "acme", "app", READ)
    revoke(path, stored.id)
    assert path.stat().st_uid == path.with_name("keys.json.lock").stat().st_uid == 12345


def test_of_a_link_the_file_it_leads_to_is_replaced(path: Path, tmp_path: Path):
    (tmp_path / "real").mkdir()
    path.symlink_to(tmp_path / "real" / "keys.json")
    key, _ = create(path, "acme", "shop", GRANTED)
    assert path.is_symlink() and KeyRing(path).caller(bearer(key)) is not None
