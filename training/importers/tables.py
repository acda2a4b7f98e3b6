"""Tables of one's own: CSV and parquet, read without letting a bad line end the import."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from training.errors import DatasetError
from training.importers.rejects import Rejects

Raw = tuple[pa.Table, npt.NDArray[np.int64]]  # rows as they are; (n,) int64 row numbers, 1 = first after a header


def read_table(path: Path, kind: str, *, table: str, rejects: Rejects) -> Raw:
    """Reads `kind` "csv" or "parquet"; CSV columns come as strings. Raises DatasetError where the file is unusable."""
    if not path.is_file():
        raise DatasetError(f"{path}: no such file; check the path")
    try:
        raw, row = _read_csv(path, table, rejects) if kind == "csv" else _read_parquet(path)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: not readable as {kind} ({str(error).splitlines()[0]})") from error
    if raw.num_rows == 0 and not rejects.rows:
        raise DatasetError(f"{path}: holds no rows; give a file that has some")
    return raw, row


def _read_parquet(path: Path) -> Raw:
    raw = pq.read_table(path)
    return raw, np.arange(1, raw.num_rows + 1)


def _read_csv(path: Path, table: str, rejects: Rejects) -> Raw:
    names = _header(path)
    torn: list[int] = []
    raw = pacsv.read_csv(
        path,
        read_options=pacsv.ReadOptions(use_threads=False),  # only so are rows numbered
        parse_options=pacsv.ParseOptions(newlines_in_values=True, invalid_row_handler=_collector(torn, table, rejects)),
        convert_options=pacsv.ConvertOptions(
            column_types={name: pa.binary() for name in names}, strings_can_be_null=False, quoted_strings_can_be_null=False
        ),
    )
    row = np.setdiff1d(np.arange(1, raw.num_rows + len(torn) + 1), np.array(torn, dtype=np.int64))
    return _decode(raw, row, table, rejects)


def _header(path: Path) -> list[str]:
    with path.open("rb") as file:
        line = file.readline()
    if not line.strip():
        raise DatasetError(f"{path}: has no header line; its first line must name the columns")
    first = pacsv.read_csv(pa.BufferReader(line), parse_options=pacsv.ParseOptions(newlines_in_values=True))
    if len(set(first.column_names)) != len(first.column_names):
        raise DatasetError(f"{path}: two columns have one name; its first line is {line.decode(errors='replace').strip()}")
    return list(first.column_names)


def _collector(torn: list[int], table: str, rejects: Rejects) -> Callable[[pacsv.InvalidRow], str]:
    """A handler for pyarrow, called for each line with too few or too many fields."""

    def collect(bad: pacsv.InvalidRow) -> str:
        number = int(bad.number) - 1  # pyarrow counts the header as row 1
        torn.append(number)
        values = {"line": bad.text, "fields": bad.actual_columns, "expected": bad.expected_columns}
        rejects.add(table, number, "wrong number of fields", values)
        return "skip"

    return collect


def _decode(raw: pa.Table, row: npt.NDArray[np.int64], table: str, rejects: Rejects) -> Raw:
    """Bytes -> strings; rows that are not UTF-8 are rejected one by one, and only then are rows looked at singly."""
    text_type = pa.schema([(name, pa.string()) for name in raw.column_names])
    try:
        return raw.cast(text_type), row
    except pa.ArrowInvalid:
        bad = np.zeros(raw.num_rows, dtype=np.bool_)
        for name in raw.column_names:
            bad |= np.array([not _is_utf8(value.as_py()) for value in raw[name]])
    for place in np.flatnonzero(bad):
        values = {name: raw[name][int(place)].as_py().decode(errors="replace") for name in raw.column_names}
        rejects.add(table, int(row[place]), "not UTF-8", values)
    return raw.filter(pa.array(~bad)).cast(text_type), row[~bad]


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
