"""Servers with keys, and calls of any method by its name."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import towerbridge

from server.app import App
from server.config import Config
from server.security.key_file import create
from server.security.roles import GRANTED, ROLE_OF, Role
from tests.server.conftest import PRESUMED, Clock

CALL_S = 30.0
OURS = tuple(sorted(name for name in ROLE_OF if name.startswith("/towerbridge.v1.")))
"""Every method of the contract: tests/server/security/test_roles.py holds that none is missing."""


class Answer(NamedTuple):
    code: grpc.StatusCode
    message: str
    data: bytes = b""


class Secured(NamedTuple):
    """A running server that needs keys."""

    app: App
    clock: Clock
    keys_file: Path
    keys: Mapping[tuple[str, Role], str]
    channel: grpc.Channel

    def client(self, tenant: str, role: Role) -> towerbridge.Client:
        return towerbridge.Client(f"127.0.0.1:{self.app.port}", api_key=self.keys[tenant, role], timeout_s=CALL_S)

    def answer(self, method: str, message: Any = b"", *, role: Role, tenant: str = "default") -> Answer:
        return answer(self.channel, method, message, bearer(self.keys[tenant, role]))


def bearer(*keys: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {key}") for key in keys]


@contextmanager
def secured(bundle: Path, folder: Path, tenants: Iterable[str] = ("default",), **sections: Any) -> Iterator[Secured]:
    """A server with a key for each role of each tenant. Of several tenants each has the same bundle."""
    keys_file, names = folder / "keys.json", tuple(tenants)
    keys = {(name, role): create(keys_file, name, role.value, [role])[0] for name in names for role in GRANTED}
    which = {"bundle": bundle} if names == ("default",) else {"tenants": {name: {"bundle": bundle} for name in names}}
    security = {"keys_file": keys_file, **sections.pop("security", {})}
    sections = {"consent": PRESUMED, "engine": {"compile": False}, "listen": {"port": 0, "drain_seconds": 1.0}} | sections
    clock = Clock()
    app = App(Config(data=folder / "data", security=security, **which, **sections), clock_us=clock)  # type: ignore[arg-type]
    app.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{app.port}") as channel:
            yield Secured(app, clock, keys_file, keys, channel)
    finally:
        app.stop()


def answer(channel: grpc.Channel, method: str, message: Any = b"", metadata: Iterable[tuple[str, str]] = ()) -> Answer:
    """How a call with one message ends, whatever the method takes and gives; data is the first response."""
    data = message if isinstance(message, bytes) else message.SerializeToString()
    call = channel.stream_stream(method)(iter([data]), metadata=tuple(metadata), timeout=CALL_S)
    first = b""
    try:
        for number, response in enumerate(call):
            first = first if number else response
    except grpc.RpcError:
        pass
    return Answer(call.code(), call.details() or "", first)
