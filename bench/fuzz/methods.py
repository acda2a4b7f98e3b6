"""Every method that a server offers, from descriptors: a new one is fuzzed without being named here."""

import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from towerbridge import v1


@dataclass(frozen=True)
class Method:
    """A method by its full name, such as /towerbridge.v1.EventService/RecordEvents, and what goes in and out."""

    name: str
    request: type[Message]
    response: type[Message]
    takes_stream: bool
    gives_stream: bool

    @property
    def short_name(self) -> str:
        return self.name.rpartition("/")[2]

    @property
    def descriptor(self) -> Descriptor:
        found: Any = self.request.DESCRIPTOR  # of one of two implementations
        return cast(Descriptor, found)


@cache
def all_methods() -> dict[str, Method]:
    """Those of the contract, of health and of reflection, by full name."""
    return {method.name: method for file in _files() for method in _methods(file)}


def _files() -> Iterator[Any]:
    for module in sorted(found.name for found in pkgutil.iter_modules(v1.__path__) if found.name.endswith("_pb2")):
        yield importlib.import_module(f"{v1.__name__}.{module}").DESCRIPTOR
    yield health_pb2.DESCRIPTOR
    yield reflection_pb2.DESCRIPTOR


def _methods(file: Any) -> Iterator[Method]:
    for service in file.services_by_name.values():
        for method in service.methods:
            yield Method(
                f"/{service.full_name}/{method.name}",
                GetMessageClass(method.input_type),
                GetMessageClass(method.output_type),
                method.client_streaming,
                method.server_streaming,
            )
