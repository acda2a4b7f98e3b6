"""What the journal holds of people, read one person at a time."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import apsw

from server.journal.events import Person
from server.users.directory import Decision, Purpose

_EVENTS = (
    "SELECT position, item_id, type, occurred_us FROM events WHERE person_key = ? AND position <= ? AND item_id IS NOT NULL"
)
_COUNT = "SELECT count(*) FROM events WHERE person_key = ? AND position <= ? AND item_id IS NOT NULL"
_SUBJECT = "SELECT kind, subject_id FROM people WHERE person_key = ?"
_DECISIONS = (
    "SELECT purpose, granted, source, given_us, received_us FROM consents"
    " WHERE person_key = ? AND position <= ? ORDER BY position"
)


class Recorded(NamedTuple):
    """A decision, and when it arrived."""

    decision: Decision
    received_us: int  # microseconds since 1970, UTC


class PeopleReader:
    """Reads by a connection of its own, for one thread at a time. Positions bound what is seen of what is being written."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection

    def close(self) -> None:
        self._connection.close()

    def events(self, key: int, upto: int) -> list[tuple[int, str, str, int]]:
        """Position, item id, type and time of the events recorded under a key, by position."""
        rows: list[Any] = self._connection.execute(_EVENTS, (key, upto)).fetchall()
        return rows

    def of_types(self, names: Sequence[str], upto: int) -> list[tuple[int, int, str]]:
        """Key, position and item id of all events of some types. It reads all events: a third of a second a million."""
        marks = ", ".join("?" * len(names))
        wanted = f"type IN ({marks}) AND position <= ? AND item_id IS NOT NULL"
        query = f"SELECT person_key, position, item_id FROM events WHERE {wanted}"
        rows: list[Any] = self._connection.execute(query, (*names, upto)).fetchall()
        return rows

    def count(self, key: int, upto: int) -> int:
        """How many events are recorded under a key."""
        return int(self._connection.execute(_COUNT, (key, upto)).get or 0)

    def subjects(self, keys: Sequence[int]) -> dict[int, Person]:
        """The subjects of those of the keys that are still held."""
        rows = ((key, self._connection.execute(_SUBJECT, (key,)).fetchone()) for key in keys)
        return {key: Person(*row) for key, row in rows if row is not None}

    def trail(self, key: int, upto: int) -> list[Recorded]:
        """Every decision recorded under a key, oldest first by arrival."""
        return [
            Recorded(Decision(Purpose(purpose), bool(granted), source, given_us), received_us)
            for purpose, granted, source, given_us, received_us in self._connection.execute(_DECISIONS, (key, upto))
        ]
