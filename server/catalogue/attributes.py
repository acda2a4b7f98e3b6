"""Item attributes: on the wire, in bundles, and as the JSON that the journal keeps.

Strings, numbers, booleans and lists of strings are themselves in JSON; a point in time is {"timestamp": RFC 3339}.
"""

import json
import math
from datetime import UTC, datetime
from typing import Any

from towerbridge.v1 import common_pb2

Value = str | float | bool | datetime | list[str]


def to_json(attributes: dict[str, Value]) -> str:
    """The attributes as compact JSON with sorted keys, so that equal attributes are equal text."""
    plain = {name: _plain(value) for name, value in attributes.items()}
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def from_wire(value: common_pb2.AttributeValue) -> Value:
    """Raises ValueError, saying what is wrong, if no kind is set or the value cannot be kept."""
    kind = value.WhichOneof("kind")
    if kind is None:
        raise ValueError("has no value")
    if kind == "timestamp_value":
        try:
            return value.timestamp_value.ToDatetime(tzinfo=UTC)
        except (ValueError, OverflowError):
            raise ValueError("is not a valid timestamp") from None
    if kind == "string_list_value":
        return list(value.string_list_value.values)
    if kind == "number_value" and not math.isfinite(value.number_value):
        raise ValueError("must be finite")
    plain: Value = getattr(value, kind)
    return plain


def to_wire(value: Any) -> common_pb2.AttributeValue:
    """The wire form of one value of the JSON object; None becomes a value without a kind."""
    wire = common_pb2.AttributeValue()
    if isinstance(value, bool):
        wire.bool_value = value
    elif isinstance(value, str):
        wire.string_value = value
    elif isinstance(value, int | float):
        wire.number_value = value
    elif isinstance(value, list):
        wire.string_list_value.values.extend(value)
    elif isinstance(value, dict):
        wire.timestamp_value.FromJsonString(value["timestamp"])
    return wire


def from_bundle(columns: dict[str, Any]) -> dict[str, Value]:
    """The attributes of one row of a bundle's items; empty values and values that are not finite are left out."""
    kept: dict[str, Value] = {}
    for name, value in columns.items():
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            continue
        kept[name] = [str(one) for one in value if one is not None] if isinstance(value, list) else value
    return kept


def filterable(attributes: str, categories: str) -> dict[str, Value]:
    """What filters compare, of an item's JSON attributes and categories; text cannot be filtered by."""
    values: dict[str, Value] = {name: _value(one) for name, one in json.loads(attributes).items() if name != "text"}
    values["categories"] = json.loads(categories)
    return values


def _value(plain: Any) -> Value:
    if isinstance(plain, dict) and isinstance(plain.get("timestamp"), str):
        return datetime.fromisoformat(plain["timestamp"])
    value: Value = plain
    return value


def _plain(value: Value) -> Any:
    if isinstance(value, datetime):
        aware = value if value.tzinfo else value.replace(tzinfo=UTC)
        return {"timestamp": aware.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")}
    return value
