"""Which source column is which: aliases, overrides, and reading ids and times whatever type they have."""

import numpy as np
import numpy.typing as npt
import pandas as pd
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
FIRST_US = -(10**6) * 86_400 * 365  # about 1969, so that times shortly before 1970 by a time zone survive
LAST_US = 4_102_444_800 * 10**6  # 2100-01-01


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


def need_column(name: str, columns: list[str], overrides: dict[str, str], *, source: str, aliases: tuple[str, ...] = ()) -> str:
    """`find_column`, or DatasetError with the name of the `source`."""
    found = find_column(name, columns, overrides, aliases=aliases)
    if found is None:
        raise DatasetError(
            f"{source}: no column for {name} ({', '.join((*ALIASES[name], *aliases))}); it has {', '.join(columns)}; "
            f"name it with --columns {name}=COLUMN"
        )
    return found


def check_overrides(overrides: dict[str, str], columns: dict[str, list[str]]) -> None:
    """Every override must name a column of a source; `columns` lists those of each. Raises DatasetError."""
    for name, column in overrides.items():
        if not any(column in listed for listed in columns.values()):
            files = "; ".join(f"{source} has {', '.join(listed)}" for source, listed in columns.items())
            raise DatasetError(f"--columns {name}={column}: there is no column {column}; {files}")


def as_strings(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Any scalar column as strings, nulls kept; whole floats lose their ".0", which readers of ids add where some miss."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_floating(array.type):
        array = pc.if_else(pc.is_nan(array), pa.scalar(None, array.type), array)
        whole = pc.fill_null(pc.and_(pc.equal(array, pc.floor(array)), pc.less(pc.abs(array), 2.0**53)), False)
        integers = pc.if_else(whole, array, pa.scalar(None, array.type)).cast(pa.int64()).cast(pa.string())
        return pc.coalesce(integers, array.cast(pa.string()))
    return array.cast(pa.string())


def parse_times(column: pa.ChunkedArray | pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Times -> ((n,) int64 microseconds since 1970 UTC, (n,) bool readable and between 1969 and 2100).

    Numbers (also as text) are seconds, or milli-, micro- or nanoseconds where the column's median is that large;
    anything else is ISO 8601, in UTC where no zone is given.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    kind = array.type
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        stamps = array.cast(pa.timestamp("us", tz=getattr(kind, "tz", None)), safe=False).cast(pa.int64())
        return _within(pc.fill_null(stamps, LAST_US).to_numpy(zero_copy_only=False).astype(np.float64))
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return _within(_scale(array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)))
    text = as_strings(array).to_pandas()
    numbers = pd.to_numeric(text, errors="coerce").to_numpy(dtype=np.float64)
    micros = _scale(numbers)
    words = np.isnan(numbers) & text.notna().to_numpy()
    if words.any():
        stamps = pd.to_datetime(text[words], utc=True, errors="coerce", format="ISO8601")
        parsed = stamps.dt.tz_localize(None).to_numpy(dtype="datetime64[us]")
        micros[words] = np.where(np.isnat(parsed), np.nan, parsed.astype(np.int64))
    return _within(micros)


def _scale(numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Unix times of one unit -> microseconds; the unit is told by the median (1e11 s is the year 5138, 1e11 ms 1973)."""
    finite = np.abs(numbers[np.isfinite(numbers)])
    if not len(finite):
        return numbers.copy()
    typical = float(np.median(finite))
    for limit, factor in ((1e11, 1e6), (1e14, 1e3), (1e17, 1.0)):
        if typical < limit:
            return numbers * factor
    return numbers / 1e3


def _within(micros: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    valid = np.isfinite(micros) & (micros >= FIRST_US) & (micros < LAST_US)
    return np.rint(np.where(valid, micros, 0)).astype(np.int64), valid
