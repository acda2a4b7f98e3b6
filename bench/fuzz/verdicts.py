"""What an answer may be."""

import math
import re
from collections.abc import Iterator

import grpc
from google.protobuf.descriptor import FieldDescriptor as Field
from google.protobuf.message import DecodeError, Message
from towerbridge import v1

from bench.fuzz.calls import HANGING_S, Answer
from bench.fuzz.methods import Method
from bench.fuzz.requests import ALL_ROLES, READ_ONLY, Request

# INTERNAL, UNKNOWN: something that the server did not expect. DATA_LOSS, UNAVAILABLE: a broken connection or a dead part.
_NEVER = {
    *(grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS, grpc.StatusCode.UNAVAILABLE),
    *(grpc.StatusCode.ABORTED, grpc.StatusCode.OUT_OF_RANGE),
}
_NEVER_IN_ROWS = {code.value[0] for code in _NEVER}
_OPEN = re.compile(r"/grpc\.health\.")
_PARALLEL = {"item_ids": ("scores", "event_types", "occurred_at"), "people": ("scores",), "decisions": ("received_at",)}


def problem(request: Request, answer: Answer, method: Method | None) -> str | None:
    """What is wrong with an answer; None: nothing. method: None if there is no such method."""
    if answer.code is None:
        return f"has not ended after {HANGING_S:.0f} s"
    if answer.code in _NEVER:
        return answer.code.name
    if method is None:
        return None
    if answer.code is grpc.StatusCode.OK and not _OPEN.match(method.name) and not _has_key(request):
        return "answered without a key"
    if answer.code is grpc.StatusCode.UNIMPLEMENTED and len(request.messages) == 1:
        return "UNIMPLEMENTED"
    for data in answer.responses:
        try:
            response = method.response.FromString(data)
        except DecodeError:
            return f"the response is no {method.response.DESCRIPTOR.name}"
        for found in _problems(response):
            return found
    return None


def _has_key(request: Request) -> bool:
    return any(value in (f"Bearer {ALL_ROLES}", f"Bearer {READ_ONLY}") for _, value in request.metadata)


def _problems(message: Message) -> Iterator[str]:
    """What is wrong in a response, and in what it holds."""
    if isinstance(message, v1.RowError) and message.code in _NEVER_IN_ROWS:
        yield f"a row has code {message.code}: {message.message}"
    name = message.DESCRIPTOR.name
    fields = {field.name for field in message.DESCRIPTOR.fields}
    for field, columns in _PARALLEL.items():
        for column in columns:
            if {field, column} <= fields:
                lengths = len(getattr(message, field)), len(getattr(message, column))
                if lengths[0] != lengths[1]:
                    yield f"{name}.{field} and {column} have {lengths[0]} and {lengths[1]} entries"
    for field_, value in message.ListFields():
        if field_.type in (Field.TYPE_FLOAT, Field.TYPE_DOUBLE):
            numbers = value if field_.is_repeated else [value]
            # An attribute comes back as it was stored.
            if name != "AttributeValue" and not all(map(math.isfinite, numbers)):
                yield f"{name}.{field_.name} is not finite"
        elif field_.message_type is not None and not field_.message_type.GetOptions().map_entry:
            for one in value if field_.is_repeated else [value]:
                yield from _problems(one)
