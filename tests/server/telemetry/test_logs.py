"""Lines on standard error."""

import json
import logging
import socket
import subprocess
import sys
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest

from bench.process import running_server
from server.telemetry.current import CALL, USER, Call
from server.telemetry.logs import JsonLines, hashed
from tests.server.security.certificates import authority, signed

METHOD = "/towerbridge.v1.EventService/RecordEvents"


def formatted(message: str = "hello", *args: Any, exc_info: Any = None) -> dict[str, str]:
    line = JsonLines().format(logging.LogRecord("server.x", logging.WARNING, "x.py", 1, message, args, exc_info))
    assert "\n" not in line and line.isascii()
    read: dict[str, str] = json.loads(line)
    return read


def written(code: str) -> list[str]:
    """Lines that a process of its own writes to standard error."""
    code = f"import logging\nfrom server.telemetry import logs\nlog = logging.getLogger('server.x')\n{code}"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120)
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_json_is_one_object_a_line_whatever_is_said():
    lines = written(
        "logs.setup('json', 'info')\nlog.info('one\\n\"two\" %s \\ud800', 'ä\\u2028')\nlog.debug('no')\nlog.error('x')"
    )
    first, second = map(json.loads, lines)
    assert first["message"] == 'one\n"two" ä\u2028 \ud800'
    assert (first["level"], first["logger"]) == ("INFO", "server.x")
    assert first["time"].endswith("Z") and len(first["time"]) == len("2026-11-25T20:20:25.123Z")
    assert second["level"] == "ERROR" and set(second) == {"time", "level", "logger", "message"}


def test_a_connection_without_tls_leaves_no_line_that_is_not_json(bundle_path: Path, tmp_path: Path):
    pair, log = signed(tmp_path, "server", authority(tmp_path)), tmp_path / "log"
    (tmp_path / "config.yaml").write_text("logs: {format: json}\nengine: {compile: false}\n", encoding="utf-8")
    flags = ("--config", tmp_path / "config.yaml", "--tls-certificate", pair.certificate, "--tls-key", pair.key)
    with running_server(bundle_path, tmp_path / "data", *map(str, flags), log=log) as server:
        host, port = server.target.split(":")
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
            while connection.recv(4096):
                pass
    lines = log.read_text(encoding="utf-8").splitlines()
    assert lines and all(json.loads(line)["message"] for line in lines)


def test_text_is_a_line_for_people_and_the_last_setup_counts():
    [line] = written("logs.setup('json', 'info')\nlogs.setup('text', 'warning')\nlog.warning('%d left', 3)\nlog.info('no')")
    assert line.endswith("WARNING server.x: 3 left") and line[:4].isdigit()


def test_an_exception_is_in_its_line_with_its_traceback():
    try:
        raise KeyError("k")
    except KeyError:
        line = formatted("failed", exc_info=sys.exc_info())
    assert line["exc"].startswith("Traceback") and line["exc"].endswith("KeyError: 'k'")


def test_lines_of_a_call_name_it_and_its_trace_and_only_a_hash_of_whom_it_is_about():
    def call() -> dict[str, str]:
        CALL.set(Call("shop", METHOD, "a" * 32, "b" * 16))
        USER.set("anna@example.com")
        return formatted()

    line = copy_context().run(call)
    assert {key: line[key] for key in ("tenant", "method", "trace_id", "span_id")} == {
        "tenant": "shop",
        "method": METHOD,
        "trace_id": "a" * 32,
        "span_id": "b" * 16,
    }
    assert line["user"] == hashed("anna@example.com")
    assert "anna" not in json.dumps(line)
    assert not {"tenant", "method", "trace_id", "span_id", "user"} & set(formatted())  # outside the call


def test_without_a_trace_a_call_is_named_all_the_same():
    def call() -> dict[str, str]:
        CALL.set(Call("shop", METHOD))
        return formatted()

    line = copy_context().run(call)
    assert line["method"] == METHOD and "trace_id" not in line and "span_id" not in line


@pytest.mark.parametrize("subject", ["", "anna", "ä" * 200, "\ud800"])
def test_a_hash_is_the_same_within_a_process_and_another_in_the_next(subject: str):
    assert hashed(subject) == hashed(subject) and len(hashed(subject)) == 16
    assert hashed(subject) != hashed(subject + "x")
    [other] = written(f"import sys; print(logs.hashed({subject!a}), file=sys.stderr)")
    assert other != hashed(subject) and len(other) == 16
