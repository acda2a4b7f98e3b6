"""Whether other machines can reach the server, and whether they may as it is configured."""

import ipaddress

from server.config import Listen, Security
from server.errors import StartupError

_TLS = "set security.tls_certificate and security.tls_key"
_WHO = "set security.keys_file (or security.client_ca)"
_OR = "listen on 127.0.0.1, or, on a network that is trusted or behind a proxy that does this, set security.insecure: true"


def check_exposure(listen: Listen, security: Security) -> None:
    """Raises StartupError if other machines could connect without TLS, or without a key or a certificate.

    Unless security.insecure says that they may.
    """
    if is_loopback(listen.host) or security.insecure:
        return
    encrypted = security.tls_certificate is not None
    known = security.keys_file is not None or security.client_ca is not None
    where = f"listen.host {listen.host!r} can be reached from other machines"
    if not encrypted and not known:
        raise StartupError(f"{where}, in plain text and by anybody: {_TLS}, and {_WHO}; or {_OR}")
    if not encrypted:
        raise StartupError(f"{where}, and keys and people's data would travel in plain text: {_TLS}; or {_OR}")
    if not known:
        raise StartupError(f"{where}, by anybody: {_WHO}; or {_OR}")


def is_loopback(host: str) -> bool:
    """True if only this machine can connect to `host`: localhost, 127.0.0.0/8 or ::1. Doubt is False."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False
