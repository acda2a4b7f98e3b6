from datetime import UTC, datetime
from typing import Any

import pytest
import towerbridge
from towerbridge import v1

NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)


def test_a_filter_is_the_contracts_message() -> None:
    made = towerbridge.where(
        must=[towerbridge.match("brand", "acme", "zeta"), towerbridge.between("price", gt=1, lte=2.5)],
        should=[towerbridge.where(must=[towerbridge.exists("cover")]), towerbridge.between("since", gte=NEW_YEAR)],
        must_not=[towerbridge.match("year", 1999, 2000.0), towerbridge.match("used", True)],
        deny=["1"],
    )
    nested = v1.Filter(must=[v1.Condition(exists=v1.Exists(attribute="cover"))])
    since = v1.TimeRange(attribute="since")
    since.gte.FromDatetime(NEW_YEAR)
    assert made == v1.Filter(
        must=[
            v1.Condition(match_any=v1.MatchAny(attribute="brand", strings=["acme", "zeta"])),
            v1.Condition(range=v1.Range(attribute="price", gt=1.0, lte=2.5)),
        ],
        should=[v1.Condition(filter=nested), v1.Condition(time_range=since)],
        must_not=[
            v1.Condition(match_any=v1.MatchAny(attribute="year", numbers=[1999.0, 2000.0])),
            v1.Condition(match_any=v1.MatchAny(attribute="used", booleans=[True])),
        ],
        deny=v1.ItemIds(item_ids=["1"]),
    )
    assert not made.HasField("allow")


def test_an_empty_list_of_allowed_items_is_sent_as_such() -> None:
    assert towerbridge.where(allow=[]).HasField("allow")
    assert not towerbridge.where(allow=None).HasField("allow")


@pytest.mark.parametrize("values", [(), ("a", 1), (1, True), (None,), (["a"],)])
def test_values_of_no_or_several_kinds_are_refused(values: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError, match=r"match\('brand', \.\.\.\) needs values that are all"):
        towerbridge.match("brand", *values)


@pytest.mark.parametrize("bounds", [{}, {"gt": 1, "lt": NEW_YEAR}, {"gt": "a"}, {"gt": True}])
def test_bounds_of_no_or_several_kinds_are_refused(bounds: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=r"between\('price', \.\.\.\) needs gt, gte, lt or lte"):
        towerbridge.between("price", **bounds)
    with pytest.raises(ValueError, match="gte has no time zone"):
        towerbridge.between("since", gte=datetime(2026, 1, 1))


def test_what_is_not_a_list_of_conditions_or_ids_is_refused() -> None:
    with pytest.raises(TypeError, match=r"must must be a list of conditions; write must=\[\.\.\.\]"):
        towerbridge.where(must=towerbridge.exists("a"))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"should\[1\] must be made with match, between, exists, match_profile or where"):
        towerbridge.where(should=[towerbridge.exists("a"), "a"])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="deny must be a list of strings"):
        towerbridge.where(deny="item-1")
