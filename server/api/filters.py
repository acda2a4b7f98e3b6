"""From the wire's filter to the index's."""

import asyncio
import hashlib
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Literal

from towerbridge.v1 import filter_pb2

from index.filters.filter import Condition, Exists, Filter, MatchAny, Nested, Range, TimeRange
from index.filters.values import KEYWORD_BYTES
from server.api.match_profile import CONDITIONS_MAX, VALUES_MAX, Resolved, check_attribute, holds_match_profile, too_many
from server.errors import InvalidField
from server.fields import ID_BYTES, check_count, check_id, check_text, check_time
from server.users.profile import Profile

IDS_MAX = 100_000
DEPTH_MAX = 4
_IDS_AT_ONCE = 4_096  # ids decoded between two looks at other calls: some 0.3 ms
_KEPT = 64
_KEPT_IDS = 1_000_000  # in the lists of all filters kept, some 70 bytes each
_Bound = Literal["gt", "gte", "lt", "lte"]
_BOUNDS: tuple[_Bound, ...] = ("gt", "gte", "lt", "lte")
_NOTHING = Filter(allow=frozenset())  # no item passes


class FilterDecoder:
    """Decodes filters on the event loop, and keeps those decoded last: a page sends the same filter again and again.

    Long lists of ids are decoded in parts, between which other calls run. What is kept holds nothing of a profile but under
    a key of its values.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[bytes, Filter] = OrderedDict()  # by key, the one used last at the end
        self._kept_ids = 0

    async def decode(
        self, message: filter_pb2.Filter, field: str = "filter", profile: Callable[[], Profile | None] | None = None
    ) -> Filter | None:
        """The filter; None if it has no condition and no list. Raises InvalidField, which names the field at fault.

        profile: gives the profile of the person whom the answer is for, if it may be used, for conditions on it; without one
        no item passes a filter that has such a condition. None where no person can be: such a condition is refused.
        """
        key = _key(message)
        kept = self._kept.get(key)
        if kept is not None:
            self._kept.move_to_end(key)
            return kept
        if profile is not None and holds_match_profile(message, field):
            resolved = Resolved(message, profile(), field)
            decoded = await self.decode(resolved.message, field)
            return decoded if resolved.has_all else _NOTHING
        return await self._decode(message, key, field)

    async def _decode(self, message: filter_pb2.Filter, key: bytes, field: str) -> Filter | None:
        decoded = await _Decoding().filter(message, key, field, depth=1)
        if decoded.allow is None and not decoded.deny and not any(decoded.conditions()):
            return None
        if key not in self._kept:  # another call may have decoded the same meanwhile
            self._kept[key] = decoded
            self._kept_ids += decoded.id_count
            while len(self._kept) > 1 and (len(self._kept) > _KEPT or self._kept_ids > _KEPT_IDS):
                self._kept_ids -= self._kept.popitem(last=False)[1].id_count
        return decoded


class _Decoding:
    """One filter on its way in, with what was counted of it so far."""

    def __init__(self) -> None:
        self._conditions = 0
        self._allowed = 0
        self._denied = 0

    async def filter(self, message: filter_pb2.Filter, key: bytes, field: str, *, depth: int) -> Filter:
        if depth > DEPTH_MAX:
            raise InvalidField(field, f"is more than {DEPTH_MAX} filters deep")
        groups = {
            name: [await self._condition(one, f"{field}.{name}[{place}]", depth) for place, one in enumerate(group)]
            for name, group in (("must", message.must), ("should", message.should), ("must_not", message.must_not))
        }
        self._allowed += len(message.allow.item_ids)
        self._denied += len(message.deny.item_ids)
        for name, count in (("allow", self._allowed), ("deny", self._denied)):
            if count > IDS_MAX:
                raise InvalidField(f"{field}.{name}.item_ids", f"must have at most {IDS_MAX:,} entries in all, has {count:,}")
        return Filter(
            must=tuple(groups["must"]),
            should=tuple(groups["should"]),
            must_not=tuple(groups["must_not"]),
            allow=await _ids(message.allow, f"{field}.allow.item_ids") if message.HasField("allow") else None,
            deny=await _ids(message.deny, f"{field}.deny.item_ids"),
            key=key,
        )

    async def _condition(self, message: filter_pb2.Condition, field: str, depth: int) -> Condition:
        self._conditions += 1
        if self._conditions > CONDITIONS_MAX:
            raise too_many(field)
        kind = message.WhichOneof("kind")
        if kind == "match_any":
            return _match_any(message.match_any, f"{field}.match_any")
        if kind == "range":
            return _range(message.range, f"{field}.range")
        if kind == "time_range":
            return _time_range(message.time_range, f"{field}.time_range")
        if kind == "exists":
            return Exists(check_attribute(message.exists.attribute, f"{field}.exists"))
        if kind == "filter":
            return Nested(await self.filter(message.filter, _key(message.filter), f"{field}.filter", depth=depth + 1))
        if kind == "match_profile":
            raise InvalidField(f"{field}.match_profile", "is for calls about a person only; use match_any")
        raise InvalidField(field, "set match_any, range, time_range, exists, filter or match_profile")


def _match_any(message: filter_pb2.MatchAny, field: str) -> MatchAny:
    attribute = check_attribute(message.attribute, field)
    given = [name for name in ("strings", "numbers", "booleans") if len(getattr(message, name))]
    if len(given) != 1:
        raise InvalidField(field, "needs values in exactly one of strings, numbers and booleans")
    check_count(len(getattr(message, given[0])), f"{field}.{given[0]}", VALUES_MAX if given != ["booleans"] else 2, minimum=1)
    strings = [check_text(one, f"{field}.strings[{place}]", KEYWORD_BYTES) for place, one in enumerate(message.strings)]
    numbers = [_finite(one, f"{field}.numbers[{place}]") for place, one in enumerate(message.numbers)]
    return MatchAny(attribute, frozenset[str | bool | float](strings or numbers or message.booleans))


def _range(message: filter_pb2.Range, field: str) -> Range:
    attribute = check_attribute(message.attribute, field)
    bounds = {name: _finite(getattr(message, name), f"{field}.{name}") for name in _BOUNDS if message.HasField(name)}
    if not bounds:
        raise InvalidField(field, "needs gt, gte, lt or lte")
    return Range(attribute, **bounds)


def _time_range(message: filter_pb2.TimeRange, field: str) -> TimeRange:
    attribute = check_attribute(message.attribute, field)
    bounds = {name: check_time(getattr(message, name), f"{field}.{name}") for name in _BOUNDS if message.HasField(name)}
    if not bounds:
        raise InvalidField(field, "needs gt, gte, lt or lte")
    return TimeRange(attribute, **bounds)


def _finite(value: float, field: str) -> float:
    if not math.isfinite(value):
        raise InvalidField(field, "must be finite")
    return value


async def _ids(message: filter_pb2.ItemIds, field: str) -> frozenset[str]:
    ids: set[str] = set()
    for start in range(0, len(message.item_ids), _IDS_AT_ONCE):
        part = message.item_ids[start : start + _IDS_AT_ONCE]
        if _any_is_wrong(part):
            for place, one in enumerate(part, start):
                check_id(one, f"{field}[{place}]")
        ids.update(part)
        if len(part) == _IDS_AT_ONCE:
            await asyncio.sleep(0)
    return frozenset(ids)


def _any_is_wrong(item_ids: Iterable[str]) -> bool:
    # `check_id` of each would take ten times as long; what it would refuse beyond this is an id that no item has.
    lengths = [len(one) for one in item_ids]
    return min(lengths) == 0 or max(lengths) > ID_BYTES


def _key(message: filter_pb2.Filter) -> bytes:
    return hashlib.blake2b(message.SerializeToString(deterministic=True), digest_size=16).digest()
