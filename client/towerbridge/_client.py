"""The synchronous client."""

from collections.abc import Iterable, Iterator, Mapping

from towerbridge import _requests as requests_of
from towerbridge import v1
from towerbridge._event_stream import EventStream
from towerbridge._outstanding import Outstanding
from towerbridge._people import PeopleCalls
from towerbridge._releases import ReleaseCalls
from towerbridge._requests import HistoryEntry
from towerbridge._retry import ReadyAttempts, StreamAttempts
from towerbridge._values import Floats


class Client(PeopleCalls, ReleaseCalls):
    """Calls a Towerbridge server: one method an RPC, which returns the contract's message or raises a TowerbridgeError.

    Thread-safe; make one and keep it, since it holds the connection. A context manager closes it.

    Args:
        target: "host:port", or any gRPC name such as "dns:///host:port" or "unix:/path".
        timeout_s: seconds that a call may take with all its attempts; each method takes another one for one call.
        upsert_timeout_s: the same for `upsert_items`, since the server may have to encode up to 1,000 texts, and for
            `export_user`, `erase_user` and audiences.
        max_attempts: how often a call is sent at most; 1 to 5, 1: never again. Sent again are UNAVAILABLE, with a
            jittered back-off, and RESOURCE_EXHAUSTED if the server said when; each of the two has this many attempts.
        tls: True: TLS with gRPC's root certificates; bytes: root certificates in PEM; or `grpc.ChannelCredentials`.
        insecure: True: plain text to another machine. To this machine (localhost, 127.0.0.0/8, [::1], unix sockets) it
            is the default.
        api_key: sent as "authorization: Bearer …".
        options: gRPC channel arguments on top of the client's own.

    Raises:
        ValueError: plain text to another machine without `insecure`, or a setting out of range.
    """

    def wait_until_ready(self, timeout_s: float = 30.0) -> v1.GetReleaseResponse:
        """Waits until the server answers, and returns its release.

        Raises:
            DeadlineExceeded: no release was live within `timeout_s`; the message has the last answer.
        """
        attempts = ReadyAttempts(self._settings.target, timeout_s)
        return self._send(self._releases.GetRelease, v1.GetReleaseRequest(), attempts)

    def recommend(
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
        """The best items for one person, best first: `item_ids` and, parallel to them, `scores`.

        Every event that was acknowledged before is taken into account.

        Args:
            user_id: a known user. Exactly one of this and the next three must be given.
            visitor_id: an anonymous visitor.
            history: recent events, of which nothing is stored: item ids, (item id, type) or (item id, type, datetime);
                times for all or for none. Oldest first without times, any order with them.
            vector: (D,) a user vector made elsewhere.
            release_id: the release whose user tower made `vector`; another live one is FailedPrecondition. None: not
                checked.
            limit: how many items at most; 1 to 1,000.
            exclude_item_ids: items that must not be returned; up to 10,000.
            exclude_seen: True: items in the person's history are not returned.
            min_revision: a `revision` of an earlier reply that the answer must include.
            allow_stale: True: rather an older vector than DeadlineExceeded; the answer says so in `degraded`.
            attributes: names of item attributes to return; read them with `attribute_values`.
            exact: True: compare with every eligible item, to measure recall.
            filter: which items may be returned; made with `where`.
            timeout_s: seconds for this call; None: the client's.

        Raises:
            TypeError: not exactly one kind of subject. TowerbridgeError: see the tree.
        """
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
        return self._call(self._recommendations.Recommend, request, timeout_s)

    def batch_recommend(
        self, requests: Iterable[v1.RecommendRequest], *, timeout_s: float | None = None
    ) -> v1.BatchRecommendResponse:
        """The answers to up to 100 requests, made with `recommend_request`; `rejected` lists those that went wrong."""
        request = requests_of.batch_recommend_request(requests)
        return self._call(self._recommendations.BatchRecommend, request, timeout_s)

    def score_items(
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
        """Scores of up to 1,000 given items for one person, in their order; `skipped` lists items left out, and why.

        The subject's arguments are those of `recommend`.
        """
        whom = requests_of.subject(user_id, visitor_id, history, vector, release_id)
        request = requests_of.score_items_request(whom, item_ids, min_revision, allow_stale)
        return self._call(self._recommendations.ScoreItems, request, timeout_s)

    def find_similar_items(
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
        """The items nearest to an item, nearest first, without itself. NotFound if it is not in the catalogue.

        `filter`, made with `where`, says which items may be returned.
        """
        request = requests_of.find_similar_items_request(item_id, limit, exclude_item_ids, attributes, exact, filter)
        return self._call(self._recommendations.FindSimilarItems, request, timeout_s)

    def search_vectors(
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
        """The items nearest to each of up to 100 vectors (B, D), nearest first: one result a vector, in order.

        `filter`, made with `where`, says which items may be returned.
        """
        request = requests_of.search_vectors_request(vectors, limit, exclude_item_ids, attributes, exact, release_id, filter)
        return self._call(self._recommendations.SearchVectors, request, timeout_s)

    def record_events(self, events: Iterable[v1.Event], *, timeout_s: float | None = None) -> v1.RecordEventsResponse:
        """Records up to 1,000 events, made with `event`. Acknowledged events are on disk and count from then on.

        Rows are independent and refused rows raise nothing: ask `rejected`. After an error of the call, record the same
        events again; those that had arrived are duplicates.
        """
        return self._call(self._events.RecordEvents, requests_of.record_events_request(events), timeout_s)

    def stream_events(
        self, events: Iterable[v1.Event], *, outstanding: int = 1024, patience_s: float = 30.0
    ) -> Iterator[v1.EventResult]:
        """Records events as they come: one result an event, in order, as soon as it is on disk.

        `events` is read in a thread of its own, never further than `outstanding` events ahead of the results. After
        UNAVAILABLE, a restart of the server for example, the stream is opened again and all events without a result are
        sent again with their event_ids, so that none counts twice. Fields in errors, such as "events[7].item_id", count from
        the first event. There is no deadline; leaving the loop ends the call.

        Args:
            events: made with `event`; may wait for the next one. What it raises is raised here, after the results of the
                events before.
            outstanding: events without a result at most.
            patience_s: seconds without any result after which a stream that breaks again and again is given up. With
                max_attempts=1 the first break is raised.

        Raises:
            TypeError: something that is not an event. ValueError: a limit out of range. TowerbridgeError: see the tree.
        """
        if isinstance(events, v1.Event):
            raise TypeError("events must be an iterable of events; write [event]")
        self._check_open()
        attempts = StreamAttempts(patience_s, self._settings.max_attempts)
        stream = EventStream(self._events.StreamEvents, self._settings.metadata, Outstanding(outstanding), attempts)
        return stream.results(events)

    def upsert_items(self, items: Iterable[v1.Item], *, timeout_s: float | None = None) -> v1.UpsertItemsResponse:
        """Adds up to 1,000 items, made with `item`, or replaces them whole; `rejected` lists those that were refused.

        A retry writes the same rows again. Where two processes write the same item, the last one to arrive counts.
        """
        deadline_s = self._settings.upsert_timeout_s if timeout_s is None else timeout_s
        return self._call(self._items.UpsertItems, requests_of.upsert_items_request(items), deadline_s)

    def remove_items(self, item_ids: Iterable[str], *, timeout_s: float | None = None) -> v1.RemoveItemsResponse:
        """Takes up to 1,000 items out of the catalogue, until they are upserted again."""
        return self._call(self._items.RemoveItems, requests_of.remove_items_request(item_ids), timeout_s)

    def get_items(self, item_ids: Iterable[str], *, timeout_s: float | None = None) -> v1.GetItemsResponse:
        """Reads up to 1,000 items; ids that are not in the catalogue are in `missing_item_ids`."""
        return self._call(self._items.GetItems, requests_of.get_items_request(item_ids), timeout_s)

    def set_availability(self, items: Mapping[str, bool], *, timeout_s: float | None = None) -> v1.SetAvailabilityResponse:
        """Marks up to 1,000 items as available or not: {item id: available}. An unavailable one is never returned."""
        return self._call(self._items.SetAvailability, requests_of.set_availability_request(items), timeout_s)

    def get_user(
        self,
        *,
        user_id: str | None = None,
        visitor_id: str | None = None,
        limit: int | None = None,
        timeout_s: float | None = None,
    ) -> v1.GetUserResponse:
        """What is known of one person: the newest `limit` events (None: 100), newest first, and the vector's state."""
        request = requests_of.get_user_request(user_id, visitor_id, limit)
        return self._call(self._users.GetUser, request, timeout_s)

    def get_release(self, *, timeout_s: float | None = None) -> v1.GetReleaseResponse:
        """The live release: which towers and index answer."""
        return self._call(self._releases.GetRelease, v1.GetReleaseRequest(), timeout_s)
