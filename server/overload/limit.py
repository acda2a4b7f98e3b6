"""How many calls may be in flight: as many as are worked on without a long wait."""

import math
import time
from collections.abc import Callable

_WINDOW_SECONDS = 0.05  # between two changes of a limit: several batches, and a few wake-ups of the loop
_BEATS = 2  # looks at the loop's lag in a window, at least: one stall, however long, is over when it is told
_LEAST = 24  # calls: what comes at once by chance is not refused at any load that can be borne
_RESTING = 64  # calls: what a stall of an eighth of a second gathers at 500 calls a second is no overload
_DOWN = 0.85
_UP = 1.1
_EXPECTED_SECONDS = 0.1  # after that a call has no place without its message: whoever sends none takes nobody's place


class Place:
    """Of one call that was let in."""

    __slots__ = ("_expected", "since")

    def __init__(self, since: float, expected: "dict[Place, None]") -> None:
        """since: when it was let in, in seconds of the clock. expected: the places of all who have not entered."""
        self.since = since
        self._expected = expected

    def give_back(self) -> None:
        """The call has ended: if it has not entered, its place is another's."""
        self._expected.pop(self, None)


class Limit:
    """How many calls may have a place: let in, with the message on its way, or in flight.

    It stays as it is: for streams, which are idle most of the time, and for calls that are slow by nature.
    """

    def __init__(self, limit: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = float(limit)
        self._clock = clock
        self._expected: dict[Place, None] = {}  # in the order in which they were let in
        self.in_flight = 0

    @property
    def limit(self) -> int:
        """Calls that there is room for now."""
        return int(self._limit)

    @property
    def is_full(self) -> bool:
        """Whether one more call must be refused."""
        return self.taken >= self.limit

    @property
    def taken(self) -> int:
        """Calls that were let in and have not ended, but for those whose message is long in coming."""
        if self._expected:
            before = self._clock() - _EXPECTED_SECONDS
            while self._expected and (oldest := next(iter(self._expected))).since < before:
                del self._expected[oldest]
        return len(self._expected) + self.in_flight

    def let_in(self) -> Place:
        """A place for a call that has come, until it enters: when it is worked on."""
        place = Place(self._clock(), self._expected)
        self._expected[place] = None
        return place

    def enter(self, place: Place) -> bool:
        """Whether the call is worked on now: if it has lost its place meanwhile, there must be room for it."""
        if place in self._expected:
            del self._expected[place]
        elif self.is_full:
            return False
        self.in_flight += 1
        return True

    def leave(self) -> None:
        """The call has ended."""
        self.in_flight -= 1


class AdaptiveLimit(Limit):
    """A limit on calls in flight that follows the delay before they are worked on.

    Additive increase, multiplicative decrease (AIMD), as TCP does: while the shortest delay within a window is above the
    target there is a standing queue (CoDel's test, RFC 8289), and fewer calls are let in (one stall of the loop is none, nor
    are few calls that are slow for another reason); while it is below, more are: up to `maximum` where the limit was reached,
    else as many as a stall gathers. A call waits for the event loop first, as long as the loop is late or until it begins, and
    for a queue behind it then, so the delay is the sum of both. All is told by the loop's thread; `waited` may be by any.
    """

    def __init__(self, maximum: int, target_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        """maximum: of the limit. target_s: the delay that calls may have before they are worked on, in seconds."""
        self._maximum = max(maximum, 1)
        super().__init__(min(_RESTING, self._maximum), clock=clock)
        self._least = min(_LEAST, self._maximum)
        self._target_s = target_s
        self._window_ends = clock() + _WINDOW_SECONDS
        # Within the window, in seconds; infinite: nothing was told.
        self._shortest_delay = math.inf
        self._shortest_wait = math.inf
        self._shortest_lag = math.inf
        self._beats = 0
        self._peak = 0  # calls that had a place within the window

    def enter(self, place: Place) -> bool:
        entered = super().enter(place)
        self._peak = max(self._peak, len(self._expected) + self.in_flight)
        if entered:
            self._shortest_delay = min(self._shortest_delay, self._clock() - place.since)
        return entered

    def waited(self, seconds: float) -> None:
        """A call waited so long in the queue behind the event loop."""
        if seconds < self._shortest_wait:
            self._shortest_wait = seconds

    def lagged(self, seconds: float) -> None:
        """The event loop came so much later than it was due. To be told several times a window, with calls and without."""
        self._beats += 1
        if seconds < self._shortest_lag:
            self._shortest_lag = seconds
        now = self._clock()
        if now >= self._window_ends and self._beats >= _BEATS:
            self._window_ends = now + _WINDOW_SECONDS
            self._adapt()

    def _adapt(self) -> None:
        before, self._shortest_delay = self._shortest_delay, math.inf
        wait, self._shortest_wait = self._shortest_wait, math.inf
        lag, self._shortest_lag = self._shortest_lag, math.inf
        self._beats = 0
        peak, self._peak = self._peak, self.taken
        delay = max(lag, before if before < math.inf else 0.0) + (wait if wait < math.inf else 0.0)
        most = self._maximum if peak >= int(self._limit) else min(_RESTING, self._maximum)
        if delay > self._target_s:
            if peak > self._least:
                self._limit = max(float(self._least), min(self._limit, float(peak)) * _DOWN)
        elif self._limit < most:
            self._limit = min(float(most), max(self._limit + 1, self._limit * _UP))
