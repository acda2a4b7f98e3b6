"""RetailRocket's events: as published (visitorid, milliseconds, addtocart, transaction), or a part in names of one's own."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from training.importers.rejects import Rejects
from training.importers.sources import open_events, read_events

EVENT_NAMES = {"addtocart": "cart", "transaction": "purchase", "buy": "purchase"}  # the rest, view, is called so already


def import_retailrocket(path: Path, rejects: Rejects) -> Iterator[pa.Table]:
    """Numbered events of events.csv, with the types view, cart and purchase."""
    return read_events(open_events([path], "csv"), {}, rejects, type_names=EVENT_NAMES)
