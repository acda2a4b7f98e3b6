"""What callers read: attributes as Python values, and the rows of a batch that went wrong."""

from collections.abc import Iterable
from typing import Literal, Protocol

from towerbridge._values import Attribute, python_value
from towerbridge.v1 import (
    BatchRecommendResponse,
    FindSimilarItemsResponse,
    GetItemsResponse,
    RecommendResponse,
    RecordEventsResponse,
    RemoveItemsResponse,
    RowError,
    SearchVectorsResult,
    SetAvailabilityResponse,
    UpsertItemsResponse,
)

AttributesReply = RecommendResponse | FindSimilarItemsResponse | SearchVectorsResult | GetItemsResponse
BatchReply = RecordEventsResponse | UpsertItemsResponse | RemoveItemsResponse | SetAvailabilityResponse | BatchRecommendResponse


class _Result(Protocol):
    """A row's result: every kind has its error in this field."""

    @property
    def error(self) -> RowError: ...

    def HasField(self, field_name: Literal["error"]) -> bool: ...  # noqa: N802


def attribute_values(response: AttributesReply) -> list[dict[str, Attribute]]:
    """One dict an item of the answer, in its order: attribute name -> str, float, bool, datetime (UTC) or list of str.

    Of a ranked answer each dict has every attribute that was asked for, None where the item has no such attribute. Of
    `get_items` each has the attributes that the item has.
    """
    if isinstance(response, GetItemsResponse):
        return [{name: python_value(value) for name, value in row.item.attributes.items()} for row in response.items]
    rows: list[dict[str, Attribute]] = [{} for _ in response.item_ids]
    for column in response.attributes:
        for row, value in zip(rows, column.values, strict=True):
            row[column.name] = python_value(value)
    return rows


def rejected(response: BatchReply) -> list[tuple[int, RowError]]:
    """The rows of a batch that went wrong: (index in the request, what is wrong), in order; empty if all went well.

    Events that were dropped, for want of consent for example, are among them.
    """
    results: Iterable[_Result] = response.results
    return [(index, result.error) for index, result in enumerate(results) if result.HasField("error")]
