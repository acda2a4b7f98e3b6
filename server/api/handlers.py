"""The methods of servicers, by their full names."""

from __future__ import annotations  # grpc's handler types take parameters in their stubs only

from collections.abc import Mapping, Sequence
from typing import Any

import grpc


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
