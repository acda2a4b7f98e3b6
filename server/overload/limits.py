"""The limits of one tenant: reads, ingest and administration do not take each other's place."""

from server.config import Overload
from server.overload.limit import AdaptiveLimit, Limit
from server.security.roles import Role

_CHECKS = 64  # of health at once: each takes microseconds once its message is there
_WATCHES = 256


class Limits:
    """How many calls of each role may be in flight.

    Unary reads and ingest follow their own queues: the engine's and the journal's, and both the event loop's. Streams, and the
    calls of administrators, have limits of their own that do not move; health has its own, since nothing may keep probes out.
    """

    def __init__(self, settings: Overload) -> None:
        target_s = settings.queue_ms / 1000
        self.reads = AdaptiveLimit(settings.max_reads, target_s)
        self.ingests = AdaptiveLimit(settings.max_ingests, target_s)
        self._unary: dict[Role, Limit] = {Role.READ: self.reads, Role.INGEST: self.ingests}
        self._streams: dict[Role, Limit] = {
            Role.READ: Limit(settings.max_reads),
            Role.INGEST: Limit(settings.max_ingests),
        }
        self._checks, self._watches = Limit(_CHECKS), Limit(_WATCHES)
        self._others = Limit(settings.max_admins)

    def of(self, role: Role, *, stream: bool) -> Limit:
        """The limit that calls of a method count towards."""
        if role is Role.OPEN:
            return self._watches if stream else self._checks
        return (self._streams if stream else self._unary).get(role, self._others)

    def loop_lagged(self, seconds: float) -> None:
        """The event loop did something so much later than it was due: every call has waited as long."""
        self.reads.lagged(seconds)
        self.ingests.lagged(seconds)
