"""Until when a certificate is valid, read from its bytes: Python's ssl tells it of roots and of peers, and not of one's own."""

import re
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import NamedTuple

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
_VERSION, _UTC_TIME = 0xA0, 0x17  # tags


class Validity(NamedTuple):
    """Both ends, UTC; clients refuse the certificate outside of them."""

    begin: datetime
    end: datetime


def validity(chain: str) -> Validity:
    """Of the first certificate of a chain, PEM, that OpenSSL could read (RFC 5280, 4.1). Raises ValueError if it is not PEM."""
    first = _PEM.search(chain)
    if first is None:
        raise ValueError("no BEGIN CERTIFICATE")
    [(_, certificate)] = _parts(ssl.PEM_cert_to_DER_cert(first[0]))
    (_, body), *_ = _parts(certificate)
    fields = [content for tag, content in _parts(body) if tag != _VERSION]  # serial, algorithm, issuer, validity, ...
    begin, end = (_time(tag, content.decode("ascii")) for tag, content in _parts(fields[3]))
    return Validity(begin, end)


def _parts(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Tags and contents, one after the other, of DER."""
    while der:
        tag, length, start = der[0], der[1], 2
        if length >= 0x80:  # that many bytes hold the length
            start += length - 0x80
            length = int.from_bytes(der[2:start], "big")
        yield tag, der[start : start + length]
        der = der[start + length :]


def _time(tag: int, text: str) -> datetime:
    if tag == _UTC_TIME:  # two digits of the year
        text = ("20" if text < "50" else "19") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
