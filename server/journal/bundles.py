"""Which bundles were served, and which data each of them was trained on: what an erasure asks."""

import apsw

from index.bundle import Watermark


def note_bundle(connection: apsw.Connection, release_id: str, watermark: Watermark | None, now_us: int) -> None:
    """Notes that a bundle is served, once. watermark: up to where in a journal's exports its training data went.

    It says nothing about people, so it takes no position.
    """
    epoch, position = (watermark.epoch, watermark.position) if watermark is not None else (None, None)
    with connection:
        connection.execute(
            "INSERT INTO bundles VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", (release_id, epoch, position, now_us)
        )
