"""The connection behind the synchronous client: how a call is sent, again if need be."""

import time
from collections.abc import Iterator
from typing import Self, TypeVar

import grpc
from google.protobuf.message import Message

from towerbridge._channel import Options, Tls, settings
from towerbridge._errors import from_rpc_error
from towerbridge._retry import Attempts, CallAttempts, Throttle
from towerbridge.v1.audience_pb2_grpc import AudienceServiceStub
from towerbridge.v1.event_pb2_grpc import EventServiceStub
from towerbridge.v1.item_pb2_grpc import ItemServiceStub
from towerbridge.v1.recommendation_pb2_grpc import RecommendationServiceStub
from towerbridge.v1.release_pb2_grpc import ReleaseServiceStub
from towerbridge.v1.user_pb2_grpc import UserServiceStub

RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message)


class Connection:
    """A channel with its settings and stubs; the base of `Client`."""

    def __init__(
        self,
        target: str,
        *,
        timeout_s: float = 1.0,
        upsert_timeout_s: float = 30.0,
        max_attempts: int = 3,
        tls: Tls = False,
        insecure: bool = False,
        api_key: str | None = None,
        options: Options = (),
    ) -> None:
        self._settings = settings(
            target,
            timeout_s=timeout_s,
            upsert_timeout_s=upsert_timeout_s,
            max_attempts=max_attempts,
            tls=tls,
            insecure=insecure,
            api_key=api_key,
            options=options,
        )
        credentials = self._settings.credentials
        if credentials is None:
            self._channel = grpc.insecure_channel(target, self._settings.options)
        else:
            self._channel = grpc.secure_channel(target, credentials, self._settings.options)
        self._closed = False
        self._throttle = Throttle()
        self._audience = AudienceServiceStub(self._channel)
        self._events = EventServiceStub(self._channel)
        self._items = ItemServiceStub(self._channel)
        self._recommendations = RecommendationServiceStub(self._channel)
        self._releases = ReleaseServiceStub(self._channel)
        self._users = UserServiceStub(self._channel)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._settings.target!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; calls in flight end with Cancelled, later ones with ValueError."""
        self._closed = True
        self._channel.close()

    def _call(
        self,
        method: "grpc.UnaryUnaryMultiCallable[RequestT, ResponseT]",
        request: RequestT,
        timeout_s: float | None,
    ) -> ResponseT:
        deadline_s = self._settings.timeout_s if timeout_s is None else timeout_s
        return self._send(method, request, CallAttempts(deadline_s, self._settings.max_attempts, self._throttle))

    def _send(
        self,
        method: "grpc.UnaryUnaryMultiCallable[RequestT, ResponseT]",
        request: RequestT,
        attempts: Attempts,
    ) -> ResponseT:
        self._check_open()
        while True:
            try:
                response = method(
                    request,
                    timeout=attempts.timeout_s(),
                    metadata=self._settings.metadata,
                    wait_for_ready=attempts.wait_for_ready,
                )
            except grpc.RpcError as error:
                time.sleep(attempts.pause_s(error))
            else:
                attempts.succeeded()
                return response

    def _stream(
        self,
        method: "grpc.UnaryStreamMultiCallable[RequestT, ResponseT]",
        request: RequestT,
        timeout_s: float | None,
    ) -> Iterator[ResponseT]:
        """The messages of a server's stream; it is sent again only before the first of them. Leaving it ends the call."""
        deadline_s = self._settings.upsert_timeout_s if timeout_s is None else timeout_s
        attempts = CallAttempts(deadline_s, self._settings.max_attempts, self._throttle)
        self._check_open()
        while True:
            call = method(request, timeout=attempts.timeout_s(), metadata=self._settings.metadata)
            begun = False
            try:
                for response in call:
                    begun = True
                    yield response
            except grpc.RpcError as error:
                if begun:
                    raise from_rpc_error(error) from error
                time.sleep(attempts.pause_s(error))
            else:
                attempts.succeeded()
                return
            finally:
                call.cancel()

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the client is closed; make a new one")
