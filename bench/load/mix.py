"""Which methods are called, and how often beside each other; events that are sent again as they came."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
import yaml
from numpy.typing import NDArray

METHODS: Mapping[str, str] = {
    "recommend": "/towerbridge.v1.RecommendationService/Recommend",
    "similar": "/towerbridge.v1.RecommendationService/FindSimilarItems",
    "score": "/towerbridge.v1.RecommendationService/ScoreItems",
    "batch_recommend": "/towerbridge.v1.RecommendationService/BatchRecommend",
    "search": "/towerbridge.v1.RecommendationService/SearchVectors",
    "events": "/towerbridge.v1.EventService/RecordEvents",
    "get_items": "/towerbridge.v1.ItemService/GetItems",
}
"""Kinds of calls by the names that a mix has, in the order of their numbers."""
KINDS = tuple(METHODS)


class InputError(Exception):
    """What was asked for cannot be done. The message is one line and says what to do."""


class Replay(NamedTuple):
    """Events in the order of their times."""

    due: NDArray[np.float64]  # (n,) float64, seconds from the first, rising
    user_ids: list[str]
    item_ids: list[str]
    types: list[str]


def read_mix(path: Path | None) -> dict[str, float]:
    """Shares by kind, of which the sum is 1; without a file only recommend. Raises InputError."""
    if path is None:
        return {"recommend": 1.0}
    try:
        text = path.read_text(encoding="utf-8")
        found: Any = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"the mix {path} cannot be read: {_first_line(error)}") from None
    if not isinstance(found, dict) or not found:
        raise InputError(f"the mix {path} must map methods to weights, such as recommend: 8")
    for name, weight in found.items():
        if name not in METHODS:
            raise InputError(f"the mix {path} names {name!r}; there are {', '.join(METHODS)}")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < 1e9:
            raise InputError(f"the weight of {name} in {path} must be a number from 0")
    total = sum(found.values())
    if not total:
        raise InputError(f"all weights in {path} are 0; one at least must be more")
    return {name: weight / total for name, weight in found.items() if weight}


def read_replay(path: Path, speed: float) -> Replay:
    """The events of a parquet, CSV or JSONL file, with times divided by `speed`. Raises InputError.

    Columns: user_id, item_id, occurred_at (a time, or seconds), and type or event_type ("view" without one).
    """
    try:
        table = _READERS[path.suffix](str(path))
    except KeyError:
        raise InputError(f"{path} is none of .parquet, .csv and .jsonl") from None
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"the replay {path} cannot be read: {_first_line(error)}") from None
    missing = {"user_id", "item_id", "occurred_at"} - set(table.column_names)
    if missing or not table.num_rows:
        raise InputError(f"the replay {path} lacks {', '.join(sorted(missing)) or 'events'}")
    seconds = _seconds(table.column("occurred_at"), path)
    order = np.argsort(seconds, kind="stable")
    names = [name for name in ("type", "event_type") if name in table.column_names]
    types = table.column(names[0]).cast(pa.string()).to_pylist() if names else ["view"] * table.num_rows
    users, items = (table.column(name).cast(pa.string()).to_pylist() for name in ("user_id", "item_id"))
    if any(not value for values in (users, items, types) for value in values):
        raise InputError(f"the replay {path} has events without user_id, item_id or type")
    due = (seconds[order] - seconds[order[0]]) / speed
    return Replay(due, *([values[place] for place in order] for values in (users, items, types)))


_READERS: Mapping[str, Any] = {
    ".parquet": pa.parquet.read_table,
    ".csv": pa.csv.read_csv,
    ".jsonl": pa.json.read_json,
    ".ndjson": pa.json.read_json,
}


def _seconds(column: pa.ChunkedArray, path: Path) -> NDArray[np.float64]:
    """(n,) float64 seconds."""
    try:
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            column = pc.strptime(pc.replace_substring(column, "Z", "+0000"), format="%Y-%m-%dT%H:%M:%S%z", unit="us")
        if pa.types.is_timestamp(column.type):
            return np.asarray(column.cast(pa.timestamp("us", tz=column.type.tz)).cast(pa.int64()).to_numpy() / 1e6)
        seconds = np.asarray(column.cast(pa.float64()).to_numpy())
    except pa.ArrowException as error:
        raise InputError(f"occurred_at in {path} is neither a time nor seconds: {_first_line(error)}") from None
    if not np.isfinite(seconds).all():
        raise InputError(f"occurred_at in {path} has gaps; every event needs a time")
    return seconds


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
