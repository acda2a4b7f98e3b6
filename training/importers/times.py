"""Reading times: Unix numbers, whose unit a whole column tells, dates as numbers such as 20240115, and ISO 8601."""

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from training.importers.columns import as_strings

FloatArray = npt.NDArray[np.float64]
FIRST_US = -(10**6) * 86_400 * 365  # about 1969, so that times shortly before 1970 by a time zone survive
LAST_US = 4_102_444_800 * 10**6  # 2100-01-01
LIMITS = (1e11, 1e14, 1e17)  # 1e11 s is the year 5138, 1e11 ms is 1973
MICROSECONDS = (1e6, 1e3, 1.0, 1e-3)  # of a second, milli-, micro- and nanosecond


class UnixUnit:
    """The unit of a column's Unix times, told by its median; the column is seen a piece at a time and not kept."""

    def __init__(self) -> None:
        self._sizes = np.zeros(len(MICROSECONDS), dtype=np.int64)  # numbers between two limits
        self._only_dates = True

    def see(self, column: pa.ChunkedArray | pa.Array) -> None:
        """Takes account of more rows; those that are no numbers say nothing."""
        numbers = _numbers(column)
        if numbers is not None:
            finite = numbers[np.isfinite(numbers)]
            self._sizes += np.bincount(np.digitize(np.abs(finite), LIMITS), minlength=len(MICROSECONDS))
            self._only_dates = self._only_dates and not np.isnan(_dates(finite)).any()

    @property
    def microseconds(self) -> float:
        """How many microseconds one unit is; seconds if no number was seen."""
        middle = (int(self._sizes.sum()) - 1) // 2  # of an even number the lower one
        return MICROSECONDS[int(np.searchsorted(np.cumsum(self._sizes), max(middle, 0), side="right")) % len(MICROSECONDS)]

    def to_microseconds(self, numbers: FloatArray) -> FloatArray:
        """(n,) float64 since 1970. Numbers that are all of the form 20240115 are dates, else they are in the unit."""
        return _dates(numbers) if self._only_dates and self._sizes.any() else numbers * self.microseconds


def parse_times(column: pa.ChunkedArray | pa.Array, unit: UnixUnit) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Times -> ((n,) int64 microseconds since 1970 UTC, (n,) bool readable and between 1969 and 2100).

    Numbers (also as text) are as `unit` says; anything else is ISO 8601, in UTC where no zone is given.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    kind = array.type
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        stamps = array.cast(pa.timestamp("us", tz=getattr(kind, "tz", None)), safe=False).cast(pa.int64())
        return within_range(pc.fill_null(stamps, LAST_US).to_numpy(zero_copy_only=False).astype(np.float64))
    numbers = _numbers(array)
    micros = np.full(len(array), np.nan) if numbers is None else unit.to_microseconds(numbers)
    if not _is_number(kind):
        text = as_strings(array).to_pandas()
        words = np.isnan(micros) & text.notna().to_numpy()
        # Of those that begin with a digit: pandas reads "now" and "today" as the time of the import.
        words[words] = text[words].str.match(r"\s*[+-]?\d").to_numpy(dtype=bool)
        if words.any():
            stamps = pd.to_datetime(text[words], utc=True, errors="coerce", format="ISO8601")
            parsed = stamps.dt.tz_localize(None).to_numpy(dtype="datetime64[us]")
            micros[words] = np.where(np.isnat(parsed), np.nan, parsed.astype(np.int64))
    return within_range(micros)


def _numbers(column: pa.ChunkedArray | pa.Array) -> FloatArray | None:
    """(n,) float64, NaN where a value is no number; None for columns of dates and timestamps."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_date(array.type) or pa.types.is_timestamp(array.type):
        return None
    if _is_number(array.type):
        return np.asarray(array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False), dtype=np.float64)
    return np.asarray(pd.to_numeric(as_strings(array).to_pandas(), errors="coerce"), dtype=np.float64)


def _dates(numbers: FloatArray) -> FloatArray:
    """(n,) float64 microseconds since 1970 of numbers that write a day as YYYYMMDD; NaN where one does not."""
    micros = np.full(len(numbers), np.nan)
    near = np.flatnonzero((numbers >= 19_690_101) & (numbers < 21_000_101) & (numbers == np.floor(numbers)))
    days, place = np.unique(numbers[near].astype(np.int64), return_inverse=True)
    stamps = pd.to_datetime(pd.Series(days).astype(str), format="%Y%m%d", errors="coerce").to_numpy(dtype="datetime64[us]")
    micros[near] = np.where(np.isnat(stamps), np.nan, stamps.astype(np.int64))[place]
    return micros


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def within_range(micros: FloatArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """(n,) float64 microseconds, NaN = unreadable -> as `parse_times`."""
    valid = np.isfinite(micros) & (micros >= FIRST_US) & (micros < LAST_US)
    return np.rint(np.where(valid, micros, 0)).astype(np.int64), valid
