"""What callers may send: each check names its field and says what is wrong."""

import re
from collections.abc import Sequence

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp
from numpy.typing import NDArray

from server.errors import InvalidField

ID_BYTES = 256
LIMIT_MAX = 1_000
ROWS_MAX = 1_000
EXCLUDED_MAX = 10_000
ATTRIBUTES_MAX = 32
DAY_US = 86_400_000_000
_TYPE = re.compile(r"[a-z][a-z0-9_.-]{0,63}")


def check_id(value: str, field: str) -> str:
    """An id: 1 to 256 bytes without a NUL character."""
    if not value:
        raise InvalidField(field, "must not be empty")
    if len(value) > ID_BYTES or len(value.encode()) > ID_BYTES:
        raise InvalidField(field, f"must have at most {ID_BYTES} bytes of UTF-8, has {len(value.encode())}")
    if "\0" in value:
        raise InvalidField(field, "must not hold a NUL character")
    return value


def check_ids(values: Sequence[str], field: str, maximum: int, *, minimum: int = 0) -> list[str]:
    """A list of ids."""
    check_count(len(values), field, maximum, minimum=minimum)
    return [check_id(value, f"{field}[{place}]") for place, value in enumerate(values)]


def check_count(count: int, field: str, maximum: int, *, minimum: int = 0) -> None:
    """How many entries a list has."""
    if minimum == maximum != count:
        raise InvalidField(field, f"must have {maximum} entries, as many as there are ids, has {count}")
    if not minimum <= count <= maximum:
        raise InvalidField(field, f"must have {minimum} to {maximum} entries, has {count}")


def check_limit(limit: int, field: str = "limit", *, minimum: int = 1, maximum: int = LIMIT_MAX) -> int:
    """How many items or events are asked for."""
    if not minimum <= limit <= maximum:
        raise InvalidField(field, f"must be {minimum} to {maximum}, is {limit}")
    return limit


def check_type(value: str, field: str) -> str:
    """An event type."""
    if not _TYPE.fullmatch(value):
        raise InvalidField(field, 'must be 1 to 64 characters of a-z, 0-9, "_", "-" and ".", a letter first, such as "view"')
    return value


def check_time(value: Timestamp, field: str) -> int:
    """A point in time: microseconds since 1970, UTC."""
    if not (-62_135_596_800 <= value.seconds < 253_402_300_800 and 0 <= value.nanos < 1_000_000_000):
        raise InvalidField(field, "is not a valid timestamp")
    return value.seconds * 1_000_000 + value.nanos // 1000


def check_event_time(value: Timestamp, field: str, *, now_us: int, max_age_days: int) -> int:
    """When an event happened: not more than a day ahead of the clock, and not older than the server takes."""
    occurred_us = check_time(value, field)
    if occurred_us > now_us + DAY_US:
        raise InvalidField(field, "is more than a day ahead of the server's clock; timestamps are in UTC")
    if occurred_us < now_us - max_age_days * DAY_US:
        raise InvalidField(
            field, f"is more than {max_age_days} days ago; import older events with python -m server.journal import"
        )
    return occurred_us


def check_vector(values: Sequence[float], field: str, dim: int) -> NDArray[np.float32]:
    """A vector of the right dimension, scaled to unit length: (D,) float32."""
    if len(values) != dim:
        raise InvalidField(field, f"must have {dim} components, has {len(values)}")
    with np.errstate(over="ignore"):  # what overflows float32 is refused as not finite
        vector = np.array(values, dtype=np.float32)
    if not np.isfinite(vector).all():
        raise InvalidField(field, "must have finite components only")
    # In float64: the square of a large component overflows float32, and that of a small one is 0 in it.
    norm = float(np.linalg.norm(vector.astype(np.float64)))
    if norm == 0.0:
        raise InvalidField(field, "must not be all zero")
    return (vector.astype(np.float64) / norm).astype(np.float32)


def check_embedding(values: Sequence[float], field: str, dim: int) -> NDArray[np.float32]:
    """A text embedding: (T,) float32, as sent."""
    if dim == 0:
        raise InvalidField(field, "cannot be used: the live release has no text encoder; send vector instead")
    if len(values) != dim:
        raise InvalidField(field, f"must have {dim} components, has {len(values)}")
    with np.errstate(over="ignore"):
        embedding = np.array(values, dtype=np.float32)
    if not np.isfinite(embedding).all():
        raise InvalidField(field, "must have finite components only")
    return embedding


def check_text(value: str, field: str, maximum: int, *, minimum: int = 0) -> str:
    """A text of a number of bytes."""
    size = len(value.encode())
    if not minimum <= size <= maximum:
        raise InvalidField(field, f"must have {minimum} to {maximum} bytes of UTF-8, has {size}")
    return value
