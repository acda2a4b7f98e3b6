"""Settings: which source wins, and what a wrong one is told."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

import server.config
from server.config import Config
from server.config_sources import load_config
from server.errors import StartupError

REQUIRED: dict[str, Any] = {"bundle": Path("b"), "data": Path("d")}
EXAMPLE = Path(server.config.__file__).with_name("config.example.yaml")


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("TOWERBRIDGE__"):
            monkeypatch.delenv(name)


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_without_any_source_the_defaults_hold():
    config = load_config(None, REQUIRED)
    assert (config.bundle, config.data) == (Path("b"), Path("d"))
    assert (config.listen.host, config.listen.port) == ("127.0.0.1", 50051)
    assert (config.engine.device, config.engine.threads, config.users.refresh) == ("cpu", 1, True)


def test_later_sources_win_key_by_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Four keys of one section, each set one source further up than the one before."""
    file = written(
        tmp_path / "c.yaml",
        "bundle: from-file\ndata: from-file\nlisten: {max_message_bytes: 2, host: file, port: 2}\nengine: {threads: 2}\n",
    )
    monkeypatch.setenv("TOWERBRIDGE__LISTEN__HOST", "environment")
    monkeypatch.setenv("TOWERBRIDGE__LISTEN__PORT", "3")
    monkeypatch.setenv("TOWERBRIDGE__DATA", "from-environment")
    config = load_config(file, {"listen": {"port": 4}, "engine": {"device": "cuda:1"}})
    listen = config.listen
    assert (listen.drain_seconds, listen.max_message_bytes, listen.host, listen.port) == (10.0, 2, "environment", 4)
    assert (config.bundle, config.data) == (Path("from-file"), Path("from-environment"))
    assert (config.engine.device, config.engine.threads) == ("cuda:1", 2)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lsten: {port: 1}", "lsten: "),
        ("listen: {prot: 1}", "listen.prot: "),
        ("listen: {port: 65536}", "listen.port: "),
        ("listen: {port: many}", "listen.port: "),
        ("listen: {drain_seconds: -1}", "listen.drain_seconds: "),
        ("listen: 5", "listen: must hold keys and values"),
        ("listen: {port: true}", "listen.port: must not be true or false"),
        ("metrics: {port: yes}", "metrics.port: must not be true or false"),
        ("listen: {drain_seconds: off}", "listen.drain_seconds: must not be true or false"),
        ("listen: {port: 9464}\nmetrics: {port: 9464}", "metrics.port and listen.port are both 9464; give two ports"),
        ("releases: {bundles: one}", "releases.bundles: must be a list"),
        ("tenants: [one]", "tenants: must hold keys and values"),
        ("tenants: {one: two}", "tenants.one: must hold keys and values"),
        ("engine: {device: tpu}", "engine.device: "),
        ("engine: {max_batch: 0}", "engine.max_batch: "),
        ("users: {max_history_events: 0}", "users.max_history_events: "),
        ("users: {refresh: perhaps}", "users.refresh: "),
        ("journal: {max_group_rows: 0}", "journal.max_group_rows: "),
        ("journal: {retention_days: 3}", "configuration: journal: retention_days must be at least event_id_days"),
        ("users: {max_history_events: 2000}", "configuration: journal.max_events_per_person must be at least "),
        ("- a list", "must hold sections and keys"),
        ("listen: {", "is not YAML"),
        ("listen: {port: 1}\nsecurity: {}\nlisten: {port: 2}", "listen is there twice"),
        ("listen: {port: 1, port: 2}", "port is there twice"),
        ("engine: {threads: 100000}", "engine.threads: "),
    ],
)
def test_a_bad_file_is_refused_in_one_line_that_names_the_key(tmp_path: Path, text: str, says: str):
    with pytest.raises(StartupError) as caught:
        load_config(written(tmp_path / "c.yaml", text), REQUIRED)
    assert says in str(caught.value) and str(caught.value).startswith("configuration: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [("TOWERBRIDGE__LISTEN__PROT", "1", "listen.prot"), ("TOWERBRIDGE__ENGINE__THREADS", "", "engine.threads")],
)
def test_a_bad_variable_is_refused_in_one_line_that_names_the_key(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
):
    monkeypatch.setenv(name, value)
    with pytest.raises(StartupError) as caught:
        load_config(None, REQUIRED)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_there_and_a_key_that_is_missing_are_named(tmp_path: Path):
    with pytest.raises(StartupError, match=r"cannot read .*absent\.yaml: No such file"):
        load_config(tmp_path / "absent.yaml", REQUIRED)
    with pytest.raises(StartupError, match="configuration: data: is needed"):
        load_config(None, {"bundle": Path("b")})


def test_a_key_of_ones_own_replaces_one_that_is_merged_in(tmp_path: Path):
    text = "listen: {<<: {port: 1, drain_seconds: 7}, port: 2}"
    listen = load_config(written(tmp_path / "c.yaml", text), REQUIRED).listen
    assert (listen.port, listen.drain_seconds) == (2, 7)


def test_an_empty_file_changes_nothing(tmp_path: Path):
    empty = load_config(written(tmp_path / "c.yaml", "# nothing\n"), REQUIRED)
    assert empty.model_dump() == load_config(None, REQUIRED).model_dump()


def test_the_tree_is_frozen_at_every_level():
    config = load_config(None, REQUIRED)
    for part, name in ((config, "bundle"), (config.listen, "port"), (config.engine, "device")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(part, name, getattr(part, name))


# config.example.yaml


def keys_of(model: type[BaseModel]) -> dict[str, Any]:
    """The names of all keys, nested as the tree is."""
    inner = {name: info.annotation for name, info in model.model_fields.items()}
    return {
        name: keys_of(kind) if isinstance(kind, type) and issubclass(kind, BaseModel) else None for name, kind in inner.items()
    }


def test_the_example_has_every_key_with_its_default():
    values = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    found = {name: dict.fromkeys(value) if isinstance(value, dict) and value else None for name, value in values.items()}
    assert found == keys_of(Config)
    defaults = load_config(None, {"bundle": Path(values["bundle"]), "data": Path(values["data"])})
    assert load_config(EXAMPLE, {}).model_dump() == defaults.model_dump()
    for section, value in values.items():
        for key, one in value.items() if isinstance(value, dict) else ():
            default = getattr(getattr(defaults, section), key)
            assert (type(one), one) == (type(default), default), f"{section}.{key} is not written as its default"


def test_every_key_of_the_example_is_explained_on_its_line():
    lines = [line for line in EXAMPLE.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    keys = [line for line in lines if not line.rstrip().endswith(":")]
    for line in keys:
        _, separator, comment = line.partition("# ")
        assert separator and len(comment) > 10, f"not explained: {line}"
    for unit, names in (
        ("Seconds", ["drain_seconds"]),
        ("Milliseconds", ["default_deadline_ms"]),
        ("Bytes", ["max_message_bytes"]),
    ):
        for name in names:
            [line] = [line for line in keys if line.strip().startswith(name)]
            assert unit in line


# python -m server


def run_server(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "server", *(str(argument) for argument in arguments)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **environment, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--bundle", "{tmp}/absent", "--data", "{tmp}/data"], "{tmp}/absent"),
        (["--bundle", "{tmp}", "--data", "{tmp}/state"], "lies inside the bundle"),
        (["--bundle", "b", "--data", "{tmp}/unknown.yaml/state"], "{tmp}/unknown.yaml is a file; give another --data"),
        (["--bundle", "{tmp}/absent"], "configuration: data: is needed"),
        (["--bundle", "b", "--data", "d", "--config", "{tmp}/unknown.yaml"], "configuration: listen.prot: "),
    ],
    ids=["a missing bundle", "data in the bundle", "data below a file", "no data directory", "an unknown key"],
)
def test_a_server_that_cannot_start_exits_2_with_one_line(tmp_path: Path, arguments: list[str], says: str):
    written(tmp_path / "unknown.yaml", "listen: {prot: 1}\n")
    done = run_server(*(argument.format(tmp=tmp_path) for argument in arguments))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert says.format(tmp=tmp_path) in done.stderr
    assert not (tmp_path / "data").exists()


def test_help_is_there_without_loading_what_is_slow_to_load():
    code = (
        "import sys, runpy; sys.argv = ['server', '--help']\n"
        "try: runpy.run_module('server', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print(sorted({'torch', 'pyarrow', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    *text, loaded = done.stdout.splitlines()
    assert loaded == "[]"
    for flag in ("--bundle", "--data", "--config", "--port", "TOWERBRIDGE__SECTION__KEY", "config.example.yaml"):
        assert any(flag in line for line in text)


def test_tenants_come_from_the_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = "data: d\ntenants: {acme: {bundle: a}}\nsecurity: {keys_file: k.json}\n"
    config = load_config(written(tmp_path / "c.yaml", text), {})
    assert config.served == {"acme": Path("a")}
    monkeypatch.setenv("TOWERBRIDGE__TENANTS__GLOBEX__BUNDLE", "g")
    config = load_config(None, {**REQUIRED, "security": {"keys_file": Path("k.json")}})
    assert config.served == {"default": REQUIRED["bundle"], "globex": Path("g")}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"tenants": {"default": {"bundle": "a"}}, "security": {"keys_file": "k"}}, "default is the tenant of bundle"),
        ({"tenants": {"acme": {"bundle": "a"}}}, "security.keys_file: is needed with several tenants"),
        ({"tenants": {"../up": {"bundle": "a"}}, "security": {"keys_file": "k"}}, "tenants"),
        ({"security": {"tls_certificate": "c"}}, "tls_certificate and tls_key go together"),
        ({"security": {"client_ca": "c"}}, "client_ca needs tls_certificate and tls_key"),
        ({"overload": {"queue_ms": 0}}, "overload.queue_ms"),
        ({"releases": {"keep": 1}}, "releases.keep"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], says: str):
    with pytest.raises(StartupError, match=re.escape(says)):
        load_config(None, {**REQUIRED, **settings})
