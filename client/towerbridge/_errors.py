"""What a call can raise: one class for each answer that a caller would handle differently.

    TowerbridgeError            code, message, field, retry_after_s
    ├── InvalidArgument         a field of the request is wrong; `field` names it
    ├── NotFound                no such item or person
    ├── AlreadyExists           the id is taken by something else
    ├── FailedPrecondition      not in this state: another release, another journal, no vector
    ├── DeadlineExceeded        not answered in time; whether a write happened is not known, and it is safe to repeat
    ├── ResourceExhausted       overload; `retry_after_s` says when the server would like to be asked again, if at all
    ├── Unavailable             no server could be reached, or it is draining
    ├── Unauthenticated         no API key, or one that is not known
    ├── PermissionDenied        the API key may not do this
    ├── Unimplemented           the server is older than this client
    ├── Cancelled               the client was closed during the call
    └── Internal                the server failed: INTERNAL, UNKNOWN, DATA_LOSS and any other code

Each has the `grpc.RpcError` it was made from as `__cause__`. Wrong Python arguments are TypeError and ValueError
instead, and are raised before anything is sent.
"""

import re
from collections.abc import Iterable
from typing import Any, cast

import grpc

# A server names the field at fault as a path before the first colon: "events[3].item_id: must not be empty".
_FIELD = re.compile(r"([a-z][a-z0-9_]*(?:\[[^\]]*\])?(?:\.[a-z][a-z0-9_]*(?:\[[^\]]*\])?)*): ")
_PUSHBACK = "grpc-retry-pushback-ms"


class TowerbridgeError(Exception):
    """A call that did not succeed.

    Attributes:
        code: the gRPC status code.
        message: the server's text, whole: what is wrong and what to do.
        field: the request's field at fault, such as "events[3].item_id"; None if it is not about one field.
        retry_after_s: seconds after which the server wants to be asked again; None if it did not say, or said never.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        field: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(code, message, field, retry_after_s)
        self.code = code
        self.message = message
        self.field = field
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"{self.code.name}: {self.message}"


class InvalidArgument(TowerbridgeError):
    """A field of the request is wrong; `field` names it."""


class NotFound(TowerbridgeError):
    """No such item or person."""


class AlreadyExists(TowerbridgeError):
    """The id is taken by something else."""


class FailedPrecondition(TowerbridgeError):
    """Not possible in the server's present state: another release, another journal, no vector."""


class DeadlineExceeded(TowerbridgeError):
    """Not answered in time. Whether a write happened is not known; every write is safe to repeat."""


class ResourceExhausted(TowerbridgeError):
    """The server is overloaded, or the message is too large; `retry_after_s` is None if repeating would not help."""


class Unavailable(TowerbridgeError):
    """No server could be reached, or it is draining."""


class Unauthenticated(TowerbridgeError):
    """No API key, or one that is not known."""


class PermissionDenied(TowerbridgeError):
    """The API key may not do this."""


class Unimplemented(TowerbridgeError):
    """The server does not know this call: it is older than this client."""


class Cancelled(TowerbridgeError):
    """The call was given up, for example because the client was closed."""


class Internal(TowerbridgeError):
    """The server failed; `code` tells INTERNAL, UNKNOWN and DATA_LOSS apart."""


_CLASSES: dict[grpc.StatusCode, type[TowerbridgeError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
    grpc.StatusCode.CANCELLED: Cancelled,
}


def from_rpc_error(error: grpc.RpcError) -> TowerbridgeError:
    """The error of the tree for a finished call's error; raise it `from error`."""
    code = error.code()
    message = error.details() or "the server gave no reason"
    field = _FIELD.match(message) if code is grpc.StatusCode.INVALID_ARGUMENT else None
    return _CLASSES.get(code, Internal)(code, message, field[1] if field else None, _retry_after_s(error))


def _retry_after_s(error: grpc.RpcError) -> float | None:
    """The server's push-back in seconds; None if there is none, or if it is negative or no number: never."""
    # A call that never reached a server can have None here, and each entry is a (key, value) pair; the type stubs do
    # not know.
    metadata: Iterable[tuple[str, str | bytes]] = cast(Any, error.trailing_metadata()) or ()
    for key, value in metadata:
        if key == _PUSHBACK:
            text = str(value)
            return int(text) / 1000 if text.isascii() and text.isdigit() else None
    return None
