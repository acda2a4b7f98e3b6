"""Values of attributes, and how columns take them: pure, so that any thread can do it before the owner's thread writes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.filters.filter import Kind

Value = str | bool | int | float | datetime | Sequence[str]
"""What an attribute can be; a datetime without a time zone is in UTC."""

KEYWORD_BYTES = 256
"""A longer string is kept nowhere here and cannot be compared: a description is not a keyword."""
KEYWORDS_MAX = 64
"""Keywords of one attribute of one item; a longer list cannot be compared."""
DTYPES: dict[Kind, Any] = {Kind.NUMBER: np.float64, Kind.BOOLEAN: np.bool_, Kind.TIMESTAMP: np.int64}
"""Kinds that are one plain value, and its dtype; a timestamp is in microseconds."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Words:
    """The keywords of n items, none of which holds one twice."""

    distinct: list[str]
    lengths: NDArray[np.int64]  # (n,) how many each item holds, at least 1
    numbers: NDArray[np.int64]  # (sum of lengths,) places in `distinct`, one item's after the other's

    def only(self, kept: NDArray[np.bool_]) -> "Words":
        """Those of some of the items: (n,) bool."""
        return Words(self.distinct, self.lengths[kept], self.numbers[np.repeat(kept, self.lengths)])


@dataclass(frozen=True, slots=True)
class Group:
    """What a batch of items holds of one attribute in one kind."""

    name: str
    kind: Kind
    items: NDArray[np.int64]  # (n,) places in the batch, ascending, each once
    plain: NDArray[Any] | None = None  # (n,) of the kind's dtype; None for keywords and for what cannot be compared
    words: Words | None = None  # of keywords

    def only(self, kept: NDArray[np.bool_]) -> "Group":
        """The part of some of the items: (n,) bool."""
        plain = None if self.plain is None else self.plain[kept]
        words = None if self.words is None else self.words.only(kept)
        return Group(self.name, self.kind, self.items[kept], plain, words)


@dataclass(frozen=True, slots=True)
class Grouped:
    """The attributes of a batch of items, as `AttributeColumns.write` takes them."""

    count: int  # of items
    groups: list[Group]


def group(attributes: Sequence[Mapping[str, Value]]) -> Grouped:
    """Brings the attributes of n items into groups. An empty list of keywords is no attribute."""
    held: dict[tuple[str, Kind], _Held] = {}
    for place, mapping in enumerate(attributes):
        for name, value in mapping.items():
            kind, plain = _plain(value)
            if kind is Kind.ABSENT:
                continue
            one = held.get((name, kind))
            if one is None:
                one = held[name, kind] = _Held()
            one.items.append(place)
            one.values.append(plain)
    return Grouped(len(attributes), [_group(name, kind, one) for (name, kind), one in held.items()])


def microseconds(moment: datetime) -> int:
    """Microseconds since 1970, UTC."""
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return (aware - _EPOCH) // _MICROSECOND


@dataclass(slots=True)
class _Held:
    items: list[int] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)


def _group(name: str, kind: Kind, held: _Held) -> Group:
    items = np.array(held.items, dtype=np.int64)
    if kind in DTYPES:
        return Group(name, kind, items, plain=np.array(held.values, dtype=DTYPES[kind]))
    return Group(name, kind, items, words=_words(held.values) if kind is Kind.KEYWORDS else None)


def _words(rows: Iterable[Sequence[str]]) -> Words:
    number_of: dict[str, int] = {}
    lengths, numbers = [], []
    for row in rows:
        lengths.append(len(row))
        for word in row:
            numbers.append(number_of.setdefault(word, len(number_of)))
    return Words(list(number_of), np.array(lengths, dtype=np.int64), np.array(numbers, dtype=np.int64))


def _plain(value: Value) -> tuple[Kind, Any]:
    """The kind of a value, and the value as its column takes it."""
    if isinstance(value, str):
        return (Kind.KEYWORDS, (value,)) if _is_keyword(value) else (Kind.OTHER, None)
    if isinstance(value, bool):
        return Kind.BOOLEAN, value
    if isinstance(value, int | float):
        # NaN compares with nothing, so it must not count as a number that a range rules out and must_not lets in.
        return (Kind.NUMBER, float(value)) if value == value else (Kind.OTHER, None)
    if isinstance(value, datetime):
        return Kind.TIMESTAMP, microseconds(value)
    if isinstance(value, list | tuple):
        if not value:
            return Kind.ABSENT, None
        if len(value) <= KEYWORDS_MAX and all(isinstance(one, str) and _is_keyword(one) for one in value):
            return Kind.KEYWORDS, tuple(dict.fromkeys(value))
    return Kind.OTHER, None


def _is_keyword(value: str) -> bool:
    return len(value) <= KEYWORD_BYTES and len(value.encode(errors="surrogatepass")) <= KEYWORD_BYTES
