"""Tables of one's own: CSV and parquet, read a piece at a time, without letting a bad line end the import."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from training.data.dataset import READ_BUFFER_BYTES
from training.errors import DatasetError
from training.importers.csv_rows import BLOCK_BYTES, CsvFile, Raw, is_utf8, read_header
from training.importers.rejects import Rejects

ROWS_AT_ONCE = 1 << 18
COMMA = ","


@dataclass(frozen=True)
class TableFile:
    """One readable file: CSV, also gzipped (.gz), whose columns come as strings, or parquet."""

    path: Path
    kind: str  # csv | parquet
    columns: list[str]
    metadata: dict[bytes, bytes]  # of parquet
    encoding: str | None = "utf-8"  # of CSV; None = some rows are not UTF-8, and are rejected
    delimiter: str = COMMA  # of CSV

    def batches(
        self,
        columns: list[str],
        *,
        table: str,
        rows_before: int,
        rejects: Rejects | None,
        needed: list[str] | None = None,
    ) -> Iterator[Raw]:
        """The rows in order, numbered from `rows_before` + 1 on; without `rejects` bad rows are skipped in silence.

        Rows that are not UTF-8 are bad. Where a parquet file has bytes, such as pictures, in a column that is not `needed`
        (None: all are), they stay bytes. Raises DatasetError where the file turns out to be unusable.
        """
        texts = columns if needed is None or self.kind == "csv" else needed
        csv = CsvFile(self.path, self.columns, self.encoding, self.delimiter)
        with _readable(self.path, self.kind):
            for raw, row in (
                csv.batches(columns, table=table, rows_before=rows_before, rejects=rejects)
                if self.kind == "csv"
                else self._read_parquet(columns, rows_before)
            ):
                yield _decode(raw, row, texts, table, rejects)

    def _read_parquet(self, columns: list[str], done: int) -> Iterator[Raw]:
        with pq.ParquetFile(self.path, pre_buffer=False, buffer_size=READ_BUFFER_BYTES) as file:
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=columns):
                yield pa.Table.from_batches([batch]), np.arange(done + 1, done + 1 + batch.num_rows)
                done += batch.num_rows


def need_file(path: Path, advice: str = "check the path") -> None:
    """Raises DatasetError for what is no file, and for a name that cannot be written down in a data set."""
    if path.is_dir():
        raise DatasetError(f"{path}: is a directory; give a file")
    if not path.is_file():
        raise DatasetError(f"{path}: no such file; {advice}")
    if not is_text(path):
        raise DatasetError(f"{str(path)!a}: the name is not UTF-8; rename it")


def is_text(path: Path) -> bool:
    """Whether the path is UTF-8: other bytes stand in it as halves of characters."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def open_table(path: Path, kind: str, *, delimiter: str = COMMA, other_encoding: str | None = None) -> TableFile:
    """Looks at the columns of a CSV or parquet file. Raises DatasetError where there is none or it is unusable.

    `delimiter`, one character, is a CSV's; `other_encoding` that of one that is not UTF-8: without it such rows are rejected.
    """
    need_file(path)
    with _readable(path, kind):
        if kind == "csv":
            encoding = "utf-8" if is_utf8(path) else other_encoding
            return TableFile(path, kind, read_header(path, delimiter), {}, encoding, delimiter)
        with pq.ParquetFile(path) as file:
            names, metadata = list(file.schema_arrow.names), dict(file.schema_arrow.metadata or {})
    if len(set(names)) != len(names):
        raise DatasetError(f"{path}: two columns have one name; it has {', '.join(names)}")
    return TableFile(path, kind, names, metadata)


def read_table(file: TableFile, *, table: str, rejects: Rejects, needed: list[str] | None = None) -> Raw:
    """A whole file in memory; `needed` as in `TableFile.batches`. Raises DatasetError where it holds no rows at all."""
    parts = list(file.batches(file.columns, table=table, rows_before=0, rejects=rejects, needed=needed))
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
        if "straddl" in reason:
            reason = f"a row is longer than {BLOCK_BYTES >> 20} MiB; is a quote left open?"
        raise DatasetError(f"{path}: not readable as {kind} ({reason})") from error


def _decode(raw: pa.Table, row: npt.NDArray[np.int64], texts: list[str], table: str, rejects: Rejects | None) -> Raw:
    """Bytes of the columns `texts` -> strings; rows that are not UTF-8 are rejected, and only then looked at one by one."""
    binary = [
        pa.types.is_string(field.type) or (pa.types.is_binary(field.type) and field.name in texts) for field in raw.schema
    ]
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
