"""What other machines can reach is encrypted and closed to strangers, unless the configuration says otherwise."""

from pathlib import Path
from typing import Any

import pytest

from server.config import Listen, Security
from server.errors import StartupError
from server.security.exposure import check_exposure

TLS = {"tls_certificate": Path("tls.pem"), "tls_key": Path("tls.key")}
KEYS = {"keys_file": Path("keys.json")}
CLIENTS = {"client_ca": Path("clients.pem")}
OPEN = ["0.0.0.0", "::", "[::]", "", "10.0.0.7", "192.168.1.2", "example.org", "localhost.example.org", "127.0.0.1.example.org"]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "[::1]", "localhost", "LOCALHOST"])
def test_on_loopback_nothing_is_asked_for(host: str):
    check_exposure(Listen(host=host), Security())


@pytest.mark.parametrize("host", OPEN)
@pytest.mark.parametrize("settings", [{}, TLS, KEYS], ids=["nothing", "tls alone", "keys alone"])
def test_elsewhere_tls_and_a_key_or_certificate_are_needed(host: str, settings: dict[str, Any]):
    with pytest.raises(StartupError) as raised:
        check_exposure(Listen(host=host), Security(**settings))
    says = str(raised.value)
    assert says.startswith(f"listen.host {host!r} can be reached") and "\n" not in says and "security.insecure: true" in says
    assert ("security.tls_certificate" in says) == (settings != TLS)
    assert ("security.keys_file" in says) == (settings != KEYS)


@pytest.mark.parametrize("settings", [TLS | KEYS, TLS | CLIENTS, TLS | KEYS | CLIENTS, {"insecure": True}])
def test_with_both_or_when_it_is_said_to_be_wanted_every_address_may_be_listened_on(settings: dict[str, Any]):
    for host in OPEN:
        check_exposure(Listen(host=host), Security(**settings))
