"""Certificates made on the spot, with openssl."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

_NEW = ("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc")


@dataclass(frozen=True)
class Pair:
    """A certificate and its private key, PEM files."""

    certificate: Path
    key: Path

    @property
    def pem(self) -> tuple[bytes, bytes]:
        return self.certificate.read_bytes(), self.key.read_bytes()


def authority(folder: Path, name: str = "ca", *, days: int = 30) -> Pair:
    """A root."""
    extensions = ("-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
    return _make(folder, name, "-days", days, *extensions)


def signed(folder: Path, name: str, by: Pair) -> Pair:
    """A certificate for 127.0.0.1 and localhost, of a server or a client."""
    names = ("-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-addext", "basicConstraints=critical,CA:FALSE")
    return _make(folder, name, "-days", 30, "-CA", by.certificate, "-CAkey", by.key, *names)


def _make(folder: Path, name: str, *options: object) -> Pair:
    pair = Pair(folder / f"{name}.pem", folder / f"{name}.key")
    files = ("-subj", f"/CN={name}", "-keyout", pair.key, "-out", pair.certificate)
    command = [str(part) for part in (*_NEW, *files, *options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pair.key.chmod(0o600)
    return pair
