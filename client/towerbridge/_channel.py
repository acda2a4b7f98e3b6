"""How a client reaches a server: checked settings, credentials, channel options and the service config."""

import ipaddress
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc

from towerbridge._retry import positive_seconds
from towerbridge._version import __version__

_SERVICES = ("AudienceService", "EventService", "ItemService", "RecommendationService", "ReleaseService", "UserService")

_OPTIONS: dict[str, str | int] = {
    "grpc.primary_user_agent": f"towerbridge-python/{__version__}",
    # Servers refuse pings more often than every 5 minutes, and every ping without calls (more than one in 2 hours): a
    # GOAWAY with "too_many_pings". So never more often than that, and only with calls in flight. Any value also sets
    # TCP_USER_TIMEOUT to the keepalive timeout on Linux (gRFC A18), and that is what this is for: a peer that has
    # vanished is noticed after 10 s of unacknowledged data, not after the kernel's 15 minutes.
    "grpc.keepalive_time_ms": 6 * 60_000,
    "grpc.keepalive_timeout_ms": 10_000,
    "grpc.keepalive_permit_without_calls": 0,
    # Load balancers and firewalls drop idle connections silently, commonly after 4 minutes or a little more. The next
    # call then ran into its deadline. Closing an idle connection first costs that call one connection set-up instead.
    "grpc.client_idle_timeout_ms": 3 * 60_000,
    # After a restart the server is found again within 5 s; gRPC's own maximum is 2 minutes.
    "grpc.initial_reconnect_backoff_ms": 200,
    "grpc.max_reconnect_backoff_ms": 5_000,
    # 100 subjects × 1,000 items with attributes are more than gRPC's 4 MiB.
    "grpc.max_receive_message_length": 64 * 1024 * 1024,
}

Tls = bool | bytes | grpc.ChannelCredentials
Options = Sequence[tuple[str, str | int]]


@dataclass(frozen=True)
class Settings:
    """A client's checked settings."""

    target: str
    # None: plaintext.
    credentials: grpc.ChannelCredentials | None
    options: tuple[tuple[str, str | int], ...]
    # Sent with every call; may hold the API key.
    metadata: tuple[tuple[str, str], ...] = field(repr=False)
    timeout_s: float
    upsert_timeout_s: float
    max_attempts: int


def settings(
    target: str,
    *,
    timeout_s: float,
    upsert_timeout_s: float,
    max_attempts: int,
    tls: Tls,
    insecure: bool,
    api_key: str | None,
    options: Options,
) -> Settings:
    """Checks what a client was made with. ValueError says what to change."""
    if not 1 <= max_attempts <= 5:
        raise ValueError(f"max_attempts must be 1 to 5, not {max_attempts}: gRPC makes no more than 5")
    loopback = is_loopback(target)
    merged = _OPTIONS | {"grpc.service_config": service_config(max_attempts)}
    if loopback:
        # gRPC obeys http_proxy even for localhost; a call to this machine must not leave it.
        merged["grpc.enable_http_proxy"] = 0
    return Settings(
        target=target,
        credentials=_credentials(target, tls, insecure, loopback),
        options=tuple((merged | dict(options)).items()),
        metadata=() if api_key is None else (("authorization", f"Bearer {_checked_key(api_key)}"),),
        timeout_s=positive_seconds("timeout_s", timeout_s),
        upsert_timeout_s=positive_seconds("upsert_timeout_s", upsert_timeout_s),
        max_attempts=max_attempts,
    )


def service_config(max_attempts: int) -> str:
    """The service config as JSON: UNAVAILABLE is retried up to `max_attempts` attempts, with jitter, within the
    deadline.

    That is safe for every method of the contract but RollbackRelease: reads change nothing, events are known by their
    event_id, and the writes of the catalogue set a whole state. DEADLINE_EXCEEDED is never retried: the time is used up.
    """
    retry_policy = {
        "maxAttempts": max_attempts,
        "initialBackoff": "0.05s",
        "maxBackoff": "0.5s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    method_config = {
        "name": [{"service": f"towerbridge.v1.{service}"} for service in _SERVICES],
        "retryPolicy": retry_policy,
    }
    # The more specific name counts. The client opens a broken stream again itself, with the events that have no result; and a
    # rollback that is sent twice would go back and forth.
    never = {
        "name": [
            {"service": "towerbridge.v1.EventService", "method": "StreamEvents"},
            {"service": "towerbridge.v1.ReleaseService", "method": "RollbackRelease"},
        ]
    }
    if max_attempts == 1:
        return "{}"
    return json.dumps({"methodConfig": [method_config, never], "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1}})


def is_loopback(target: str) -> bool:
    """True if `target` can only be this machine: localhost, 127.0.0.0/8, [::1] or a unix socket. Doubt is False."""
    scheme, _, rest = target.partition(":")
    if scheme in ("unix", "unix-abstract"):
        return True
    if scheme not in ("dns", "ipv4", "ipv6"):
        return _host_is_loopback(target)
    # "dns://authority/host" asks a name server of its own, which may call anything localhost; it is refused as a host.
    return all(_host_is_loopback(address) for address in rest.removeprefix("///").split(","))


def _host_is_loopback(address: str) -> bool:
    """True for "host", "host:port", "[v6]" or "[v6]:port" with a loopback host."""
    if address.startswith("["):
        host, _, port = address[1:].partition("]")
        port = port.removeprefix(":")
    else:
        host, _, port = address.partition(":")
    if port and not port.isdecimal():
        return False
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _credentials(target: str, tls: Tls, insecure: bool, loopback: bool) -> grpc.ChannelCredentials | None:
    if isinstance(tls, grpc.ChannelCredentials):
        credentials: grpc.ChannelCredentials | None = tls
    elif isinstance(tls, bytes):
        credentials = grpc.ssl_channel_credentials(root_certificates=tls)
    elif isinstance(tls, bool):
        credentials = grpc.ssl_channel_credentials() if tls else None
    else:
        raise TypeError(f"tls must be a bool, root certificates as PEM bytes or grpc.ChannelCredentials, not {tls!r}")
    if credentials is not None and insecure:
        raise ValueError("tls and insecure=True contradict each other: give one of them")
    if credentials is None and not (insecure or loopback):
        raise ValueError(
            f"{target!r} is not this machine, and events and histories would travel in plain text: give tls=True "
            "(or root certificates as PEM bytes, or grpc.ChannelCredentials), or insecure=True on a trusted network"
        )
    return credentials


def _checked_key(api_key: str) -> str:
    if not api_key or not all("!" <= character <= "~" for character in api_key):
        raise ValueError("api_key must be printable ASCII without spaces; is there a line break at its end?")
    return api_key
