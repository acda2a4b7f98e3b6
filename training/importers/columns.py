"""Which source column is which: aliases, overrides, and reading ids whatever type they have."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from training.errors import DatasetError

ALIASES: dict[str, tuple[str, ...]] = {
    "user_id": ("user_id", "user", "userid", "visitor_id", "visitorid", "visitor", "customer_id", "customerid"),
    "item_id": ("item_id", "item", "itemid", "product_id", "productid", "sku", "stockcode"),
    "event_type": ("event_type", "event", "type", "action", "behavior", "behaviour"),
    "occurred_at": ("occurred_at", "timestamp", "time", "ts", "event_time", "datetime", "date"),
    "text": ("text", "title", "name", "description"),
    "categories": ("categories", "category", "genres", "tags"),
}
DELIMITERS = {",": "','", ";": "';'", "|": "'|'", "\t": "tab"}  # of CSV -> how the command line takes them


def parse_overrides(pairs: list[str]) -> dict[str, str]:
    """["user_id=who", …] -> {"user_id": "who"}; raises DatasetError for a name that no import knows."""
    chosen = {}
    for pair in pairs:
        name, separator, column = pair.partition("=")
        if not separator or name not in ALIASES or not column:
            raise DatasetError(f"--columns {pair}: write NAME=COLUMN with NAME one of {', '.join(ALIASES)}")
        chosen[name] = column
    return chosen


def find_column(name: str, columns: list[str], overrides: dict[str, str], *, aliases: tuple[str, ...] = ()) -> str | None:
    """The source's column for a canonical one, or None: the override, else the first alias present, whatever its case.

    An override that this file does not have is meant for the other file, so aliases count; `check_overrides` has seen
    to it that one of them has it.
    """
    if overrides.get(name) in columns:
        return overrides[name]
    lowered = {column.lower(): column for column in reversed(columns)}
    return next((lowered[alias] for alias in (*ALIASES[name], *aliases) if alias in lowered), None)


def need_column(name: str, columns: list[str], overrides: dict[str, str], *, aliases: tuple[str, ...] = ()) -> str:
    """`find_column`, or DatasetError with the columns that there are."""
    found = find_column(name, columns, overrides, aliases=aliases)
    if found is None:
        delimiter = next((word for sign, word in DELIMITERS.items() if sign in columns[0]), None)
        cure = f"name it with --columns {name}=COLUMN" if delimiter is None else f"import csv takes --delimiter {delimiter}"
        raise DatasetError(
            f"no column for {name} ({', '.join((*ALIASES[name], *aliases))}); it has {', '.join(columns)}; {cure}"
        )
    return found


def check_overrides(overrides: dict[str, str], columns: dict[str, list[str]]) -> None:
    """Every override must name a column of a source; `columns` lists those of each. Raises DatasetError."""
    for name, column in overrides.items():
        if not any(column in listed for listed in columns.values()):
            files = "; ".join(f"{source} has {', '.join(listed)}" for source, listed in columns.items())
            raise DatasetError(f"--columns {name}={column}: there is no column {column}; {files}")


@contextmanager
def reading(name: str, column: pa.ChunkedArray) -> Iterator[None]:
    """What is done with a needed column of that name: DatasetError where its type does not allow it."""
    try:
        yield
    except pa.ArrowException as error:
        raise DatasetError(f"column {name} is {column.type}, which cannot be read; name another with --columns") from error


@contextmanager
def of(source: Path) -> Iterator[None]:
    """Says of a DatasetError from which file it comes."""
    try:
        yield
    except DatasetError as error:
        raise DatasetError(f"{source}: {error}") from error


def as_strings(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Any scalar column as strings; nulls and numbers that are not finite are null.

    Whole floats lose their ".0", which readers of ids add where some miss.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_floating(array.type):
        array = pc.if_else(pc.is_finite(array), array, pa.scalar(None, array.type))
        whole = pc.fill_null(pc.and_(pc.equal(array, pc.floor(array)), pc.less(pc.abs(array), 2.0**53)), False)
        integers = pc.if_else(whole, array, pa.scalar(None, array.type)).cast(pa.int64()).cast(pa.string())
        return pc.coalesce(integers, array.cast(pa.string()))
    return array.cast(pa.string())


def flags(values: pa.ChunkedArray | pa.Array) -> npt.NDArray[np.bool_]:
    """(n,) bool of a column of booleans; null is false."""
    found: npt.NDArray[np.bool_] = np.asarray(pc.fill_null(values, False), dtype=np.bool_)
    return found
