"""The audit trail of consent, read from the journal."""

from typing import NamedTuple

import apsw

from server.users.directory import Decision, Purpose

_DECISIONS_OF = """
SELECT purpose, granted, source, given_us, received_us FROM consents
WHERE person_key = ? AND position <= ? ORDER BY position
"""


class Recorded(NamedTuple):
    """A decision, and when it arrived."""

    decision: Decision
    received_us: int  # microseconds since 1970, UTC


def read_trail(connection: apsw.Connection, key: int, upto: int) -> list[Recorded]:
    """Every decision recorded under a key up to a position of the journal, oldest first by arrival."""
    return [
        Recorded(Decision(Purpose(purpose), bool(granted), source, given_us), received_us)
        for purpose, granted, source, given_us, received_us in connection.execute(_DECISIONS_OF, (key, upto))
    ]
