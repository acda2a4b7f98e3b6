"""When a call is sent again. No I/O: Client and AsyncClient drive the same two classes.

UNAVAILABLE is gRPC's own retry, by the service config in `_channel.py`. RESOURCE_EXHAUSTED is not in there, because
gRPC would then repeat it whether or not the server asked for that: its retry looks at a push-back only for codes that
are listed as retryable, and repeats those without a push-back too (gRFC A6). An overloaded server, a rate limit or a
message that is too large must not be answered with more of the same, so a RESOURCE_EXHAUSTED is repeated here, only if
the server said when.
"""

import math
import random
import threading
import time
from typing import Protocol

import grpc

from towerbridge._errors import DeadlineExceeded, TowerbridgeError, Unavailable, from_rpc_error

# As retryThrottling of the service config: a retry needs more than half of the tokens.
_MAX_TOKENS = 10.0
_TOKEN_RATIO = 0.1

# One look of wait_until_ready: a server that accepted the connection and hangs must not use up all of the time.
_LOOK_S = 2.0
_BETWEEN_LOOKS_S = 0.1

# What grpc.aio says if a message was being written when the call ended: the server's own status is lost then.
_STATUS_LOST = "Internal error from Core"
_FIRST_BACKOFF_S = 0.05
_LONGEST_BACKOFF_S = 1.0
_NOT_READY_CODES = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
)


class Attempts(Protocol):
    """The attempts of one call."""

    # Whether an attempt waits for a connection, rather than fail at once without one.
    wait_for_ready: bool

    def timeout_s(self) -> float:
        """Seconds that the next attempt may take."""

    def pause_s(self, error: grpc.RpcError) -> float:
        """Seconds to wait before the next attempt, after one failed; raises its TowerbridgeError if there is none."""

    def succeeded(self) -> None:
        """Tells that the last attempt did."""


class Throttle:
    """Stops the retries of a client whose calls are mostly pushed back, as gRFC A6 does. Thread-safe."""

    def __init__(self) -> None:
        self._tokens = _MAX_TOKENS
        self._lock = threading.Lock()

    def refill(self) -> None:
        """Counts a success."""
        with self._lock:
            self._tokens = min(_MAX_TOKENS, self._tokens + _TOKEN_RATIO)

    def spend(self) -> bool:
        """Counts a push-back; False if it must not be followed by a retry."""
        with self._lock:
            self._tokens = max(0.0, self._tokens - 1.0)
            return self._tokens > _MAX_TOKENS / 2


class CallAttempts:
    """Up to `max_attempts`, all within one deadline; the next one only after a push-back that leaves time for it."""

    wait_for_ready = False

    def __init__(self, timeout_s: float, max_attempts: int, throttle: Throttle) -> None:
        self._deadline = time.monotonic() + positive_seconds("timeout_s", timeout_s)
        self._attempts_left = max_attempts
        self._throttle = throttle

    def timeout_s(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    def pause_s(self, error: grpc.RpcError) -> float:
        failure = from_rpc_error(error)
        self._attempts_left -= 1
        if failure.code is not grpc.StatusCode.RESOURCE_EXHAUSTED or failure.retry_after_s is None:
            raise failure from error
        # Spend first: every push-back counts, whatever else stands against a retry.
        if not self._throttle.spend() or self._attempts_left <= 0 or failure.retry_after_s >= self.timeout_s():
            raise failure from error
        return failure.retry_after_s

    def succeeded(self) -> None:
        self._throttle.refill()


class StreamAttempts:
    """Opens a broken stream again, after a back-off that grows and is jittered, until `patience_s` brought no result."""

    def __init__(self, patience_s: float, max_attempts: int) -> None:
        self._patience_s = positive_seconds("patience_s", patience_s)
        self._again = max_attempts > 1
        self.succeeded()

    def pause_s(self, error: grpc.RpcError) -> float:
        """Seconds to wait before the next call, after one failed; raises its TowerbridgeError if there is none."""
        failure = from_rpc_error(error)
        if failure.code is grpc.StatusCode.INTERNAL and failure.message == _STATUS_LOST:
            failure = Unavailable(grpc.StatusCode.UNAVAILABLE, "the stream ended while an event was being sent")
        pause_s = self._pause_s(failure)
        if pause_s is None or not self._again or time.monotonic() + pause_s > self._give_up_at():
            raise failure from error
        return pause_s

    def succeeded(self) -> None:
        """Tells that a result came."""
        self._failing_since: float | None = None
        self._backoff_s = _FIRST_BACKOFF_S

    def _give_up_at(self) -> float:
        if self._failing_since is None:
            self._failing_since = time.monotonic()
        return self._failing_since + self._patience_s

    def _pause_s(self, failure: TowerbridgeError) -> float | None:
        if failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return failure.retry_after_s
        if failure.code is not grpc.StatusCode.UNAVAILABLE:
            return None
        backoff_s = self._backoff_s
        self._backoff_s = min(2 * backoff_s, _LONGEST_BACKOFF_S)
        return backoff_s * random.uniform(0.8, 1.2)


class ReadyAttempts:
    """Looks until a server answers, or `timeout_s` is over; an answer other than "not yet" ends it too."""

    wait_for_ready = True

    def __init__(self, target: str, timeout_s: float) -> None:
        self._target = target
        self._patience_s = positive_seconds("timeout_s", timeout_s)
        self._deadline = time.monotonic() + timeout_s

    def _left_s(self) -> float:
        return self._deadline - time.monotonic()

    def timeout_s(self) -> float:
        return max(0.0, min(_LOOK_S, self._left_s()))

    def pause_s(self, error: grpc.RpcError) -> float:
        failure = from_rpc_error(error)
        if failure.code not in _NOT_READY_CODES:
            raise failure from error
        if self._left_s() <= _BETWEEN_LOOKS_S:
            message = f"{self._target} was not ready within {self._patience_s:g} s; the last answer was {failure}"
            raise DeadlineExceeded(grpc.StatusCode.DEADLINE_EXCEEDED, message) from error
        return _BETWEEN_LOOKS_S

    def succeeded(self) -> None:
        return


def positive_seconds(name: str, value: float) -> float:
    """`value`, if it is a positive, finite number of seconds; otherwise ValueError."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a positive number of seconds, not {value!r}: every call has a deadline")
    return value
