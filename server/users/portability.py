"""Everything held about a person, as lines of JSON."""

import json
from collections.abc import Generator, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import apsw

from server.journal.database import open_reader
from server.journal.events import USER
from server.releases.release import Release
from server.releases.releases import Releases
from server.users.directory import Directory, Purpose

_EVENTS_AT_ONCE = 1_000


def held_about(path: Path, directory: Directory, key: int, releases: Releases) -> Generator[str, None, None]:
    """Lines of JSON about a person and all ids linked to them, a few hundred at a time. For a thread that may wait.

    path: the journal, which is read by short transactions, so that no writer and no erasure waits for a slow caller. If the
    person is erased meanwhile, the rest is empty.
    """
    connection = open_reader(path)
    try:
        keys = directory.members(key)
        names = {one: name for one in keys if (name := _name(connection, one)) is not None}
        yield _lines({"kind": "person", "id": name, "is_root": one == keys[0]} for one, name in names.items())
        yield _lines(_links(connection, names))
        yield _lines(_decisions(connection, names))
        yield _lines(_profiles(connection, names))
        yield from _events(connection, names)
        for release in releases.held:
            yield _lines(_vectors(keys, names, release))
    finally:
        connection.close()


def _lines(entries: Iterator[dict[str, Any]]) -> str:
    return "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)


def _name(connection: apsw.Connection, key: int) -> dict[str, str] | None:
    row = connection.execute("SELECT kind, subject_id FROM people WHERE person_key = ?", (key,)).fetchone()
    return None if row is None else {"user_id" if row[0] == USER else "visitor_id": str(row[1])}


def _links(connection: apsw.Connection, names: dict[int, dict[str, str]]) -> Iterator[dict[str, Any]]:
    for source in names:
        for target, linked_us in connection.execute("SELECT target_key, linked_us FROM links WHERE source_key = ?", (source,)):
            yield {"kind": "link", "source": names[source], "target": names.get(target), "linked_at": _time(linked_us)}


def _decisions(connection: apsw.Connection, names: dict[int, dict[str, str]]) -> Iterator[dict[str, Any]]:
    query = (
        "SELECT purpose, granted, source, given_us, received_us FROM consents WHERE person_key = ? ORDER BY position, purpose"
    )
    for key, name in names.items():
        for purpose, granted, source, given_us, received_us in connection.execute(query, (key,)):
            yield {
                "kind": "consent",
                "id": name,
                "purpose": Purpose(purpose).name.lower(),
                "granted": bool(granted),
                "source": source,
                "given_at": _time(given_us),
                "received_at": _time(received_us),
            }


def _profiles(connection: apsw.Connection, names: dict[int, dict[str, str]]) -> Iterator[dict[str, Any]]:
    for key, name in names.items():
        for profile, updated_us in connection.execute("SELECT profile, updated_us FROM profiles WHERE person_key = ?", (key,)):
            yield {"kind": "profile", "id": name, "profile": json.loads(profile), "updated_at": _time(updated_us)}


def _events(connection: apsw.Connection, names: dict[int, dict[str, str]]) -> Iterator[str]:
    """All events of all ids in time order, ties in the order of arrival; those that do not count too.

    An event that retention has taken has no item and no type: its id's hash is held a while, so that a repeat is known.
    """
    query = (
        "SELECT person_key, position, event_hash, item_id, type, occurred_us, received_us FROM events"
        f" WHERE person_key IN ({', '.join('?' * len(names))}) AND (occurred_us, position) > (?, ?)"
        f" ORDER BY occurred_us, position LIMIT {_EVENTS_AT_ONCE}"
    )
    after: tuple[Any, Any] = (-(1 << 63), 0)
    while rows := _fetched(connection.execute(query, (*names, *after))):
        yield _lines(_event(names[key], row) for key, *row in rows)
        after = (rows[-1][5], rows[-1][1])


def _fetched(rows: apsw.Cursor) -> list[Any]:
    return rows.fetchall()


def _event(name: dict[str, str], row: Sequence[Any]) -> dict[str, Any]:
    _, hashed, item_id, type_name, occurred_us, received_us = row
    return {
        "kind": "event",
        "id": name,
        "event_id_hash": hashed.hex(),
        "item_id": item_id,
        "type": type_name,
        "occurred_at": _time(occurred_us),
        "received_at": _time(received_us),
    }


def _vectors(keys: Sequence[int], names: dict[int, dict[str, str]], release: Release) -> Iterator[dict[str, Any]]:
    stored = release.user_vectors.get(keys[0])
    if stored is not None and keys[0] in names:
        yield {
            "kind": "vector",
            "release_id": release.release_id,
            "computed_at": _time(stored.computed_us),
            "values": stored.vector.tolist(),
        }


def _time(us: int) -> str:
    return datetime.fromtimestamp(us / 1e6, UTC).isoformat()
