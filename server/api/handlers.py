"""The methods of servicers, by their full names."""

from __future__ import annotations  # grpc's handler types take parameters in their stubs only

from collections.abc import Mapping, Sequence
from typing import Any, cast

import grpc
from towerbridge.v1 import (
    audience_pb2_grpc,
    event_pb2_grpc,
    item_pb2_grpc,
    recommendation_pb2_grpc,
    release_pb2_grpc,
    user_pb2_grpc,
)


class Handlers(dict[str, Any]):
    """Takes the place of a server in the generated `add_…Servicer_to_server`: keeps each method's handler under its full name.

    So that one server can hold the same methods several times, once a tenant.
    """

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Does nothing: generated code gives every method by name as well."""

    def add_registered_method_handlers(
        self, service_name: str, method_handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        """Keeps the handlers of one service."""
        for method, handler in method_handlers.items():
            self[f"/{service_name}/{method}"] = handler


def handlers_of(
    recommendations: recommendation_pb2_grpc.RecommendationServiceServicer,
    events: event_pb2_grpc.EventServiceServicer,
    items: item_pb2_grpc.ItemServiceServicer,
    users: user_pb2_grpc.UserServiceServicer,
    audience: audience_pb2_grpc.AudienceServiceServicer,
    releases: release_pb2_grpc.ReleaseServiceServicer,
) -> Handlers:
    """The handlers of one tenant's servicers."""
    handlers = Handlers()
    server = cast(grpc.aio.Server, handlers)  # whose place it takes
    recommendation_pb2_grpc.add_RecommendationServiceServicer_to_server(recommendations, server)
    event_pb2_grpc.add_EventServiceServicer_to_server(events, server)
    item_pb2_grpc.add_ItemServiceServicer_to_server(items, server)
    user_pb2_grpc.add_UserServiceServicer_to_server(users, server)
    audience_pb2_grpc.add_AudienceServiceServicer_to_server(audience, server)
    release_pb2_grpc.add_ReleaseServiceServicer_to_server(releases, server)
    return handlers
