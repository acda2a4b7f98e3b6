"""Keyword arguments to request messages: one function an RPC, shared by Client and AsyncClient."""

from collections.abc import Iterable, Mapping
from datetime import datetime

from towerbridge._values import Floats, floats, string, strings, timestamp, whole
from towerbridge.v1 import (
    BatchRecommendRequest,
    Event,
    Filter,
    FindSimilarItemsRequest,
    GetItemsRequest,
    GetUserRequest,
    InlineHistory,
    Item,
    ItemAvailability,
    RecommendRequest,
    RecordEventsRequest,
    RemoveItemsRequest,
    ScoreItemsRequest,
    SearchOptions,
    SearchVectorsRequest,
    SetAvailabilityRequest,
    Subject,
    UpsertItemsRequest,
    UserVector,
    Vector,
)

# "item", ("item", "type") or ("item", "type", when); the type is "view" if it is left out.
HistoryEntry = str | tuple[str, str] | tuple[str, str, datetime | None]


def subject(
    user_id: str | None,
    visitor_id: str | None,
    history: Iterable[HistoryEntry] | None,
    vector: Floats | None,
    release_id: str | None,
) -> Subject:
    """Whom an answer is for; TypeError unless exactly one of the first four is given."""
    if sum(kind is not None for kind in (user_id, visitor_id, history, vector)) != 1:
        raise TypeError("give exactly one of user_id, visitor_id, history and vector: whom is the answer for?")
    if release_id is not None and vector is None:
        raise TypeError("release_id names the release that made the vector; it does not go without vector")
    if vector is not None:
        made_by = None if release_id is None else string("release_id", release_id)
        return Subject(vector=UserVector(values=floats("vector", vector), release_id=made_by))
    if history is not None:
        return Subject(history=_history(history))
    if user_id is not None:
        return Subject(user_id=string("user_id", user_id))
    return Subject(visitor_id=string("visitor_id", visitor_id or ""))


def recommend_request(
    *,
    user_id: str | None = None,
    visitor_id: str | None = None,
    history: Iterable[HistoryEntry] | None = None,
    vector: Floats | None = None,
    release_id: str | None = None,
    limit: int = 10,
    exclude_item_ids: Iterable[str] = (),
    exclude_seen: bool = False,
    min_revision: str = "",
    allow_stale: bool = False,
    attributes: Iterable[str] = (),
    exact: bool = False,
    filter: Filter | None = None,
) -> RecommendRequest:
    """One request of a `batch_recommend`; the arguments are those of `Client.recommend`."""
    return RecommendRequest(
        subject=subject(user_id, visitor_id, history, vector, release_id),
        limit=whole("limit", limit),
        exclude_item_ids=strings("exclude_item_ids", exclude_item_ids),
        exclude_seen=exclude_seen,
        min_revision=string("min_revision", min_revision),
        allow_stale=allow_stale,
        attributes=strings("attributes", attributes),
        search=_search(exact),
        filter=filter,
    )


def batch_recommend_request(requests: Iterable[RecommendRequest]) -> BatchRecommendRequest:
    return BatchRecommendRequest(requests=requests)


def score_items_request(whom: Subject, item_ids: Iterable[str], min_revision: str, allow_stale: bool) -> ScoreItemsRequest:
    return ScoreItemsRequest(
        subject=whom,
        item_ids=strings("item_ids", item_ids),
        min_revision=string("min_revision", min_revision),
        allow_stale=allow_stale,
    )


def find_similar_items_request(
    item_id: str, limit: int, exclude_item_ids: Iterable[str], attributes: Iterable[str], exact: bool, filter: Filter | None
) -> FindSimilarItemsRequest:
    return FindSimilarItemsRequest(
        item_id=string("item_id", item_id),
        limit=whole("limit", limit),
        exclude_item_ids=strings("exclude_item_ids", exclude_item_ids),
        attributes=strings("attributes", attributes),
        search=_search(exact),
        filter=filter,
    )


def search_vectors_request(
    vectors: Iterable[Floats],
    limit: int,
    exclude_item_ids: Iterable[str],
    attributes: Iterable[str],
    exact: bool,
    release_id: str | None,
    filter: Filter | None,
) -> SearchVectorsRequest:
    return SearchVectorsRequest(
        vectors=[Vector(values=floats(f"vectors[{index}]", vector)) for index, vector in enumerate(vectors)],
        limit=whole("limit", limit),
        exclude_item_ids=strings("exclude_item_ids", exclude_item_ids),
        attributes=strings("attributes", attributes),
        search=_search(exact),
        release_id=None if release_id is None else string("release_id", release_id),
        filter=filter,
    )


def record_events_request(events: Iterable[Event]) -> RecordEventsRequest:
    if isinstance(events, Event):
        raise TypeError("events must be a list of events; write [event]")
    return RecordEventsRequest(events=events)


def upsert_items_request(items: Iterable[Item]) -> UpsertItemsRequest:
    if isinstance(items, Item):
        raise TypeError("items must be a list of items; write [item]")
    return UpsertItemsRequest(items=items)


def remove_items_request(item_ids: Iterable[str]) -> RemoveItemsRequest:
    return RemoveItemsRequest(item_ids=strings("item_ids", item_ids))


def get_items_request(item_ids: Iterable[str]) -> GetItemsRequest:
    return GetItemsRequest(item_ids=strings("item_ids", item_ids))


def set_availability_request(items: Mapping[str, bool]) -> SetAvailabilityRequest:
    item_ids = strings("items", items)
    changes = [ItemAvailability(item_id=item_id, available=items[item_id]) for item_id in item_ids]
    return SetAvailabilityRequest(items=changes)


def get_user_request(user_id: str | None, visitor_id: str | None, limit: int | None) -> GetUserRequest:
    if (user_id is None) == (visitor_id is None):
        raise TypeError("give exactly one of user_id and visitor_id")
    most = None if limit is None else whole("limit", limit)
    if user_id is not None:
        return GetUserRequest(user_id=string("user_id", user_id), limit=most)
    return GetUserRequest(visitor_id=string("visitor_id", visitor_id or ""), limit=most)


def _search(exact: bool) -> SearchOptions | None:
    return SearchOptions(exact=True) if exact else None


def _history(entries: Iterable[HistoryEntry]) -> InlineHistory:
    if isinstance(entries, str):
        raise TypeError(f"history must be a list, not the string {entries!r}; use [{entries!r}]")
    rows = [_history_row(entry) for entry in entries]
    moments = [moment for _, _, moment in rows if moment is not None]
    if moments and len(moments) != len(rows):
        raise ValueError("history must have times for all entries or for none: without them the order given counts")
    return InlineHistory(
        item_ids=[item_id for item_id, _, _ in rows],
        event_types=[event_type for _, event_type, _ in rows],
        occurred_at=[timestamp(f"history[{index}]", moment) for index, moment in enumerate(moments)],
    )


def _history_row(entry: HistoryEntry) -> tuple[str, str, datetime | None]:
    match entry:
        case str(item_id):
            return item_id, "view", None
        case (str(item_id), str(event_type)):
            return item_id, event_type, None
        case (str(item_id), str(event_type), moment) if moment is None or isinstance(moment, datetime):
            return item_id, event_type, moment
    raise TypeError(f"a history entry is an item id, (item id, type) or (item id, type, datetime), not {entry!r}")
