"""The journal's schema, version by version. A file of any earlier version is brought up to date when it is opened."""

import secrets
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

import apsw

SCHEMA_VERSION = 2

_VERSION_1 = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value ANY NOT NULL) STRICT, WITHOUT ROWID;
-- A person is a subject as received: (kind, id). Everything else refers to the random key.
CREATE TABLE people (
  person_key INTEGER PRIMARY KEY,
  kind INTEGER NOT NULL,              -- 0 user, 1 visitor
  subject_id TEXT NOT NULL,
  UNIQUE (kind, subject_id)
) STRICT;
CREATE TABLE events (
  position INTEGER PRIMARY KEY,       -- in the one sequence of every kind of write
  event_id TEXT NOT NULL UNIQUE,
  digest BLOB NOT NULL,               -- of the content as sent, to tell a repeat from a clash
  person_key INTEGER NOT NULL,
  item_id TEXT NOT NULL,              -- as received: the item may not be known (yet)
  type TEXT NOT NULL,
  occurred_us INTEGER NOT NULL,       -- microseconds since 1970, UTC
  received_us INTEGER NOT NULL
) STRICT;
-- One row an item, live or removed. The ordinal is never reused: histories refer to it.
CREATE TABLE items (
  ordinal INTEGER PRIMARY KEY,
  item_id TEXT NOT NULL UNIQUE,
  position INTEGER NOT NULL,          -- of the last write to this row
  removed_at INTEGER,                 -- position of the removal; NULL while in the catalogue
  available INTEGER NOT NULL,
  text TEXT NOT NULL,
  categories TEXT NOT NULL,           -- JSON list of strings
  attributes TEXT NOT NULL,           -- JSON object, see server.catalogue.attributes
  popularity REAL NOT NULL,
  text_embedding BLOB,                -- float32, little endian
  encoder_sha256 TEXT,                -- of the text encoder that made text_embedding
  embedding_given INTEGER NOT NULL,   -- 1 if the caller sent text_embedding
  vector BLOB,                        -- float32, little endian, only if the caller sent it
  vector_release TEXT                 -- the release in whose space vector lies
) STRICT;
"""

# A person's events lie side by side, so that a history is read, and removed, as one range.
_VERSION_2 = """
ALTER TABLE people ADD COLUMN first_exported INTEGER; -- position of the first export with events of the person
ALTER TABLE events RENAME TO events_1;
CREATE TABLE events (
  person_key INTEGER NOT NULL,
  position INTEGER NOT NULL,          -- in the one sequence of every kind of write
  event_hash BLOB NOT NULL,           -- of the event_id, see event_hash()
  item_id TEXT,                       -- as received: the item may not be known (yet). NULL: retention took the event, and
  type TEXT,                          -- the row stays until its event_id may be forgotten
  occurred_us INTEGER NOT NULL,       -- microseconds since 1970, UTC
  received_us INTEGER NOT NULL,
  PRIMARY KEY (person_key, position)
) STRICT, WITHOUT ROWID;
-- Which event_ids are taken. They are not kept as sent.
CREATE TABLE event_ids (
  event_hash BLOB PRIMARY KEY,
  digest BLOB NOT NULL,               -- of the content as sent, to tell a repeat from a clash
  position INTEGER NOT NULL,
  person_key INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE links (
  source_key INTEGER PRIMARY KEY,     -- belongs to the target
  target_key INTEGER NOT NULL,
  position INTEGER NOT NULL,
  linked_us INTEGER NOT NULL
) STRICT;
CREATE INDEX links_by_target ON links (target_key); -- an erasure asks for it, id by id, while every writer waits
-- Every decision; of those about one purpose the one with the largest (given_us, position) counts.
CREATE TABLE consents (
  person_key INTEGER NOT NULL,
  position INTEGER NOT NULL,
  purpose INTEGER NOT NULL,           -- 1 personalisation, 2 training
  granted INTEGER NOT NULL,
  source TEXT NOT NULL,
  given_us INTEGER NOT NULL,
  received_us INTEGER NOT NULL,
  PRIMARY KEY (person_key, position, purpose)
) STRICT, WITHOUT ROWID;
CREATE TABLE profiles (
  person_key INTEGER PRIMARY KEY,
  position INTEGER NOT NULL,
  profile TEXT NOT NULL,              -- JSON object, see server.users.profile
  updated_us INTEGER NOT NULL
) STRICT;
-- What was handed to training, and which bundles were served: who was seen by which.
CREATE TABLE exports (
  position INTEGER NOT NULL,
  exported_us INTEGER NOT NULL,
  people INTEGER NOT NULL,
  events INTEGER NOT NULL
) STRICT;
CREATE TABLE bundles (
  release_id TEXT PRIMARY KEY,
  watermark_epoch TEXT,               -- NULL: the bundle does not say what it was trained on
  watermark_position INTEGER,
  first_served_us INTEGER NOT NULL
) STRICT;
"""


def event_hash(key: bytes, event_id: str) -> bytes:
    """What is kept of an event_id, 16 bytes: enough to know it again, and nothing that could be read. key: the journal's."""
    return blake2b(event_id.encode(), key=key, digest_size=16).digest()


def migrate(connection: apsw.Connection, version: int) -> None:
    """Brings a file of a version (0: an empty one) to `SCHEMA_VERSION`, inside the caller's transaction."""
    for step in _STEPS[version:]:
        step(connection)
    connection.pragma("user_version", SCHEMA_VERSION)


def _make(connection: apsw.Connection) -> None:
    connection.execute(_VERSION_1)
    connection.execute("INSERT INTO meta VALUES ('epoch', ?), ('head', 0)", (secrets.token_hex(8),))


def _add_people(connection: apsw.Connection) -> None:
    connection.execute(_VERSION_2)
    key = secrets.token_bytes(32)
    connection.execute("INSERT INTO meta VALUES ('event_key', ?)", (key,))

    def hashed(*event_id: Any) -> bytes:
        return event_hash(key, str(event_id[0]))

    connection.create_scalar_function("event_hash", hashed, 1, deterministic=True)
    connection.execute(
        "INSERT INTO event_ids SELECT event_hash(event_id), digest, position, person_key FROM events_1;"
        "INSERT INTO events SELECT person_key, position, event_hash(event_id), item_id, type, occurred_us, received_us"
        " FROM events_1 ORDER BY person_key, position;"
        "DROP TABLE events_1"
    )
    connection.create_scalar_function("event_hash", None, 1)


_STEPS: tuple[Callable[[apsw.Connection], None], ...] = (_make, _add_people)
