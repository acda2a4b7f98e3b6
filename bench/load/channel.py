"""How the load reaches a server."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from bench.load.mix import InputError

KEY_VARIABLE = "TOWERBRIDGE_API_KEY"
_OPTIONS = [
    ("grpc.enable_retries", 0),  # a retry would hide what the server said
    ("grpc.use_local_subchannel_pool", 1),  # so that several channels are several connections
    ("grpc.max_receive_message_length", -1),
]


@dataclass(frozen=True)
class Reach:
    """A target, and what it takes to be let in."""

    target: str
    tls: bool = False
    ca: str | None = None  # files, PEM
    cert: str | None = None
    client_key: str | None = None
    key: str | None = field(default=None, repr=False)  # the API key

    @property
    def metadata(self) -> tuple[tuple[str, str], ...] | None:
        return (("authorization", f"Bearer {self.key}"),) if self.key else None

    def credentials(self) -> grpc.ChannelCredentials | None:
        """None: plaintext. Raises InputError for files that cannot be read."""
        if not self.tls:
            return None
        return grpc.ssl_channel_credentials(_read(self.ca), _read(self.client_key), _read(self.cert))

    def connect(self) -> grpc.Channel:
        credentials = self.credentials()
        if credentials is None:
            return grpc.insecure_channel(self.target, options=_OPTIONS)
        return grpc.secure_channel(self.target, credentials, options=_OPTIONS)

    def connect_aio(self) -> grpc.aio.Channel:
        credentials = self.credentials()
        if credentials is None:
            return grpc.aio.insecure_channel(self.target, options=_OPTIONS)
        return grpc.aio.secure_channel(self.target, credentials, options=_OPTIONS)


def key_of(given: str | None) -> str | None:
    """The API key: as given, or from the environment, where others cannot read it off the process list."""
    return given or os.environ.get(KEY_VARIABLE) or None


def _read(path: str | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
