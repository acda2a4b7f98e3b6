"""TLS from files that may change while the server runs: new connections get what is in them then."""

import logging
import ssl
import stat
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import grpc
from cryptography import x509

from server.config import Security
from server.errors import StartupError
from server.security.key_file import Stamp, stamp_of

_log = logging.getLogger(__name__)
_ATTEMPTS = 3  # to find the files at rest
_UNCHANGED = "the server goes on with the certificate that it had"
_ROOT = 0  # a user's number


def _now() -> datetime:
    return datetime.now(UTC)


def open_certificates(settings: Security, *, clock: Callable[[], datetime] = _now) -> "Certificates | None":
    """What the configuration says of TLS; None: nothing. Raises StartupError for files that cannot be used."""
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    return Certificates(settings.tls_certificate, settings.tls_key, settings.client_ca, clock)


class Certificates:
    """The files, and what was last seen of them.

    They are looked at before each handshake. Changed ones that cannot be used are logged, and those before them stay.
    Connections that are open keep what they were made with.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None, clock: Callable[[], datetime]) -> None:
        """client_ca: then every client needs a certificate from there. Raises StartupError for files that cannot be used."""
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        self._clock = clock
        self._lock = threading.Lock()  # handshakes run on gRPC's threads
        self.valid_until: datetime
        """The end of the server's certificate that new connections get, UTC."""
        self._stamps, self._initial = self._read()
        self._refused: tuple[Stamp | None, ...] | None = None  # files that could not be used

    def credentials(self) -> grpc.ServerCredentials:
        """The credentials of a port."""
        return grpc.dynamic_ssl_server_credentials(
            self._initial,
            self._changed,  # type: ignore[arg-type]  # None is what grpc asks for if nothing has changed
            require_client_authentication=self._client_ca is not None,
        )

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """What to use from now on; None: what is used already."""
        with self._lock:
            stamps = self._look()
            if stamps == self._stamps:
                return None
            try:
                self._stamps, configuration = self._read()
            except StartupError as error:
                if stamps != self._refused:  # logged once, but tried again: what failed may have been the reading
                    _log.error("%s; %s", error, _UNCHANGED)
                self._refused = stamps
                return None
            self._refused = None
            _log.info("%s changed; new connections use it", self._certificate)
            return configuration

    def _look(self) -> tuple[Stamp | None, ...]:
        paths = (self._certificate, self._key, self._client_ca)
        return tuple(stamp_of(path) if path is not None else None for path in paths)

    def _read(self) -> tuple[tuple[Stamp | None, ...], grpc.ServerCertificateConfiguration]:
        """Files that belong together: what was checked is what was read. Raises StartupError."""
        for _ in range(_ATTEMPTS):
            stamps = self._look()
            chain, key = self._pair()
            roots = None if self._client_ca is None else _roots(self._client_ca)
            if stamps == self._look():
                self.valid_until = self._valid_until(chain)
                return stamps, grpc.ssl_server_certificate_configuration([(key, chain)], roots)
        raise StartupError(
            f"TLS: {self._certificate} and the files beside it change all the time; write each once, by a rename"
        )

    def _pair(self) -> tuple[bytes, bytes]:
        """The certificate chain and its private key, PEM."""
        chain, key = _content(self._certificate, "security.tls_certificate"), _content(self._key, "security.tls_key")
        try:
            # gRPC would take anything and then fail each handshake.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self._certificate, self._key, password=self._refuse)
            found = self._key.stat()
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise StartupError(
                    f"TLS: {self._key} is not the private key of {self._certificate}; give the two together"
                ) from None
            raise StartupError(
                f"TLS: {self._certificate} must hold a certificate, then those between it and the root, and {self._key} its "
                f"private key, all in PEM: {error.reason or error}; openssl x509 and openssl pkey say what is in them"
            ) from None
        except OSError as error:
            raise StartupError(f"TLS: cannot read {self._certificate} or {self._key}: {error.strerror}") from None
        # Not refused, as API keys are: what mounts secrets gives root's files to a group.
        allowed = stat.S_IRGRP if found.st_uid == _ROOT else 0
        if stat.S_IMODE(found.st_mode) & (stat.S_IRWXG | stat.S_IRWXO) & ~allowed:
            _log.warning("TLS: others than its owner can use the private key %s; run chmod 600 %s", self._key, self._key)
        return chain, key

    def _valid_until(self, chain: bytes) -> datetime:
        """When the certificate ends. Raises StartupError outside of its time: all clients would refuse it."""
        try:
            own = x509.load_pem_x509_certificates(chain)[0]
        except ValueError as error:
            raise StartupError(f"TLS: {self._certificate} must hold a certificate in PEM: {error}") from None
        begin, end, now = own.not_valid_before_utc, own.not_valid_after_utc, self._clock()
        if end < now:
            raise StartupError(f"TLS: {self._certificate} expired at {end:%Y-%m-%d %H:%M} UTC; put a renewed one in its place")
        if now < begin:
            raise StartupError(
                f"TLS: {self._certificate} is valid from {begin:%Y-%m-%d %H:%M} UTC on, and it is {now:%Y-%m-%d %H:%M}; "
                "set the clock, or make it again"
            )
        return end

    def _refuse(self) -> NoReturn:
        raise StartupError(
            f"TLS: {self._key} is encrypted; the server needs it in clear: openssl pkey -in OLD -out NEW, chmod 600"
        )


def _roots(path: Path) -> bytes:
    """Clients' roots, PEM."""
    content = _content(path, "security.client_ca")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=content.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise StartupError(f"TLS: {path} holds no root certificates in PEM: {reason}; see security.client_ca") from None
    return content


def _content(path: Path, setting: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StartupError(f"TLS: cannot read {path}: {error.strerror}; check {setting} and the file's permissions") from None
