"""The catalogue in the journal: its record, whatever bundles say."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import apsw

from server.journal.database import JournalFile, atomic
from server.journal.writer import Transaction

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ItemContent:
    """What callers say about an item, and what was computed from its text."""

    item_id: str
    text: str = ""
    categories: str = "[]"  # JSON list of strings
    attributes: str = "{}"  # JSON object
    text_embedding: bytes | None = None  # (T,) float32, little endian
    encoder_sha256: str | None = None  # of the encoder that made text_embedding
    embedding_given: bool = False
    vector: bytes | None = None  # (D,) float32, little endian, unit length
    vector_release: str | None = None  # the release in whose space vector lies


@dataclass(frozen=True, slots=True)
class StoredItem:
    """An item as the journal holds it."""

    ordinal: int
    position: int
    removed_at: int | None  # position of the removal; None while in the catalogue
    available: bool
    popularity: float
    content: ItemContent


class UpsertOutcome(NamedTuple):
    stored: StoredItem
    created: bool


class UpsertItems(Generic[T]):
    """Adds items or replaces their content whole. Availability is kept; a new or returning item is available."""

    alone = False

    def __init__(self, items: Sequence[ItemContent], publish: Callable[[Sequence[UpsertOutcome]], T]) -> None:
        self.rows = len(items)
        self._items = items
        self._publish = publish
        self._outcomes: list[UpsertOutcome] = []

    def commit(self, transaction: Transaction) -> None:
        self._outcomes = [_upsert(transaction, item) for item in self._items]

    def publish(self) -> T:
        return self._publish(self._outcomes)


class RemoveItems(Generic[T]):
    """Takes items out of the catalogue; their rows stay, so that no bundle brings them back."""

    alone = False

    def __init__(self, item_ids: Sequence[str], publish: Callable[[Sequence[tuple[str, int]]], T]) -> None:
        self.rows = len(item_ids)
        self._item_ids = item_ids
        self._publish = publish
        self._removed: list[tuple[str, int]] = []

    def commit(self, transaction: Transaction) -> None:
        self._removed = []
        for item_id in self._item_ids:
            position = transaction.next_position()
            rows = transaction.execute(
                "UPDATE items SET position = ?1, removed_at = ?1 WHERE item_id = ?2 AND removed_at IS NULL RETURNING 1",
                (position, item_id),
            )
            if rows.fetchone() is not None:
                self._removed.append((item_id, position))

    def publish(self) -> T:
        """`publish` gets the ids that were in the catalogue, each with the position of its removal."""
        return self._publish(self._removed)


class SetAvailability(Generic[T]):
    """Marks items as available or not."""

    alone = False

    def __init__(self, changes: Sequence[tuple[str, bool]], publish: Callable[[Sequence[tuple[str, bool]]], T]) -> None:
        self.rows = len(changes)
        self._changes = changes
        self._publish = publish
        self._done: list[tuple[str, bool]] = []

    def commit(self, transaction: Transaction) -> None:
        self._done = []
        for item_id, available in self._changes:
            rows = transaction.execute(
                "UPDATE items SET position = ?, available = ? WHERE item_id = ? AND removed_at IS NULL RETURNING 1",
                (transaction.next_position(), int(available), item_id),
            )
            if rows.fetchone() is not None:
                self._done.append((item_id, available))

    def publish(self) -> T:
        """`publish` gets the changes of items that are in the catalogue."""
        return self._publish(self._done)


def seed_items(file: JournalFile, items: Iterable[tuple[ItemContent, float]]) -> int:
    """Fills an empty catalogue from a bundle's items with their popularity, in one transaction; returns how many."""
    connection = file.connection
    count = 0
    with atomic(connection):
        for count, (item, popularity) in enumerate(items, start=1):
            connection.execute(
                "INSERT INTO items (item_id, position, available, text, categories, attributes, popularity, embedding_given)"
                " VALUES (?, ?, 1, ?, ?, ?, ?, 0)",
                (item.item_id, file.head + count, item.text, item.categories, item.attributes, popularity),
            )
        connection.execute("UPDATE meta SET value = ? WHERE key = 'head'", (file.head + count,))
        connection.execute("INSERT INTO meta VALUES ('catalogue_seeded', 1)")
    file.head += count
    return count


def is_seeded(connection: apsw.Connection) -> bool:
    """Whether the catalogue was seeded once: then no bundle adds to it, even if it is empty now."""
    return connection.execute("SELECT 1 FROM meta WHERE key = 'catalogue_seeded'").fetchone() is not None


def keep_embeddings(file: JournalFile, items: Sequence[tuple[int, ItemContent]]) -> None:
    """Keeps text embeddings that were computed at start, by ordinal, so that the next start need not compute them again.

    They are derived from the texts, not said by anyone, so they take no position.
    """
    with atomic(file.connection):
        for ordinal, content in items:
            file.connection.execute(
                "UPDATE items SET text_embedding = ?, encoder_sha256 = ? WHERE ordinal = ?",
                (content.text_embedding, content.encoder_sha256, ordinal),
            )


def load_items(connection: apsw.Connection) -> Iterator[StoredItem]:
    """Every item, removed ones too, in the order of ordinals."""
    for row in connection.execute(f"SELECT {_COLUMNS} FROM items ORDER BY ordinal"):
        yield _stored(row)


_COLUMNS = (
    "ordinal, position, removed_at, available, popularity, item_id, text, categories, attributes, "
    "text_embedding, encoder_sha256, embedding_given, vector, vector_release"
)


def _stored(row: tuple[object, ...]) -> StoredItem:
    ordinal, position, removed_at, available, popularity, *content = row
    content[6] = bool(content[6])
    return StoredItem(
        ordinal=int(ordinal),  # type: ignore[call-overload]
        position=int(position),  # type: ignore[call-overload]
        removed_at=removed_at,  # type: ignore[arg-type]
        available=bool(available),
        popularity=float(popularity),  # type: ignore[arg-type]
        content=ItemContent(*content),  # type: ignore[arg-type]
    )


def _upsert(transaction: Transaction, item: ItemContent) -> UpsertOutcome:
    known = transaction.execute("SELECT removed_at FROM items WHERE item_id = ?", (item.item_id,)).fetchone()
    row = transaction.execute(
        "INSERT INTO items (item_id, position, available, text, categories, attributes, popularity,"
        " text_embedding, encoder_sha256, embedding_given, vector, vector_release)"
        " VALUES (?1, ?2, 1, ?3, ?4, ?5, 0, ?6, ?7, ?8, ?9, ?10)"
        " ON CONFLICT (item_id) DO UPDATE SET position = ?2, available = available OR removed_at IS NOT NULL,"
        " removed_at = NULL, text = ?3, categories = ?4, attributes = ?5, text_embedding = ?6, encoder_sha256 = ?7,"
        " embedding_given = ?8, vector = ?9, vector_release = ?10"
        f" RETURNING {_COLUMNS}",
        (
            item.item_id,
            transaction.next_position(),
            item.text,
            item.categories,
            item.attributes,
            item.text_embedding,
            item.encoder_sha256,
            int(item.embedding_given),
            item.vector,
            item.vector_release,
        ),
    ).fetchall()[0]
    return UpsertOutcome(_stored(row), created=known is None or known[0] is not None)
