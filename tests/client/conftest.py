"""A small Towerbridge in memory: the real contract over a real loopback connection, with failures on demand."""

import itertools
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
import towerbridge
from towerbridge import v1
from towerbridge.v1 import (
    audience_pb2_grpc,
    event_pb2_grpc,
    item_pb2_grpc,
    recommendation_pb2_grpc,
    release_pb2_grpc,
    user_pb2_grpc,
)


@dataclass(frozen=True)
class Call:
    """One attempt, as the server saw it."""

    method: str
    request: Any
    metadata: dict[str, str | bytes]
    seconds_left: float


@dataclass(frozen=True)
class Failure:
    """What the next call gets instead of an answer."""

    code: grpc.StatusCode
    details: str = "on demand"
    pushback_ms: str | None = None


@dataclass
class Script:
    """What the server saw, and what it is to answer before it answers properly."""

    calls: list[Call] = field(default_factory=list)
    failures: deque[Failure] = field(default_factory=deque)
    before_answering: Callable[[], object] = lambda: None

    def fail(self, code: grpc.StatusCode, details: str = "on demand", times: int = 1, pushback_ms: str | None = None) -> None:
        self.failures.extend([Failure(code, details, pushback_ms)] * times)

    @property
    def methods(self) -> list[str]:
        return [call.method for call in self.calls]


class ScriptInterceptor(grpc.ServerInterceptor):
    """Writes down every attempt and fails those that the script says."""

    def __init__(self, script: Script) -> None:
        self._script = script

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        handler = continuation(handler_call_details)
        if handler is None:
            return None

        def behave(request: Any, context: grpc.ServicerContext) -> Any:
            metadata = dict(handler_call_details.invocation_metadata)
            remaining = context.time_remaining()
            self._script.calls.append(Call(handler_call_details.method, request, metadata, remaining))
            self._script.before_answering()
            if self._script.failures:
                failure = self._script.failures.popleft()
                if failure.pushback_ms is not None:
                    context.set_trailing_metadata((("grpc-retry-pushback-ms", failure.pushback_ms),))
                if handler.stream_stream is not None:
                    next(request, None)  # grpc.aio's client can lose the status of a call that ends while it writes
                context.abort(failure.code, failure.details)
            inner = handler.unary_unary or handler.unary_stream or handler.stream_stream
            return inner(request, context)

        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(behave, handler.request_deserializer, handler.response_serializer)
        make = grpc.unary_stream_rpc_method_handler if handler.unary_stream else grpc.stream_stream_rpc_method_handler
        return make(behave, handler.request_deserializer, handler.response_serializer)


class SmallEvents(event_pb2_grpc.EventServiceServicer):
    def __init__(self) -> None:
        self.known: dict[str, v1.Event] = {}
        # For each of the next calls of StreamEvents: it breaks after so many events, of which so many were answered.
        self.breaks: deque[tuple[int, int]] = deque()
        self.messages: list[int] = []  # events in each message of a stream
        self.ended: list[str] = []  # how each stream ended
        self.answering = threading.Event()  # streams wait for it
        self.answering.set()

    def StreamEvents(self, requests: Iterator[v1.StreamEventsRequest], context: Any) -> Iterator[v1.StreamEventsResponse]:
        take, answer = self.breaks.popleft() if self.breaks else (sys.maxsize, sys.maxsize)
        context.add_callback(lambda: self.ended.append("over"))
        taken = answered = 0
        for request in itertools.chain([v1.StreamEventsRequest()], requests):
            if request.events:
                self.messages.append(len(request.events))
                self.answering.wait(10)
            for event in request.events:
                if taken == take:
                    break
                result = self._record(taken, event)
                taken += 1
                if answered < answer:
                    answered += 1
                    yield v1.StreamEventsResponse(results=[result], acknowledged=answered)
            if taken == take:
                context.abort(grpc.StatusCode.UNAVAILABLE, "on demand")
        if answered < taken:
            context.abort(grpc.StatusCode.UNAVAILABLE, "on demand")

    def RecordEvents(self, request: v1.RecordEventsRequest, context: Any) -> v1.RecordEventsResponse:
        results = [self._record(index, event) for index, event in enumerate(request.events)]
        return v1.RecordEventsResponse(results=results, revision=f"r{len(self.known)}")

    def _record(self, index: int, event: v1.Event) -> v1.EventResult:
        if not event.item_id:
            error = v1.RowError(code=3, field=f"events[{index}].item_id", message="must not be empty")
            return v1.EventResult(status=v1.EventStatus.EVENT_STATUS_REJECTED, error=error)
        known = event.event_id in self.known
        self.known[event.event_id] = event
        status = v1.EventStatus.EVENT_STATUS_DUPLICATE if known else v1.EventStatus.EVENT_STATUS_ACCEPTED
        return v1.EventResult(status=status)


class SmallItems(item_pb2_grpc.ItemServiceServicer):
    def __init__(self) -> None:
        self.items: dict[str, v1.Item] = {}

    def UpsertItems(self, request: v1.UpsertItemsRequest, context: Any) -> v1.UpsertItemsResponse:
        results = [v1.UpsertItemsResult(created=item.item_id not in self.items) for item in request.items]
        self.items |= {item.item_id: item for item in request.items}
        return v1.UpsertItemsResponse(results=results)

    def RemoveItems(self, request: v1.RemoveItemsRequest, context: Any) -> v1.RemoveItemsResponse:
        removed = [self.items.pop(item_id, None) is not None for item_id in request.item_ids]
        return v1.RemoveItemsResponse(results=[v1.RemoveItemsResult(removed=was_there) for was_there in removed])

    def GetItems(self, request: v1.GetItemsRequest, context: Any) -> v1.GetItemsResponse:
        found = [v1.CatalogueItem(item=self.items[item_id]) for item_id in request.item_ids if item_id in self.items]
        return v1.GetItemsResponse(
            items=found, missing_item_ids=[item_id for item_id in request.item_ids if item_id not in self.items]
        )

    def SetAvailability(self, request: v1.SetAvailabilityRequest, context: Any) -> v1.SetAvailabilityResponse:
        return v1.SetAvailabilityResponse(results=[v1.SetAvailabilityResult() for _ in request.items])


class SmallRecommendations(recommendation_pb2_grpc.RecommendationServiceServicer):
    """Ranks the catalogue in the order in which it was written."""

    def __init__(self, catalogue: SmallItems) -> None:
        self._catalogue = catalogue

    def Recommend(self, request: v1.RecommendRequest, context: Any) -> v1.RecommendResponse:
        item_ids = list(self._catalogue.items)[: request.limit]
        return v1.RecommendResponse(
            item_ids=item_ids,
            scores=[1.0 / (rank + 1) for rank in range(len(item_ids))],
            attributes=[self._column(name, item_ids) for name in request.attributes],
        )

    def _column(self, name: str, item_ids: list[str]) -> v1.AttributeColumn:
        items = [self._catalogue.items[item_id] for item_id in item_ids]
        values = [item.attributes[name] if name in item.attributes else v1.AttributeValue() for item in items]
        return v1.AttributeColumn(name=name, values=values)

    def BatchRecommend(self, request: v1.BatchRecommendRequest, context: Any) -> v1.BatchRecommendResponse:
        results = [self._one(index, row, context) for index, row in enumerate(request.requests)]
        return v1.BatchRecommendResponse(results=results)

    def _one(self, index: int, row: v1.RecommendRequest, context: Any) -> v1.BatchRecommendResult:
        if row.limit < 1:
            error = v1.RowError(code=3, field=f"requests[{index}].limit", message="must be 1 to 1,000")
            return v1.BatchRecommendResult(error=error)
        return v1.BatchRecommendResult(response=self.Recommend(row, context))

    def ScoreItems(self, request: v1.ScoreItemsRequest, context: Any) -> v1.ScoreItemsResponse:
        return v1.ScoreItemsResponse(item_ids=request.item_ids, scores=[0.5] * len(request.item_ids))

    def FindSimilarItems(self, request: v1.FindSimilarItemsRequest, context: Any) -> v1.FindSimilarItemsResponse:
        return v1.FindSimilarItemsResponse(item_ids=["2"], scores=[0.9])

    def SearchVectors(self, request: v1.SearchVectorsRequest, context: Any) -> v1.SearchVectorsResponse:
        return v1.SearchVectorsResponse(results=[v1.SearchVectorsResult(item_ids=["1"]) for _ in request.vectors])


class SmallUsers(user_pb2_grpc.UserServiceServicer):
    def GetUser(self, request: v1.GetUserRequest, context: Any) -> v1.GetUserResponse:
        return v1.GetUserResponse(event_count=3)

    def SetProfile(self, request: v1.SetProfileRequest, context: Any) -> v1.SetProfileResponse:
        return v1.SetProfileResponse(revision="r1")

    def SetConsent(self, request: v1.SetConsentRequest, context: Any) -> v1.SetConsentResponse:
        return v1.SetConsentResponse(revision="r1")

    def GetConsent(self, request: v1.GetConsentRequest, context: Any) -> v1.GetConsentResponse:
        return v1.GetConsentResponse(revision="r1")

    def LinkIdentity(self, request: v1.LinkIdentityRequest, context: Any) -> v1.LinkIdentityResponse:
        return v1.LinkIdentityResponse(created=True, linked=[request.target, request.source])

    def UnlinkIdentity(self, request: v1.UnlinkIdentityRequest, context: Any) -> v1.UnlinkIdentityResponse:
        return v1.UnlinkIdentityResponse(removed=True)

    def ExportUser(self, request: v1.ExportUserRequest, context: Any) -> Iterator[v1.ExportUserResponse]:
        yield v1.ExportUserResponse(json_lines='{"kind": "person", "id": "a"}\n{"kind": "ev')
        yield v1.ExportUserResponse(json_lines='ent", "item": "ü\\n"}\n')

    def EraseUser(self, request: v1.EraseUserRequest, context: Any) -> v1.EraseUserResponse:
        return v1.EraseUserResponse(erased=[request.person])


class SmallAudience(audience_pb2_grpc.AudienceServiceServicer):
    def FindSimilarUsers(self, request: v1.FindSimilarUsersRequest, context: Any) -> Iterator[v1.FindSimilarUsersResponse]:
        for number in range(request.limit):
            yield v1.FindSimilarUsersResponse(people=[v1.Person(user_id=f"u{number}")], scores=[1 / (number + 1)])

    def FindAudience(self, request: v1.FindAudienceRequest, context: Any) -> Iterator[v1.FindAudienceResponse]:
        yield v1.FindAudienceResponse(people=[v1.Person(user_id="u"), v1.Person(visitor_id="v")], scores=[0.5, 0.25])


class SmallReleases(release_pb2_grpc.ReleaseServiceServicer):
    def GetRelease(self, request: v1.GetReleaseRequest, context: Any) -> v1.GetReleaseResponse:
        return v1.GetReleaseResponse(release_id="0123456789abcdef", dim=4)

    def ListReleases(self, request: v1.ListReleasesRequest, context: Any) -> v1.ListReleasesResponse:
        return v1.ListReleasesResponse()

    def LoadRelease(self, request: v1.LoadReleaseRequest, context: Any) -> v1.LoadReleaseResponse:
        return v1.LoadReleaseResponse()

    def PromoteRelease(self, request: v1.PromoteReleaseRequest, context: Any) -> v1.PromoteReleaseResponse:
        return v1.PromoteReleaseResponse()

    def RollbackRelease(self, request: v1.RollbackReleaseRequest, context: Any) -> v1.RollbackReleaseResponse:
        return v1.RollbackReleaseResponse()


@dataclass(frozen=True)
class SmallServer:
    """A started server at `target`, its script and what it holds."""

    target: str
    script: Script
    events: SmallEvents
    items: SmallItems


def start(address: str = "127.0.0.1:0", credentials: grpc.ServerCredentials | None = None) -> tuple[grpc.Server, SmallServer]:
    """Starts a SmallServer at `address`; the caller stops it."""
    script, events, items = Script(), SmallEvents(), SmallItems()
    server = grpc.server(futures.ThreadPoolExecutor(4), interceptors=[ScriptInterceptor(script)])
    audience_pb2_grpc.add_AudienceServiceServicer_to_server(SmallAudience(), server)
    event_pb2_grpc.add_EventServiceServicer_to_server(events, server)
    item_pb2_grpc.add_ItemServiceServicer_to_server(items, server)
    recommendation_pb2_grpc.add_RecommendationServiceServicer_to_server(SmallRecommendations(items), server)
    release_pb2_grpc.add_ReleaseServiceServicer_to_server(SmallReleases(), server)
    user_pb2_grpc.add_UserServiceServicer_to_server(SmallUsers(), server)
    port = server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)
    server.start()
    return server, SmallServer(f"127.0.0.1:{port}", script, events, items)


@pytest.fixture
def start_server() -> Iterator[Callable[..., SmallServer]]:
    """Starts servers that end with the test."""
    started: list[grpc.Server] = []

    def start_one(address: str = "127.0.0.1:0", credentials: grpc.ServerCredentials | None = None) -> SmallServer:
        server, small = start(address, credentials)
        started.append(server)
        return small

    yield start_one
    for server in started:
        server.stop(grace=None).wait()


@pytest.fixture
def server(start_server: Callable[..., SmallServer]) -> SmallServer:
    return start_server()


@pytest.fixture
def script(server: SmallServer) -> Script:
    return server.script


@pytest.fixture
def client(server: SmallServer) -> Iterator[towerbridge.Client]:
    # Patient, so that a busy machine fails no test; the deadlines have tests of their own.
    with towerbridge.Client(server.target, timeout_s=10.0) as connected:
        yield connected
