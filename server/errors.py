"""What can go wrong, each with the gRPC status that callers see.

ServiceError
├── InvalidField          INVALID_ARGUMENT      a field of the request is wrong; names it
├── InvalidRequest        INVALID_ARGUMENT      what came is not a request at all
├── NotFound              NOT_FOUND             no such item or person
├── AlreadyExists         ALREADY_EXISTS        the event_id is taken by another event
├── FailedPrecondition    FAILED_PRECONDITION   not in this state: another release, another journal, no vector
├── PermissionDenied      PERMISSION_DENIED     this server does not offer it
├── DeadlineExceeded      DEADLINE_EXCEEDED     not to be had in the time given
├── ResourceExhausted     RESOURCE_EXHAUSTED    not enough memory for it now
└── Unavailable           UNAVAILABLE           try again, or another server: not yet ready, draining, or a part has died
StartupError                                    the server cannot start; one line says why and what to do
"""

import grpc


class ServiceError(Exception):
    """An error whose message is meant for the caller: what is wrong and what to do."""

    code = grpc.StatusCode.INTERNAL


class InvalidField(ServiceError):
    """A field of the request is wrong. `field` names it, such as "events[3].item_id"."""

    code = grpc.StatusCode.INVALID_ARGUMENT

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem

    def under(self, parent: str) -> "InvalidField":
        """The same error for a field that lies inside `parent`."""
        return InvalidField(f"{parent}.{self.field}", self.problem)


class InvalidRequest(ServiceError):
    code = grpc.StatusCode.INVALID_ARGUMENT


class NotFound(ServiceError):
    code = grpc.StatusCode.NOT_FOUND


class AlreadyExists(ServiceError):
    code = grpc.StatusCode.ALREADY_EXISTS


class FailedPrecondition(ServiceError):
    """`field` names what the state does not fit, if it is one field of the request."""

    code = grpc.StatusCode.FAILED_PRECONDITION

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class PermissionDenied(ServiceError):
    code = grpc.StatusCode.PERMISSION_DENIED


class DeadlineExceeded(ServiceError):
    code = grpc.StatusCode.DEADLINE_EXCEEDED


class ResourceExhausted(ServiceError):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class Unavailable(ServiceError):
    code = grpc.StatusCode.UNAVAILABLE


class StartupError(Exception):
    """The server cannot start: one line that says why and what to do."""
