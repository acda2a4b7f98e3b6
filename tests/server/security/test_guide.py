"""docs/security.md says what is true, and what it tells people to type works."""

import os
import re
import subprocess
import sys
from pathlib import Path

import yaml

from server.config import Config
from server.fields import EXCLUDED_MAX, ID_BYTES, LIMIT_MAX, ROWS_MAX
from server.security.roles import ROLE_OF, Role

ROOT = Path(__file__).parents[3]
GUIDE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)


def test_the_table_of_roles_is_the_role_map():
    rows = re.findall(r"^\| `([\w.]+/\w+)` \| ([\w ]+) \|$", GUIDE, re.MULTILINE)
    said = {f"/{method}": Role.OPEN if role == "none needed" else Role(role) for method, role in rows}
    assert len(said) == len(rows) and said == dict(ROLE_OF)


def test_the_commands_run_as_written_and_make_what_the_settings_name(tmp_path: Path):
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment["PYTHONPATH"] = f"{ROOT}{os.pathsep}{ROOT / 'client'}"
    environment.pop("TOWERBRIDGE__SECURITY__KEYS_FILE", None)
    command = ["bash", "-euo", "pipefail", "-c", "\n".join(blocks("sh"))]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tls.pem: OK" in done.stdout and "shop.pem: OK" in done.stdout
    for text in blocks("yaml"):
        settings = {"data": "state", "bundle": "bundle"} | yaml.safe_load(text)
        config = Config(**settings)
        security = config.security
        for file in (security.keys_file, security.tls_certificate, security.tls_key):
            assert file is None or (tmp_path / file).is_file()


def test_the_limits_are_those_of_the_code():
    for limit in (f"{ID_BYTES} bytes", f"{ROWS_MAX:,}", f"{LIMIT_MAX:,}", f"{EXCLUDED_MAX:,}"):
        assert f"| {limit}" in GUIDE
    assert Config(data=Path("d"), bundle=Path("b")).listen.max_message_bytes == 16 * 1024 * 1024
