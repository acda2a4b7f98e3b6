"""What tombstones say of people, brought about in a journal or a backup by SQL."""

import logging
from collections import Counter
from collections.abc import Iterable

import apsw

from server.journal.database import atomic
from server.journal.events import Person, write_withdrawal
from server.journal.tombstones import Tombstones
from server.users.directory import Purpose

_log = logging.getLogger(__name__)
STORES = ("events", "event_ids", "consents", "profiles", "links", "people")
"""The tables that hold something about people, as receipts name them."""

_OF_PEOPLE = {
    # Before the events, which know the ids.
    "event_ids": "DELETE FROM event_ids WHERE event_hash IN (SELECT event_hash FROM events WHERE person_key = ?)",
    "events": "DELETE FROM events WHERE person_key = ?",
    "consents": "DELETE FROM consents WHERE person_key = ?",
    "profiles": "DELETE FROM profiles WHERE person_key = ?",
    "links": "DELETE FROM links WHERE source_key = ?1 OR target_key = ?1",
    "people": "DELETE FROM people WHERE person_key = ?",
}
_NOTHING_LEFT = """
DELETE FROM people WHERE person_key = ?1
AND NOT EXISTS (SELECT 1 FROM events WHERE person_key = ?1) AND NOT EXISTS (SELECT 1 FROM consents WHERE person_key = ?1)
AND NOT EXISTS (SELECT 1 FROM profiles WHERE person_key = ?1)
AND NOT EXISTS (SELECT 1 FROM links WHERE source_key = ?1 OR target_key = ?1)
"""
_UP_TO = {
    "consents": "DELETE FROM consents WHERE person_key = ? AND given_us <= ?",
    "profiles": "DELETE FROM profiles WHERE person_key = ? AND updated_us <= ?",
    "links": "DELETE FROM links WHERE (source_key = ?1 OR target_key = ?1) AND linked_us <= ?2",
}
# In the journal's meta:
_STAMP = "tombstones"  # see Tombstones.stamp
_UNSWEPT = "unswept"  # there if copies of what was removed may lie in the files' free space


def remove_people(connection: apsw.Connection, keys: Iterable[int]) -> Counter[str]:
    """Removes everything held under keys, inside the caller's transaction; returns the rows by table."""
    removed: Counter[str] = Counter(dict.fromkeys(STORES, 0))
    for key in keys:
        for table, statement in _OF_PEOPLE.items():
            connection.execute(statement, (key,))
            removed[table] += connection.changes()
    return removed


def is_clean(connection: apsw.Connection, tombstones: Tombstones) -> bool:
    """Whether the journal says that it is up to date: it holds nothing of anybody who is erased, and every withdrawal."""
    row = connection.execute("SELECT value FROM meta WHERE key = ?", (_STAMP,)).fetchone()
    return row is not None and row[0] == tombstones.stamp


def note_clean(connection: apsw.Connection, tombstones: Tombstones) -> None:
    """Notes in the journal that it is up to date with the tombstones."""
    connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (_STAMP, tombstones.stamp))


def is_unswept(connection: apsw.Connection) -> bool:
    """Whether copies of what was removed may still lie in the files' free space, because a sweep was cut short."""
    return connection.execute("SELECT 1 FROM meta WHERE key = ?", (_UNSWEPT,)).fetchone() is not None


def note_unswept(connection: apsw.Connection) -> None:
    """Notes that the free space has to be cleared, in the transaction that removes."""
    connection.execute("INSERT OR REPLACE INTO meta VALUES (?, 1)", (_UNSWEPT,))


def note_swept(connection: apsw.Connection) -> None:
    """Notes that the free space has been cleared."""
    connection.execute("DELETE FROM meta WHERE key = ?", (_UNSWEPT,))


def apply_tombstones(connection: apsw.Connection, tombstones: Tombstones) -> int:
    """Removes what a journal, or a backup, holds of erased people from before they were erased; returns how many ids had some.

    What a person did after coming back stays. Then each withdrawal of consent that is missing is written, as a decision of its
    time. To be run before anything is read from it. A journal that was brought up to date before is not read again.
    """
    if is_clean(connection, tombstones):
        return 0
    found = 0
    with atomic(connection):
        if len(tombstones):
            people = connection.execute("SELECT person_key, kind, subject_id FROM people")
            erased = [(key, us) for key, *who in people if (us := tombstones.erased_us(Person(*who))) is not None]
            found = sum(remove_until(connection, tombstones, key, erased_us) > 0 for key, erased_us in erased)
        withdrawn = _withdraw_again(connection, tombstones)
        note_clean(connection, tombstones)
        if found:
            note_unswept(connection)
    if found:
        _log.warning("%d erased ids were in the journal again and have been removed", found)
    if withdrawn:
        _log.warning("%d withdrawals of consent were not in the journal and have been written to it again", withdrawn)
    return found


def _withdraw_again(connection: apsw.Connection, tombstones: Tombstones) -> int:
    """Writes the withdrawals that are missing, inside the caller's transaction; returns how many."""
    known, missing = [], []
    for key, *who in connection.execute("SELECT person_key, kind, subject_id FROM people"):
        person = Person(*who)
        withdrawn = tombstones.withdrawn(person)
        if withdrawn:
            known.append(person)
        missing += [(key, purpose, us) for purpose, us in withdrawn.items() if not _is_decided(connection, key, purpose, us)]
    tombstones.let_wait(known)
    for key, purpose, given_us in missing:
        head = connection.execute("UPDATE meta SET value = value + 1 WHERE key = 'head' RETURNING value").get
        write_withdrawal(connection, key, head, purpose, given_us)
    return len(missing)


def _is_decided(connection: apsw.Connection, key: int, purpose: Purpose, given_us: int) -> bool:
    """Whether the journal has this withdrawal, or a later decision."""
    rows = connection.execute(
        "SELECT 1 FROM consents WHERE person_key = ? AND purpose = ? AND (given_us > ?3 OR given_us = ?3 AND NOT granted)",
        (key, int(purpose), given_us),
    )
    return rows.fetchone() is not None


def remove_until(connection: apsw.Connection, tombstones: Tombstones, key: int, erased_us: int) -> int:
    """Removes what is held under a key from before it was erased, inside the caller's transaction; returns how many rows.

    That are events that happened or came in by then, whatever their own clock said, and decisions, links and profile.
    """
    events: list[tuple[int, bytes, int]] = connection.execute(  # type: ignore[assignment]
        "SELECT position, event_hash, occurred_us <= ?2 OR received_us < ?2 FROM events WHERE person_key = ?1", (key, erased_us)
    ).fetchall()
    gone = [(position, hashed) for position, hashed, is_old in events if is_old or tombstones.is_erased_event(hashed)]
    connection.executemany("DELETE FROM event_ids WHERE event_hash = ?", [(hashed,) for _, hashed in gone])
    connection.executemany(
        "DELETE FROM events WHERE person_key = ? AND position = ?", [(key, position) for position, _ in gone]
    )
    rows = len(gone)
    for statement in _UP_TO.values():
        connection.execute(statement, (key, erased_us))
        rows += connection.changes()
    connection.execute(
        "UPDATE people SET first_exported = NULL WHERE person_key = ? AND first_exported IN"
        " (SELECT position FROM exports WHERE exported_us <= ?)",
        (key, erased_us),
    )
    connection.execute(_NOTHING_LEFT, (key,))
    return rows + connection.changes()
