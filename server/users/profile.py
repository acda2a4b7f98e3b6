"""What was stated about a person: typed attributes, and what they like and dislike."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from towerbridge.v1 import user_pb2

from server.catalogue import attributes as values
from server.errors import InvalidField
from server.fields import check_count, check_ids, check_text

_ATTRIBUTES_MAX = 64
_ATTRIBUTES_BYTES = 16_384
_NAME_BYTES = 64
_ITEMS_MAX = 1_000
_CATEGORIES_MAX = 64
_LISTS = {
    "liked_item_ids": _ITEMS_MAX,
    "disliked_item_ids": _ITEMS_MAX,
    "liked_categories": _CATEGORIES_MAX,
    "disliked_categories": _CATEGORIES_MAX,
}


@dataclass(frozen=True, slots=True)
class Profile:
    """A person's profile. The lists hold each entry once, in the order in which they were given."""

    attributes: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}), hash=False)  # values as in JSON
    liked_item_ids: tuple[str, ...] = ()
    disliked_item_ids: tuple[str, ...] = ()
    liked_categories: tuple[str, ...] = ()
    disliked_categories: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether it states nothing."""
        return not self.attributes and not any(getattr(self, name) for name in _LISTS)

    def to_json(self) -> str:
        """The form that the journal keeps: compact, with sorted keys, without what is empty."""
        parts: dict[str, Any] = {name: list(getattr(self, name)) for name in _LISTS}
        parts["attributes"] = dict(self.attributes)
        kept = {name: part for name, part in parts.items() if part}
        return json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Profile":
        """The profile of which `to_json` made the text."""
        parts = json.loads(text)
        return cls(
            attributes=MappingProxyType(parts.get("attributes", {})),
            **{name: tuple(parts.get(name, ())) for name in _LISTS},
        )

    def to_wire(self) -> user_pb2.Profile:
        return user_pb2.Profile(
            attributes={name: values.to_wire(value) for name, value in self.attributes.items()},
            **{name: getattr(self, name) for name in _LISTS},
        )

    @classmethod
    def from_wire(cls, message: user_pb2.Profile, field: str = "profile") -> "Profile":
        """Raises InvalidField, which names the field at fault."""
        lists = {
            name: _each_once(check_ids(getattr(message, name), f"{field}.{name}", maximum)) for name, maximum in _LISTS.items()
        }
        return cls(attributes=MappingProxyType(_attributes(message, f"{field}.attributes")), **lists)


def _attributes(message: user_pb2.Profile, field: str) -> dict[str, Any]:
    check_count(len(message.attributes), field, _ATTRIBUTES_MAX)
    typed: dict[str, values.Value] = {}
    for name, value in message.attributes.items():
        if not 1 <= len(name.encode()) <= _NAME_BYTES:
            raise InvalidField(f"{field}[{name[:80]}]", f"the name must have 1 to {_NAME_BYTES} bytes of UTF-8")
        try:
            typed[name] = values.from_wire(value)
        except ValueError as error:
            raise InvalidField(f"{field}[{name}]", str(error)) from None
    plain: dict[str, Any] = json.loads(check_text(values.to_json(typed), field, _ATTRIBUTES_BYTES))
    return plain


def _each_once(entries: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(entries))
