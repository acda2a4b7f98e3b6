"""Python values to and from the contract's: times, vectors, id lists and attributes.

Only what the wire cannot express is refused here; limits and meanings are the server's to check.
"""

from array import array
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from math import inf
from numbers import Real
from operator import index
from typing import Any, Protocol, SupportsIndex

from google.protobuf.timestamp_pb2 import Timestamp

from towerbridge.v1 import AttributeValue, StringList


class SupportsTolist(Protocol):
    """A NumPy array, a torch tensor."""

    def tolist(self) -> Any:
        """The same as nested lists."""


Floats = Iterable[float] | SupportsTolist
# What an attribute can be set to; None: the item has no such attribute.
AttributeInput = str | float | bool | datetime | Sequence[str] | None
# What an attribute comes back as: numbers as float, times with time zone UTC.
Attribute = str | float | bool | datetime | list[str] | None


def timestamp(name: str, moment: datetime) -> Timestamp:
    """`moment` to the microsecond; TypeError if it is no datetime, ValueError if it has no time zone."""
    if not isinstance(moment, datetime):
        raise TypeError(f"{name} must be a datetime, not {moment!r}; write datetime.fromtimestamp(SECONDS, UTC)")
    if moment.tzinfo is None or moment.utcoffset() is None:
        raise ValueError(f"{name} has no time zone: {moment!r}. Use datetime.now(UTC), or moment.astimezone() for a local time")
    result = Timestamp()
    result.FromDatetime(moment)
    return result


def string(name: str, value: str) -> str:
    """An id or another text as it is; TypeError if it is none."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {value!r}; write {name}=str(...)")
    return value


def whole(name: str, value: SupportsIndex) -> int:
    """A whole number; TypeError if it is none, ValueError if it does not fit the contract's 32 bits."""
    try:
        number = index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, not {value!r}") from None
    if not -(2**31) <= number < 2**31:
        raise ValueError(f"{name} must fit 32 bits, not {value!r}")
    return number


def floats(name: str, values: Floats) -> list[float]:
    """A vector as a list; TypeError if it is not one-dimensional numbers."""
    plain = values.tolist() if hasattr(values, "tolist") else values
    try:
        return array("d", plain).tolist()
    except TypeError as error:
        raise TypeError(f"{name} must be one-dimensional numbers") from error


def strings(name: str, values: Iterable[str]) -> list[str]:
    """A list of ids or names; TypeError for a single string, whose characters would pass as ids, and for other entries."""
    if isinstance(values, str):
        raise TypeError(f"{name} must be a list of strings, not the string {values!r}; use [{values!r}]")
    entries = list(values)
    for place, entry in enumerate(entries):
        if not isinstance(entry, str):
            raise TypeError(f"{name}[{place}] must be a str, not {entry!r}; write str(...)")
    return entries


def attribute_value(name: str, value: AttributeInput) -> AttributeValue:
    """The contract's value for a Python value; TypeError for kinds that it does not have."""
    if value is None:
        return AttributeValue()
    if isinstance(value, str):
        return AttributeValue(string_value=value)
    if isinstance(value, bool):
        return AttributeValue(bool_value=value)
    if isinstance(value, Real):
        return AttributeValue(number_value=_number(name, value))
    if isinstance(value, datetime):
        return AttributeValue(timestamp_value=timestamp(f"attributes[{name!r}]", value))
    if isinstance(value, Sequence) and all(isinstance(entry, str) for entry in value):
        return AttributeValue(string_list_value=StringList(values=value))
    raise TypeError(f"attributes[{name!r}] must be a str, number, bool, datetime or list of str, not {type(value).__name__}")


def python_value(value: AttributeValue) -> Attribute:
    """The Python value of the contract's; None if it is unset."""
    match value.WhichOneof("kind"):
        case None:
            return None
        case "string_value":
            return value.string_value
        case "number_value":
            return value.number_value
        case "bool_value":
            return value.bool_value
        case "timestamp_value":
            return value.timestamp_value.ToDatetime(tzinfo=UTC)
        case "string_list_value":
            return list(value.string_list_value.values)


def _number(name: str, value: Real) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = inf
    if isinstance(value, int) and number != value:
        raise ValueError(f"attributes[{name!r}] = {value} does not fit a double exactly; send it as text")
    return number
