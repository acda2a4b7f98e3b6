"""A filter as data: frozen and hashable. Whoever makes one from outside checks its size first."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntEnum


class FilterError(ValueError):
    """The filter cannot be applied to the items that there are. The message names the attribute and what to do."""

    def __init__(self, attribute: str, problem: str) -> None:
        super().__init__(f"the attribute {attribute!r} {problem}")
        self.attribute = attribute


class Kind(IntEnum):
    """What kind of value a slot holds of one attribute."""

    ABSENT = 0
    KEYWORDS = 1  # a string, or a list of them
    NUMBER = 2
    BOOLEAN = 3
    TIMESTAMP = 4
    OTHER = 5  # too long to be a keyword, or too many of them: held, and not comparable with anything


@dataclass(frozen=True, slots=True)
class MatchAny:
    """The attribute is one of the values, or its list holds one of them.

    All values are str, or all bool, or all float; ValueError if they are not, or if there are none.
    """

    attribute: str
    values: frozenset[str | bool | float]

    def __post_init__(self) -> None:
        kinds = {type(value) for value in self.values}
        if len(kinds) != 1 or not kinds <= _KIND_OF.keys():
            raise ValueError(f"match_any on {self.attribute!r} needs values that are all str, all bool or all float")

    @property
    def kind(self) -> Kind:
        """The kind that it can be compared with."""
        return _KIND_OF[type(next(iter(self.values)))]


@dataclass(frozen=True, slots=True)
class Range:
    """The attribute is a number within all of the bounds that are given."""

    attribute: str
    gt: float | None = None
    gte: float | None = None
    lt: float | None = None
    lte: float | None = None

    @property
    def kind(self) -> Kind:
        """The kind that it can be compared with."""
        return Kind.NUMBER


@dataclass(frozen=True, slots=True)
class TimeRange:
    """The attribute is a point in time within all of the bounds that are given: microseconds since 1970, UTC."""

    attribute: str
    gt: int | None = None
    gte: int | None = None
    lt: int | None = None
    lte: int | None = None

    @property
    def kind(self) -> Kind:
        """The kind that it can be compared with."""
        return Kind.TIMESTAMP


@dataclass(frozen=True, slots=True)
class Exists:
    """The item has the attribute, of whatever kind."""

    attribute: str


@dataclass(frozen=True, slots=True)
class Nested:
    """A filter within a filter."""

    filter: "Filter"


Condition = MatchAny | Range | TimeRange | Exists | Nested


@dataclass(frozen=True, slots=True)
class Filter:
    """Which items pass: all of `must`, at least one of `should` if there are any, none of `must_not`; by id, only those of
    `allow` (None: any; empty: no item) and none of `deny`.

    An item without an attribute matches no condition on it. An item that holds an attribute in a kind with which a condition
    cannot be compared (text where a number is asked for) does not pass the filter as a whole, wherever the condition stands.

    `key` stands for the content in caches: filters with equal keys are the same. It is computed if it is left out.
    """

    must: tuple[Condition, ...] = ()
    should: tuple[Condition, ...] = ()
    must_not: tuple[Condition, ...] = ()
    allow: frozenset[str] | None = None
    deny: frozenset[str] = frozenset()
    key: bytes = b""

    def __post_init__(self) -> None:
        if not self.key:
            object.__setattr__(self, "key", _digest(self))

    @property
    def id_count(self) -> int:
        """How many ids `allow` and `deny` hold, of nested filters too: what a cached filter weighs."""
        return sum(len(ids) for ids in self.id_lists())

    def id_lists(self) -> Iterator[frozenset[str]]:
        """Every list of ids, those of nested filters too."""
        yield from (ids for ids in (self.allow, self.deny) if ids)
        for one in self.conditions():
            if isinstance(one, Nested):
                yield from (ids for ids in (one.filter.allow, one.filter.deny) if ids)

    def conditions(self) -> Iterator[Condition]:
        """Every condition, those of nested filters too."""
        for one in (*self.must, *self.should, *self.must_not):
            yield one
            if isinstance(one, Nested):
                yield from one.filter.conditions()


_KIND_OF: dict[type, Kind] = {str: Kind.KEYWORDS, bool: Kind.BOOLEAN, float: Kind.NUMBER}


def _digest(filter: Filter) -> bytes:
    # Sorted by repr: sets have no order of their own, and repr tells 1.0 from True.
    ids = (None if filter.allow is None else sorted(filter.allow), sorted(filter.deny))
    groups = [[_canonical(one) for one in group] for group in (filter.must, filter.should, filter.must_not)]
    return hashlib.blake2b(repr((groups, ids)).encode(), digest_size=16).digest()


def _canonical(condition: Condition) -> str:
    if isinstance(condition, MatchAny):
        return repr((condition.attribute, sorted(map(repr, condition.values))))
    if isinstance(condition, Nested):
        return repr(_digest(replace(condition.filter, key=b"-")))
    return repr(condition)
