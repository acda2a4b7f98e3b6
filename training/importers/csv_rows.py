"""The rows of a CSV file. What a stray quote swallows is told of: a row of several lines is never taken in silence."""

import codecs
import gzip
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from training.errors import DatasetError
from training.importers.notes import EXAMPLES
from training.importers.rejects import Rejects

Raw = tuple[pa.Table, npt.NDArray[np.int64]]  # rows as they are; (n,) int64 row numbers, 1 = first after a header
BLOCK_BYTES = 1 << 23  # of CSV; a row must fit into it
BYTES = "latin-1"  # gives every byte a character, so that pyarrow can read and show what is not UTF-8
LINE_BREAK = r"\r\n|\r|\n"
SEVERAL_LINES = "rows with line breaks inside quotes"


@dataclass(frozen=True)
class CsvFile:
    """A CSV with a header line, plain or gzipped; `encoding` None = some rows are not UTF-8, and will be rejected."""

    path: Path
    columns: list[str]
    encoding: str | None
    delimiter: str

    def batches(self, wanted: list[str], *, table: str, rows_before: int, rejects: Rejects | None) -> Iterator[Raw]:
        """The rows in order, as bytes, numbered from `rows_before` + 1 on; torn ones are left out.

        With `rejects` they are rejected, and so are events with a line break in a column that is `wanted`; line breaks
        in any column are noted. Raises DatasetError where a quote is open at the end.
        """
        torn = _Torn(table, rows_before, rejects, self.encoding, self.delimiter)
        done, last = rows_before, b""
        for batch in self._reader(wanted if rejects is None else self.columns, torn):
            row = torn.numbers_without(done + 1, batch.num_rows)
            raw = pa.Table.from_batches([batch])
            if self.encoding is None:
                raw = pa.table([_as_it_was(column) for column in raw.columns], names=raw.column_names)
            if len(row):
                done, last = int(row[-1]), raw.columns[-1][-1].as_py()
            if rejects is not None:
                raw, row = _whole_rows(raw, row, wanted, table, rejects)
            yield raw.select(wanted), row
        if rejects is not None and (torn.ends_open if torn.last > done else self._ends_with_open(last)):
            number = max(torn.last, done) - rows_before
            raise DatasetError(
                f"{self.path}: row {number} opens a quote that is never closed, so that all after it is one field; "
                "close it, or put the field in quotes and double those within"
            )

    def _reader(self, columns: list[str], torn: "_Torn") -> pacsv.CSVStreamingReader:
        return pacsv.open_csv(
            self.path,
            read_options=pacsv.ReadOptions(
                use_threads=False,
                block_size=BLOCK_BYTES,
                encoding=self.encoding or BYTES,
                column_names=self.columns,  # as `read_header` has them
                skip_rows_after_names=1,
            ),
            parse_options=_parse_options(self.delimiter, invalid_row_handler=torn.collect),
            convert_options=pacsv.ConvertOptions(
                include_columns=columns,
                column_types={name: pa.binary() for name in columns},
                strings_can_be_null=False,
                quoted_strings_can_be_null=False,
            ),
        )

    def _ends_with_open(self, value: bytes) -> bool:
        """Whether the file ends within the field that pyarrow read as `value`: if it does, no quote follows."""
        if b"\n" not in value and b"\r" not in value:
            return False
        written = value.decode().encode(self.encoding) if self.encoding not in (None, "utf-8") else value
        written = b'"' + written.replace(b'"', b'""')
        end = b""
        with open_plain(self.path) as file:
            for block in iter(lambda: file.read(BLOCK_BYTES), b""):
                end = (end + block)[-len(written) :]
        return end == written


class _Torn:
    """Rows with too few or too many fields, as pyarrow meets them: it is ahead of the batches that it has given."""

    def __init__(self, table: str, rows_before: int, rejects: Rejects | None, encoding: str | None, delimiter: str) -> None:
        self.last = rows_before  # the number of the last one
        self.ends_open = False  # whether it ends within quotes
        self._table, self._rows_before, self._rejects, self._encoding = table, rows_before, rejects, encoding
        begins = f'(^|{re.escape(delimiter)})"'  # a field in quotes, at the beginning of a row or after a delimiter
        self._open, self._closed = re.compile(begins), re.compile(begins + '(?:[^"]|"")*"(?!")')
        self._waiting: list[int] = []  # numbers, in order, that no batch has passed

    def collect(self, bad: pacsv.InvalidRow) -> str:
        """The handler for pyarrow."""
        self.last = self._rows_before + int(bad.number) - 1  # pyarrow counts the header as row 1
        self._waiting.append(self.last)
        if self._rejects is not None:
            text = bad.text if self._encoding is not None else bad.text.encode(BYTES).decode(errors="replace")
            self.ends_open = self._open.search(self._closed.sub(r"\1", text)) is not None
            lines = 1 + len(re.findall(LINE_BREAK, text))
            values = {"line": text, "fields": bad.actual_columns, "expected": bad.expected_columns}
            if lines > 1:
                place = self._rejects.places.find(self._table, self.last)
                self._rejects.notes.add(SEVERAL_LINES, 1, [place | {"lines": lines}])
            self._rejects.add(self._table, self.last, "wrong number of fields", values)
        return "skip"

    def numbers_without(self, first: int, count: int) -> npt.NDArray[np.int64]:
        """(count,) int64: the next row numbers from `first` on that are not torn ones."""
        numbers = np.arange(first, first + count + len(self._waiting))
        whole = np.setdiff1d(numbers, np.array(self._waiting, dtype=np.int64), assume_unique=True)[:count]
        if count:
            del self._waiting[: int(np.searchsorted(self._waiting, whole[-1]))]
        return whole


def read_header(path: Path, delimiter: str) -> list[str]:
    """The names of the columns, without spaces around them. Raises DatasetError where there are none, or two are alike."""
    with open_plain(path) as file:
        line = file.readline()
    if not line.strip():
        raise DatasetError(f"{path}: has no header line; its first line must name the columns")
    written = pacsv.read_csv(pa.BufferReader(line), parse_options=_parse_options(delimiter)).column_names
    names = [name.strip() for name in written]
    if len(set(names)) != len(names):
        raise DatasetError(f"{path}: two columns have one name; its first line is {line.decode(errors='replace').strip()}")
    return names


def _parse_options(delimiter: str, **more: Any) -> pacsv.ParseOptions:
    return pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True, **more)


def is_utf8(path: Path) -> bool:
    """Whether all of the file is UTF-8; True for what cannot be read, which reading it will tell of."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with open_plain(path) as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                decoder.decode(block)
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    except (OSError, EOFError, zlib.error):
        pass
    return True


def open_plain(path: Path) -> BinaryIO:
    """The file's bytes, unpacked where its name ends in .gz."""
    return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _whole_rows(raw: pa.Table, row: npt.NDArray[np.int64], wanted: list[str], table: str, rejects: Rejects) -> Raw:
    """Notes the rows of several lines; an event with a line break in a column that is `wanted` is rejected."""
    breaks = {name: _line_breaks(raw[name]) for name in raw.column_names}
    breaks = {name: count for name, count in breaks.items() if count.any()}
    if not breaks:
        return raw, row
    lines = 1 + np.sum(list(breaks.values()), axis=0)  # (n,) int64
    longest = np.argsort(-lines, kind="stable")[: min(EXAMPLES, int((lines > 1).sum()))]
    examples = [rejects.places.find(table, int(row[place])) | {"lines": int(lines[place])} for place in longest]
    rejects.notes.add(SEVERAL_LINES, int((lines > 1).sum()), examples)
    if table != "events":
        return raw, row
    bad = np.zeros(len(row), dtype=np.bool_)
    for name in breaks:
        bad |= (breaks[name] > 0) & (name in wanted)
    for place in np.flatnonzero(bad):
        values = {name: raw[name][int(place)].as_py().decode(errors="replace") for name in wanted}
        rejects.add(table, int(row[place]), "line break in a field", values)
    return raw.filter(pa.array(~bad)), row[~bad]


def _line_breaks(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """(n,) int64: how many line breaks each value of a column of bytes has."""
    content = _content(column)
    if b"\n" not in content and b"\r" not in content:
        return np.zeros(len(column), dtype=np.int64)
    return np.asarray(pc.count_substring_regex(column, LINE_BREAK), dtype=np.int64)


def _as_it_was(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Bytes that were read as if they were Latin-1, and so stand in UTF-8 -> as they are in the file."""
    if _content(column).isascii():
        return column
    return pa.chunked_array([pa.array([value.as_py().decode().encode(BYTES) for value in column], pa.binary())])


def _content(column: pa.ChunkedArray) -> bytes:
    """All values of a column of bytes in one."""
    buffers = (chunk.buffers()[2] for chunk in column.chunks)
    return b"".join(buffer.to_pybytes() for buffer in buffers if buffer is not None)
