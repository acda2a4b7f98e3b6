"""Conditions on what the person's profile says, on their way to the index, which knows nothing of people."""

from collections.abc import Iterator
from typing import Any

from towerbridge.v1 import filter_pb2

from index.filters.values import KEYWORD_BYTES
from server.errors import InvalidField
from server.fields import check_text
from server.users.profile import Profile

CONDITIONS_MAX = 64
VALUES_MAX = 1_000
_NAME_BYTES = 64
_PLACEHOLDER = "-"  # stands for a value that there is not, so that the rest of the filter is checked all the same


class Resolved:
    """A filter in which every MatchProfile became a MatchAny of the profile's values.

    `has_all` is False if the profile lacks one of them: no item passes the filter then, whatever the message says.
    """

    def __init__(self, message: filter_pb2.Filter, profile: Profile | None, field: str) -> None:
        """message: a filter that holds a MatchProfile; it is left as it is. Raises InvalidField."""
        self.message = filter_pb2.Filter()
        self.message.CopyFrom(message)
        self.has_all = True
        for condition, place in _conditions(self.message, field):
            if condition.WhichOneof("kind") != "match_profile":
                continue
            wanted = condition.match_profile
            check_text(wanted.profile_attribute, f"{place}.match_profile.profile_attribute", _NAME_BYTES)
            attribute = check_attribute(wanted.attribute, f"{place}.match_profile")
            values = _values(profile, wanted.profile_attribute or attribute)
            self.has_all &= values is not None
            condition.match_any.CopyFrom(values or filter_pb2.MatchAny(strings=[_PLACEHOLDER]))
            condition.match_any.attribute = attribute


def holds_match_profile(message: filter_pb2.Filter, field: str) -> bool:
    """Whether the filter has a MatchProfile anywhere. Raises InvalidField if it has too many conditions."""
    return any(condition.WhichOneof("kind") == "match_profile" for condition, _ in _conditions(message, field))


def check_attribute(name: str, field: str) -> str:
    """The name of an item's attribute that can be filtered by."""
    check_text(name, f"{field}.attribute", _NAME_BYTES, minimum=1)
    if name == "text":
        raise InvalidField(f"{field}.attribute", '"text" cannot be filtered by; use "categories" or an attribute')
    return name


def too_many(field: str) -> InvalidField:
    """The error for one condition more than a filter may have."""
    return InvalidField(field, f"is one too many: a filter has at most {CONDITIONS_MAX} conditions, nested ones included")


def _conditions(message: filter_pb2.Filter, field: str) -> Iterator[tuple[filter_pb2.Condition, str]]:
    for count, (condition, place) in enumerate(_walk(message, field), 1):
        if count > CONDITIONS_MAX:
            raise too_many(place)
        yield condition, place


def _walk(message: filter_pb2.Filter, field: str) -> Iterator[tuple[filter_pb2.Condition, str]]:
    for name, group in (("must", message.must), ("should", message.should), ("must_not", message.must_not)):
        for number, condition in enumerate(group):
            place = f"{field}.{name}[{number}]"
            yield condition, place
            if condition.WhichOneof("kind") == "filter":
                yield from _walk(condition.filter, f"{place}.filter")


def _values(profile: Profile | None, name: str) -> filter_pb2.MatchAny | None:
    """What the profile says, without an attribute's name; None if it says nothing that can be compared."""
    value: Any = profile.attributes.get(name) if profile is not None else None
    if isinstance(value, bool):
        return filter_pb2.MatchAny(booleans=[value])
    if isinstance(value, int | float):
        return filter_pb2.MatchAny(numbers=[value])
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, list) or not 1 <= len(words) <= VALUES_MAX:
        return None
    # No item can be compared with a longer string: under must_not it would let all of them pass.
    return None if any(len(word.encode()) > KEYWORD_BYTES for word in words) else filter_pb2.MatchAny(strings=words)
