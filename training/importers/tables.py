"""Tables of one's own: CSV and parquet, read a piece at a time, without letting a bad line end the import."""

import gzip
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from training.errors import DatasetError
from training.importers.rejects import Rejects

Raw = tuple[pa.Table, npt.NDArray[np.int64]]  # rows as they are; (n,) int64 row numbers, 1 = first after a header
ROWS_AT_ONCE = 1 << 18
BLOCK_BYTES = 1 << 23  # of CSV; a row must fit into it
READ_BUFFER_BYTES = 1 << 20  # of a column; without it, and with pre_buffer, what was read of a file would pile up


@dataclass(frozen=True)
class TableFile:
    """One readable file: CSV, also gzipped (.gz), whose columns come as strings, or parquet."""

    path: Path
    kind: str  # csv | parquet
    columns: list[str]
    metadata: dict[bytes, bytes]  # of parquet
    encoding: str = "utf-8"  # of CSV; rows that are not in it are rejected

    def batches(self, columns: list[str], *, table: str, rows_before: int, rejects: Rejects | None) -> Iterator[Raw]:
        """The rows in order, numbered from `rows_before` + 1 on; without `rejects` bad rows are skipped in silence.

        Raises DatasetError where the file turns out to be unusable.
        """
        read = self._read_csv if self.kind == "csv" else self._read_parquet
        with _readable(self.path, self.kind):
            for raw, row in read(columns, table, rows_before, rejects):
                yield _decode(raw, row, table, rejects)

    def _read_parquet(self, columns: list[str], table: str, rows_before: int, rejects: Rejects | None) -> Iterator[Raw]:
        done = rows_before
        with pq.ParquetFile(self.path, pre_buffer=False, buffer_size=READ_BUFFER_BYTES) as file:
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=columns):
                yield pa.Table.from_batches([batch]), np.arange(done + 1, done + 1 + batch.num_rows)
                done += batch.num_rows

    def _read_csv(self, columns: list[str], table: str, rows_before: int, rejects: Rejects | None) -> Iterator[Raw]:
        torn: list[int] = []  # numbers of rows that are left out and not yet passed
        done = rows_before
        reader = pacsv.open_csv(
            self.path,
            read_options=pacsv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES, encoding=self.encoding),
            parse_options=pacsv.ParseOptions(
                newlines_in_values=True, invalid_row_handler=_collector(torn, table, rows_before, rejects)
            ),
            convert_options=pacsv.ConvertOptions(
                include_columns=columns,
                column_types={name: pa.binary() for name in columns},
                strings_can_be_null=False,
                quoted_strings_can_be_null=False,
            ),
        )
        for batch in reader:
            row = _numbers_without(torn, done + 1, batch.num_rows)
            done = int(row[-1]) if len(row) else done
            del torn[: int(np.searchsorted(torn, done))]
            yield pa.Table.from_batches([batch]), row


def open_table(path: Path, kind: str, *, encoding: str = "utf-8") -> TableFile:
    """Looks at the columns of a CSV or parquet file. Raises DatasetError where there is none or it is unusable."""
    if not path.is_file():
        raise DatasetError(f"{path}: no such file; check the path")
    with _readable(path, kind):
        if kind == "csv":
            return TableFile(path, kind, _header(path), {}, encoding)
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            return TableFile(path, kind, list(schema.names), dict(schema.metadata or {}))


def read_table(file: TableFile, *, table: str, rejects: Rejects) -> Raw:
    """A whole file in memory. Raises DatasetError where it holds no rows at all."""
    parts = list(file.batches(file.columns, table=table, rows_before=0, rejects=rejects))
    if not sum(len(row) for _, row in parts) and not rejects.counts:
        raise DatasetError(f"{file.path}: holds no rows; give a file that has some")
    if not parts:
        return pa.table({name: pa.array([], pa.string()) for name in file.columns}), np.empty(0, np.int64)
    return pa.concat_tables([raw for raw, _ in parts]), np.concatenate([row for _, row in parts])


@contextmanager
def _readable(path: Path, kind: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError, EOFError, zlib.error) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DatasetError(f"{path}: not readable as {kind} ({reason})") from error


def _header(path: Path) -> list[str]:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        line = file.readline()
    if not line.strip():
        raise DatasetError(f"{path}: has no header line; its first line must name the columns")
    first = pacsv.read_csv(pa.BufferReader(line), parse_options=pacsv.ParseOptions(newlines_in_values=True))
    if len(set(first.column_names)) != len(first.column_names):
        raise DatasetError(f"{path}: two columns have one name; its first line is {line.decode(errors='replace').strip()}")
    return list(first.column_names)


def _collector(torn: list[int], table: str, rows_before: int, rejects: Rejects | None) -> Callable[[pacsv.InvalidRow], str]:
    """A handler for pyarrow, called for each line with too few or too many fields."""

    def collect(bad: pacsv.InvalidRow) -> str:
        number = rows_before + int(bad.number) - 1  # pyarrow counts the header as row 1
        torn.append(number)
        if rejects is not None:
            values = {"line": bad.text, "fields": bad.actual_columns, "expected": bad.expected_columns}
            rejects.add(table, number, "wrong number of fields", values)
        return "skip"

    return collect


def _numbers_without(torn: list[int], first: int, count: int) -> npt.NDArray[np.int64]:
    """(count,) int64: the next row numbers from `first` on that are not in `torn`, which is in order."""
    numbers = np.arange(first, first + count + len(torn))
    return np.setdiff1d(numbers, np.array(torn, dtype=np.int64), assume_unique=True)[:count]


def _decode(raw: pa.Table, row: npt.NDArray[np.int64], table: str, rejects: Rejects | None) -> Raw:
    """Bytes -> strings; rows that are not UTF-8 are rejected one by one, and only then are rows looked at singly."""
    binary = [pa.types.is_binary(kind) or pa.types.is_string(kind) for kind in raw.schema.types]
    fields = [pa.field(name, pa.binary()) for name in raw.schema.names]
    as_bytes = pa.schema([new if is_text else old for new, old, is_text in zip(fields, raw.schema, binary, strict=True)])
    texts = [pa.field(name, pa.string()) for name in raw.schema.names]
    as_text = pa.schema([new if is_text else old for new, old, is_text in zip(texts, raw.schema, binary, strict=True)])
    raw = raw.cast(as_bytes)
    try:
        return raw.cast(as_text), row
    except pa.ArrowInvalid:
        bad = np.zeros(raw.num_rows, dtype=np.bool_)
        for name, is_text in zip(raw.column_names, binary, strict=True):
            if is_text:
                bad |= np.array([not _is_utf8(value.as_py()) for value in raw[name]])
    if rejects is not None:
        for place in np.flatnonzero(bad):
            values = {name: _replaced(raw[name][int(place)].as_py()) for name in raw.column_names}
            rejects.add(table, int(row[place]), "not UTF-8", values)
    return raw.filter(pa.array(~bad)).cast(as_text), row[~bad]


def _replaced(value: object) -> object:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _is_utf8(value: bytes | None) -> bool:
    try:
        (value or b"").decode()
    except UnicodeDecodeError:
        return False
    return True
