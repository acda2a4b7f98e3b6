"""The asynchronous client: the same calls as Client, to be awaited."""

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping

from towerbridge import _requests as requests_of
from towerbridge import v1
from towerbridge._aio_event_stream import AsyncEventStream
from towerbridge._aio_people import AsyncPeopleCalls
from towerbridge._aio_releases import AsyncReleaseCalls
from towerbridge._outstanding import Outstanding
from towerbridge._requests import HistoryEntry
from towerbridge._retry import ReadyAttempts, StreamAttempts
from towerbridge._values import Floats


class AsyncClient(AsyncPeopleCalls, AsyncReleaseCalls):
    """Calls a Towerbridge server from asyncio: the methods, arguments and errors of `Client`, awaited.

    What `Client` returns to be iterated is iterated here with `async for`.

    Belongs to the event loop in which it was made (RuntimeError if none is running); calls may run side by side. Use it
    with `async with`, or await `close()`. A cancelled task cancels its call.
    """

    async def wait_until_ready(self, timeout_s: float = 30.0) -> v1.GetReleaseResponse:
        """`Client.wait_until_ready`, awaited."""
        attempts = ReadyAttempts(self._settings.target, timeout_s)
        return await self._send(self._releases.GetRelease, v1.GetReleaseRequest(), attempts)

    async def recommend(
        self,
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
        filter: v1.Filter | None = None,
        timeout_s: float | None = None,
    ) -> v1.RecommendResponse:
        """`Client.recommend`, awaited."""
        request = requests_of.recommend_request(
            user_id=user_id,
            visitor_id=visitor_id,
            history=history,
            vector=vector,
            release_id=release_id,
            limit=limit,
            exclude_item_ids=exclude_item_ids,
            exclude_seen=exclude_seen,
            min_revision=min_revision,
            allow_stale=allow_stale,
            attributes=attributes,
            exact=exact,
            filter=filter,
        )
        return await self._call(self._recommendations.Recommend, request, timeout_s)

    async def batch_recommend(
        self, requests: Iterable[v1.RecommendRequest], *, timeout_s: float | None = None
    ) -> v1.BatchRecommendResponse:
        """`Client.batch_recommend`, awaited."""
        request = requests_of.batch_recommend_request(requests)
        return await self._call(self._recommendations.BatchRecommend, request, timeout_s)

    async def score_items(
        self,
        item_ids: Iterable[str],
        *,
        user_id: str | None = None,
        visitor_id: str | None = None,
        history: Iterable[HistoryEntry] | None = None,
        vector: Floats | None = None,
        release_id: str | None = None,
        min_revision: str = "",
        allow_stale: bool = False,
        timeout_s: float | None = None,
    ) -> v1.ScoreItemsResponse:
        """`Client.score_items`, awaited."""
        whom = requests_of.subject(user_id, visitor_id, history, vector, release_id)
        request = requests_of.score_items_request(whom, item_ids, min_revision, allow_stale)
        return await self._call(self._recommendations.ScoreItems, request, timeout_s)

    async def find_similar_items(
        self,
        item_id: str,
        *,
        limit: int = 10,
        exclude_item_ids: Iterable[str] = (),
        attributes: Iterable[str] = (),
        exact: bool = False,
        filter: v1.Filter | None = None,
        timeout_s: float | None = None,
    ) -> v1.FindSimilarItemsResponse:
        """`Client.find_similar_items`, awaited."""
        request = requests_of.find_similar_items_request(item_id, limit, exclude_item_ids, attributes, exact, filter)
        return await self._call(self._recommendations.FindSimilarItems, request, timeout_s)

    async def search_vectors(
        self,
        vectors: Iterable[Floats],
        *,
        limit: int = 10,
        exclude_item_ids: Iterable[str] = (),
        attributes: Iterable[str] = (),
        exact: bool = False,
        release_id: str | None = None,
        filter: v1.Filter | None = None,
        timeout_s: float | None = None,
    ) -> v1.SearchVectorsResponse:
        """`Client.search_vectors`, awaited."""
        request = requests_of.search_vectors_request(vectors, limit, exclude_item_ids, attributes, exact, release_id, filter)
        return await self._call(self._recommendations.SearchVectors, request, timeout_s)

    async def record_events(self, events: Iterable[v1.Event], *, timeout_s: float | None = None) -> v1.RecordEventsResponse:
        """`Client.record_events`, awaited."""
        return await self._call(self._events.RecordEvents, requests_of.record_events_request(events), timeout_s)

    def stream_events(
        self, events: AsyncIterable[v1.Event] | Iterable[v1.Event], *, outstanding: int = 1024, patience_s: float = 30.0
    ) -> AsyncIterator[v1.EventResult]:
        """`Client.stream_events`, asynchronously; `events` is read in a task of its own."""
        if isinstance(events, v1.Event):
            raise TypeError("events must be an iterable of events; write [event]")
        self._check_open()
        attempts = StreamAttempts(patience_s, self._settings.max_attempts)
        stream = AsyncEventStream(self._events.StreamEvents, self._settings.metadata, Outstanding(outstanding), attempts)
        return stream.results(events)

    async def upsert_items(self, items: Iterable[v1.Item], *, timeout_s: float | None = None) -> v1.UpsertItemsResponse:
        """`Client.upsert_items`, awaited."""
        deadline_s = self._settings.upsert_timeout_s if timeout_s is None else timeout_s
        return await self._call(self._items.UpsertItems, requests_of.upsert_items_request(items), deadline_s)

    async def remove_items(self, item_ids: Iterable[str], *, timeout_s: float | None = None) -> v1.RemoveItemsResponse:
        """`Client.remove_items`, awaited."""
        return await self._call(self._items.RemoveItems, requests_of.remove_items_request(item_ids), timeout_s)

    async def get_items(self, item_ids: Iterable[str], *, timeout_s: float | None = None) -> v1.GetItemsResponse:
        """`Client.get_items`, awaited."""
        return await self._call(self._items.GetItems, requests_of.get_items_request(item_ids), timeout_s)

    async def set_availability(
        self, items: Mapping[str, bool], *, timeout_s: float | None = None
    ) -> v1.SetAvailabilityResponse:
        """`Client.set_availability`, awaited."""
        return await self._call(self._items.SetAvailability, requests_of.set_availability_request(items), timeout_s)

    async def get_user(
        self,
        *,
        user_id: str | None = None,
        visitor_id: str | None = None,
        limit: int | None = None,
        timeout_s: float | None = None,
    ) -> v1.GetUserResponse:
        """`Client.get_user`, awaited."""
        request = requests_of.get_user_request(user_id, visitor_id, limit)
        return await self._call(self._users.GetUser, request, timeout_s)

    async def get_release(self, *, timeout_s: float | None = None) -> v1.GetReleaseResponse:
        """`Client.get_release`, awaited."""
        return await self._call(self._releases.GetRelease, v1.GetReleaseRequest(), timeout_s)
