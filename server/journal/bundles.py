"""Which bundles were served, and which data each of them was trained on: what an erasure asks."""

import apsw

from index.bundle import Watermark
from server.journal.database import atomic
from server.journal.writer import Transaction


def note_bundle(connection: apsw.Connection, release_id: str, watermark: Watermark | None, now_us: int) -> None:
    """Notes that a bundle is served, once. watermark: up to where in a journal's exports its training data went.

    It says nothing about people, so it takes no position.
    """
    epoch, position = (watermark.epoch, watermark.position) if watermark is not None else (None, None)
    with atomic(connection):
        connection.execute(
            "INSERT INTO bundles VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", (release_id, epoch, position, now_us)
        )


class NoteBundle:
    """`note_bundle` while the server serves: before a release is made the live one."""

    rows = 1
    alone = False

    def __init__(self, release_id: str, watermark: Watermark | None, now_us: int) -> None:
        self._values = release_id, watermark, now_us

    def commit(self, transaction: Transaction) -> None:
        note_bundle(transaction.connection, *self._values)

    def publish(self) -> None:
        """Nothing shows it."""
