"""Messages broken as bytes: what reaches the decoder, and sometimes passes it."""

import random
import re
from collections.abc import Callable

_TEXT = re.compile(rb"[\x20-\x7e]{3,}")
_NOT_UTF8 = (b"\xff\xfe", b"\xc3", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf5\x80\x80\x80", b"\x80")


def damaged(data: bytes, draw: random.Random) -> bytes:
    """The bytes, broken in one to three ways."""
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        data = draw.choice(_WAYS)(data, draw)
    return data


def deep_filter(depth: int) -> bytes:
    """The bytes of a towerbridge.v1.Filter with so many filters in each other: must (1) -> filter (5)."""
    data = b""
    for _ in range(depth):
        condition = b"\x2a" + _varint(len(data)) + data
        data = b"\x0a" + _varint(len(condition)) + condition
    return data


def field_of(number: int, data: bytes) -> bytes:
    """A field with a length, such as a message or a string."""
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _place(data: bytes, draw: random.Random) -> int:
    return draw.randrange(len(data) + 1)


def _truncate(data: bytes, draw: random.Random) -> bytes:
    return data[: _place(data, draw)]


def _flip(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(min(len(data), draw.choice((1, 1, 2, 8)))):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _insert(data: bytes, draw: random.Random) -> bytes:
    place = _place(data, draw)
    return data[:place] + draw.randbytes(draw.choice((1, 2, 10))) + data[place:]


def _delete(data: bytes, draw: random.Random) -> bytes:
    place = _place(data, draw)
    return data[:place] + data[place + draw.choice((1, 2, 10)) :]


def _repeat(data: bytes, draw: random.Random) -> bytes:
    first, last = sorted((_place(data, draw), _place(data, draw)))
    return data[:last] + data[first:last] * draw.choice((1, 2, 20)) + data[last:]


def _not_utf8(data: bytes, draw: random.Random) -> bytes:
    """Some text in it is no text any more; lengths stay right."""
    texts = list(_TEXT.finditer(data))
    if not texts:
        return data + draw.choice(_NOT_UTF8)
    found = draw.choice(texts)
    return data[: found.start()] + (draw.choice(_NOT_UTF8) * len(found[0]))[: len(found[0])] + data[found.end() :]


def _other_type(data: bytes, draw: random.Random) -> bytes:
    """The first field says another wire type than it has: varint, 64 bits, length, group, group's end, 32 bits, none."""
    return bytes([data[0] & ~7 | draw.randrange(8)]) + data[1:] if data else data


def _unknown_field(data: bytes, draw: random.Random) -> bytes:
    return data + field_of(draw.choice((15, 100, 19_000, 2**29 - 1)), draw.randbytes(draw.choice((0, 10, 300))))


def _long_varint(data: bytes, draw: random.Random) -> bytes:
    return data + b"\x08" + b"\xff" * draw.choice((9, 10, 11)) + b"\x01"


def _length_beyond_the_end(data: bytes, draw: random.Random) -> bytes:
    return data + b"\x0a" + _varint(draw.choice((5, 2**20, 2**31 - 1, 2**32, 2**63 - 1))) + b"abc"


_WAYS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *(_truncate, _flip, _insert, _delete, _repeat, _not_utf8, _other_type, _unknown_field, _long_varint),
    _length_beyond_the_end,
)
