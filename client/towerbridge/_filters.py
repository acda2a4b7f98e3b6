"""What callers write: which items an answer may have."""

from collections.abc import Iterable
from datetime import datetime
from numbers import Real

from towerbridge._values import strings, timestamp
from towerbridge.v1 import Condition, Exists, Filter, ItemIds, MatchAny, MatchProfile, Range, TimeRange

Bound = float | datetime | None


def where(
    *,
    must: Iterable[Condition | Filter] = (),
    should: Iterable[Condition | Filter] = (),
    must_not: Iterable[Condition | Filter] = (),
    allow: Iterable[str] | None = None,
    deny: Iterable[str] = (),
) -> Filter:
    """A filter, for the `filter` of `recommend` and its siblings.

    Conditions are made with `match`, `between`, `exists` and `match_profile`; a filter can be one, too. An item without an
    attribute matches no condition on it.

    Args:
        must: conditions that must all match.
        should: conditions of which at least one must match, if there are any.
        must_not: conditions of which none may match.
        allow: ids of the only items that may pass, up to 100,000; an empty list lets none pass. None: any.
        deny: ids of items that must not pass; up to 100,000.

    Raises:
        TypeError: something that is not a condition, or a str where a list of ids belongs.
    """
    return Filter(
        must=_conditions("must", must),
        should=_conditions("should", should),
        must_not=_conditions("must_not", must_not),
        allow=None if allow is None else ItemIds(item_ids=strings("allow", allow)),
        deny=ItemIds(item_ids=denied) if (denied := strings("deny", deny)) else None,
    )


def match(attribute: str, *values: str | float | bool) -> Condition:
    """The attribute is one of the values, or a list of keywords that holds one of them. "categories" is an attribute, too.

    Raises:
        TypeError: no values, or not all of them are str, all numbers or all bool.
    """
    if values and all(isinstance(value, str) for value in values):
        return Condition(match_any=MatchAny(attribute=attribute, strings=[str(value) for value in values]))
    if values and all(isinstance(value, bool) for value in values):
        return Condition(match_any=MatchAny(attribute=attribute, booleans=[bool(value) for value in values]))
    if values and all(isinstance(value, Real) and not isinstance(value, bool) for value in values):
        return Condition(match_any=MatchAny(attribute=attribute, numbers=[float(value) for value in values]))
    raise TypeError(f"match({attribute!r}, ...) needs values that are all str, all numbers or all bool, not {values!r}")


def between(attribute: str, *, gt: Bound = None, gte: Bound = None, lt: Bound = None, lte: Bound = None) -> Condition:
    """The attribute lies within all of the bounds given: numbers, or datetimes with a time zone.

    Args:
        attribute: its name.
        gt: greater, or later, than this.
        gte: this, or greater or later.
        lt: less, or earlier, than this.
        lte: this, or less or earlier.

    Raises:
        TypeError: no bound, or not all of them numbers or all datetimes.
        ValueError: a datetime without a time zone.
    """
    bounds = {name: bound for name, bound in (("gt", gt), ("gte", gte), ("lt", lt), ("lte", lte)) if bound is not None}
    times = {name: timestamp(name, bound) for name, bound in bounds.items() if isinstance(bound, datetime)}
    if times and len(times) == len(bounds):
        return Condition(time_range=TimeRange(attribute=attribute, **times))
    numbers: dict[str, float] = {}
    for name, bound in bounds.items():
        if isinstance(bound, Real) and not isinstance(bound, bool):
            numbers[name] = float(bound)
    if numbers and len(numbers) == len(bounds):
        return Condition(range=Range(attribute=attribute, **numbers))
    raise TypeError(f"between({attribute!r}, ...) needs gt, gte, lt or lte: all numbers or all datetimes, not {bounds!r}")


def exists(attribute: str) -> Condition:
    """The item has the attribute, whatever its value."""
    return Condition(exists=Exists(attribute=attribute))


def match_profile(attribute: str, profile_attribute: str = "") -> Condition:
    """The item's attribute is what the person's profile says; lets no item pass if the profile does not say it.

    Args:
        attribute: the item's attribute; "categories" is one, too.
        profile_attribute: the profile's attribute; empty: of the same name.
    """
    return Condition(match_profile=MatchProfile(attribute=attribute, profile_attribute=profile_attribute))


def _conditions(name: str, conditions: Iterable[Condition | Filter]) -> list[Condition]:
    if isinstance(conditions, Condition | Filter):
        raise TypeError(f"{name} must be a list of conditions; write {name}=[...]")
    result = []
    for place, one in enumerate(conditions):
        if isinstance(one, Filter):
            one = Condition(filter=one)
        if not isinstance(one, Condition):
            raise TypeError(f"{name}[{place}] must be made with match, between, exists, match_profile or where, not {one!r}")
        result.append(one)
    return result
