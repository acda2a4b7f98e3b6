"""Random messages of any type, field by field."""

import random
from typing import Any

from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor import FieldDescriptor as Field
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from bench.fuzz.values import Values

_DEPTH = 6  # messages in messages
_MESSAGES = 300  # in one request; each list of odd length may hold lists
# What an honest client often leaves out, since it narrows the answer or needs luck to be right.
_RARE = {
    *("min_revision", "filter", "search", "release_id", "min_score", "expected_live_release_id", "exclude_item_ids"),
    *("vector", "text_embedding", "allow", "deny", "must_not", "given_at"),
}
_SANE_COUNTS = (1, 2, 3, 5)
_ODD_COUNTS = (0, 0, 1, 1, 2, 3, 5, 33, 65)
_HUGE_COUNTS = (101, 1_000, 1_001, 10_001, 100_001)
_HUGE_SHARE = 0.03
_MOST_BYTES = 2 * 1024 * 1024  # of a list, for its being huge


class Messages:
    """Makes messages in which a share of the values, `sanity`, is what an honest client would send."""

    def __init__(self, values: Values) -> None:
        self._values = values
        known = values.known
        self._widths = {"Vector.values": known.dim, "UserVector.values": known.dim, "Item.vector": known.dim}
        self._widths["Item.text_embedding"] = known.text_dim

    def make(self, descriptor: Descriptor, draw: random.Random, sanity: float) -> Message:
        return _Making(self._values, self._widths, draw, sanity).message(descriptor, _DEPTH)


class _Making:
    """One message, and those in it."""

    def __init__(self, values: Values, widths: dict[str, int], draw: random.Random, sanity: float) -> None:
        self._values, self._widths, self._draw, self._sanity = values, widths, draw, sanity
        self._left = _MESSAGES

    def message(self, descriptor: Descriptor, depth: int) -> Message:
        self._left -= 1
        message = GetMessageClass(descriptor)()
        alternatives = [list(oneof.fields) for oneof in descriptor.oneofs if len(oneof.fields) > 1]
        for fields in alternatives:
            if self._is_sane() or self._draw.random() < 0.7:
                self._fill(message, self._draw.choice(fields), depth)
        optional = {field.name for fields in alternatives for field in fields}
        for field in descriptor.fields:
            if field.name not in optional and self._draw.random() < self._share(field):
                self._fill(message, field, depth)
        if self._is_sane():
            _put_right(message)
        return message

    def _is_sane(self) -> bool:
        return self._draw.random() < self._sanity

    def _share(self, field: Field) -> float:
        if not self._is_sane():
            return 0.5
        return 0.1 if field.name in _RARE else 0.95

    def _fill(self, message: Message, field: Field, depth: int) -> None:
        if field.message_type is not None and (depth <= 0 or self._left <= 0):
            return
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            self._fill_map(getattr(message, field.name), field, depth)
        elif field.is_repeated:
            getattr(message, field.name).extend(self._list(field, depth))
        elif field.message_type is not None:
            getattr(message, field.name).CopyFrom(self.message(field.message_type, depth - 1))
        else:
            setattr(message, field.name, self._value(field))

    def _list(self, field: Field, depth: int) -> list[Any]:
        if self._is_sane():
            width = self._widths.get(field.full_name.removeprefix("towerbridge.v1."))
            count, size = width if width is not None else self._draw.choice(_SANE_COUNTS), 0
        else:
            count = self._draw.choice(_ODD_COUNTS)
            size = self._draw.choice(_HUGE_COUNTS) if self._draw.random() < _HUGE_SHARE else 0
        values = []
        for _ in range(max(count, 1) if size else count):
            if field.message_type is not None and self._left <= 0:
                break
            values.append(self._value(field) if field.message_type is None else self.message(field.message_type, depth - 1))
        if values:
            size = min(size, _MOST_BYTES // _bytes_of(values[0]))
        return values + values[:1] * (size - len(values))

    def _fill_map(self, entries: Any, field: Field, depth: int) -> None:
        assert field.message_type is not None
        value = field.message_type.fields_by_name["value"]
        for _ in range(self._draw.choice(_SANE_COUNTS if self._is_sane() else _ODD_COUNTS)):
            attributes = self._values.known.attributes
            name = self._draw.choice(attributes) if self._is_sane() else self._values.odd_name(self._draw)
            if value.message_type is None:
                entries[name] = self._value(value)
            elif self._left > 0:
                entries[name].CopyFrom(self.message(value.message_type, depth - 1))

    def _value(self, field: Field) -> Any:
        return (self._values.sane if self._is_sane() else self._values.odd)(field, self._draw)


def _bytes_of(value: Any) -> int:
    """About as many as a value takes, and never none."""
    if isinstance(value, str | bytes):
        return 4 * len(value) + 1
    return value.ByteSize() + 1 if isinstance(value, Message) else 8


def _put_right(message: Any) -> None:
    """What fields owe each other, and no field knows alone."""
    name = message.DESCRIPTOR.name
    if name == "InlineHistory":
        count = len(message.item_ids)
        for column in (message.event_types, message.occurred_at):
            del column[count if len(column) >= count else 0 :]
    elif name == "MatchAny":
        del message.numbers[:], message.booleans[:]
    elif name in ("Item", "Profile"):
        for reserved in ("text", "categories"):
            message.attributes.pop(reserved, None)
    elif name == "LinkIdentityRequest" and message.source.HasField("user_id"):
        message.target.user_id = f"{message.source.user_id}-home"
