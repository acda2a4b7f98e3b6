"""Whether a journal is whole: its pages, and what its rows say of each other."""

from dataclasses import dataclass, field
from pathlib import Path

import apsw

from server.journal.database import APPLICATION_ID
from server.journal.migrations import SCHEMA_VERSION
from server.journal.pages import page_problems

_COUNTED = ("people", "events", "event_ids", "links", "consents", "profiles", "items")
_POSITIONS = (
    ("events", "position"),
    ("event_ids", "position"),
    ("links", "position"),
    ("consents", "position"),
    ("profiles", "position"),
    ("exports", "position"),
    ("items", "position"),
    ("items", "removed_at"),
    ("people", "first_exported"),
)
_OWNED = (
    ("events", "person_key"),
    ("event_ids", "person_key"),
    ("links", "source_key"),
    ("links", "target_key"),
    ("consents", "person_key"),
    ("profiles", "person_key"),
)


@dataclass
class Verified:
    """What was found: rows by table, and a line for each problem; none if the file is whole.

    Of a file of an older schema only the pages are checked: it is brought up to date when it is opened or restored.
    """

    schema: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def verify(path: Path) -> Verified:
    """Checks a journal or a backup without changing it, also while a server uses it.

    Everything is read as of one moment. A server's log of changes grows meanwhile, and shrinks after.
    """
    found = Verified()
    if not path.is_file():
        found.problems.append("there is no such file")
        return found
    try:
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            connection.set_busy_timeout(5000)
            connection.pragma("cache_size", -262144)  # KiB: event_ids are looked up in a random order
            connection.execute("BEGIN")
            _check(connection, found)
        finally:
            connection.close()
    except apsw.Error as error:
        found.problems.append(" ".join(str(error).split()))
    return found


def _check(connection: apsw.Connection, found: Verified) -> None:
    if int(connection.pragma("application_id") or 0) != APPLICATION_ID:
        found.problems.append("it is a SQLite file but not a journal")
        return
    found.schema = int(connection.pragma("user_version") or 0)
    found.problems += page_problems(connection, thorough=True)
    if found.schema > SCHEMA_VERSION:
        found.problems.append(f"a newer Towerbridge wrote it (schema {found.schema}, this one knows {SCHEMA_VERSION})")
    if found.schema != SCHEMA_VERSION:
        return
    for table in _COUNTED:
        found.counts[table] = _number(connection, f"SELECT count(*) FROM {table}")
    found.problems += [
        *_head_problems(connection),
        *_event_problems(connection, found.counts["event_ids"]),
        *_owner_problems(connection),
    ]
    if cycle := _cycle(dict(connection.execute("SELECT source_key, target_key FROM links"))):
        found.problems.append(f"links go round in a circle of {cycle} people")


def _head_problems(connection: apsw.Connection) -> list[str]:
    meta = dict(connection.execute("SELECT key, value FROM meta"))
    if missing := {"epoch", "head", "event_key"} - meta.keys():
        return [f"meta lacks {', '.join(sorted(missing))}"]
    head = int(meta["head"])
    problems = []
    for table, column in _POSITIONS:
        largest = _number(connection, f"SELECT coalesce(max({column}), 0) FROM {table}")
        if largest > head:
            problems.append(f"{table}.{column} goes up to {largest}, beyond the last position given out, {head}")
    return problems


def _event_problems(connection: apsw.Connection, event_ids: int) -> list[str]:
    """Each event_id has its event, or what retention left of it; an old event may have outlived its event_id."""
    problems = []
    doubled = _number(connection, "SELECT count(*) - count(DISTINCT position) FROM events")
    if doubled:
        problems.append(f"{doubled} events share a position with another")
    both: tuple[int, int] = connection.execute(
        "SELECT count(*) FILTER (WHERE i.position = e.position AND i.person_key = e.person_key),"
        " count(*) FILTER (WHERE i.position < e.position) FROM events AS e JOIN event_ids AS i USING (event_hash)"
    ).get
    same, others = both
    if orphans := event_ids - same:
        problems.append(f"{orphans} event_ids have no event")
    if others:
        problems.append(f"{others} events repeat the event_id of an earlier one")
    return problems


def _owner_problems(connection: apsw.Connection) -> list[str]:
    problems = []
    for table, column in _OWNED:
        count = _number(connection, f"SELECT count(*) FROM {table} WHERE {column} NOT IN (SELECT person_key FROM people)")
        if count:
            problems.append(f"{count} rows of {table} are of nobody: {column} is not in people")
    return problems


def _cycle(links: dict[int, int]) -> int:
    """The length of a circle of links; 0 if there is none."""
    good: set[int] = set()
    for start in links:
        walked: dict[int, int] = {}
        key: int | None = start
        while key is not None and key not in good:
            if key in walked:
                return len(walked) - walked[key]
            walked[key] = len(walked)
            key = links.get(key)
        good |= walked.keys()
    return 0


def _number(connection: apsw.Connection, sql: str) -> int:
    value: int = connection.execute(sql).get
    return value
