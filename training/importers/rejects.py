"""Bad rows: counted by reason and kept for rejects.jsonl; one bad row never ends an import."""

import json
from bisect import bisect_right
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from training.importers.notes import Notes

MAX_VALUE_CHARACTERS = 300  # of one value in rejects.jsonl
MOST_WRITTEN = 10_000  # rows of one reason in rejects.jsonl; all are counted


class Places:
    """Where a row of a table that is several files stands: its file and its number in there."""

    def __init__(self) -> None:
        self._starts: dict[str, list[int]] = {}
        self._files: dict[str, list[str]] = {}

    def begin(self, table: str, file: str, rows_before: int) -> None:
        """From row `rows_before` + 1 on the rows of `table` are those of `file`."""
        self._starts.setdefault(table, []).append(rows_before)
        self._files.setdefault(table, []).append(file)

    def find(self, table: str, row: int) -> dict[str, Any]:
        """{"table", "row"}, and "file" where the table is more than one."""
        files = self._files.get(table, [])
        if not files:
            return {"table": table, "row": row}
        place = bisect_right(self._starts[table], row - 1) - 1
        return {"table": table, "file": files[place], "row": row - self._starts[table][place]}


class Rejects:
    """Collects bad rows of all tables of one import; they are written as they come, so that they take no memory."""

    def __init__(self, path: Path) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, dict[str, Any]] = {}  # of each reason the first bad row
        self.places = Places()
        self.notes = Notes()  # on rows that are kept, as far as reading them shows it
        self._file = path.open("w", encoding="utf-8")

    def add(self, table: str, row: int, reason: str, values: dict[str, Any]) -> None:
        """One bad row; `row` as in `Marks`."""
        if self.room(reason):
            short = {name: _shorten(value) for name, value in values.items()}
            line = {**self.places.find(table, row), "reason": reason, "values": short}
            self.examples.setdefault(reason, line)
            self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self.counts[reason] += 1

    def room(self, reason: str) -> int:
        """How many more rows with this reason will be written."""
        return max(0, MOST_WRITTEN - self.counts[reason])

    @property
    def written(self) -> int:
        """Rows in the file."""
        return sum(min(count, MOST_WRITTEN) for count in self.counts.values())

    def close(self) -> None:
        """Ends the file."""
        self._file.close()


class Marks:
    """The reason against each row of one table; a row's first reason stands.

    `row` (n,) int64 numbers the rows as the user counts them: 1 = the first row after a CSV's header (of a parquet
    file, of a data set), and in Amazon sequences the line; in several files they go on counting (see `Places`).
    """

    def __init__(self, table: str, raw: pa.Table, row: npt.NDArray[np.int64]) -> None:
        self.table, self.raw, self.row = table, raw, row
        self.reasons: list[str] = []
        self.code = np.zeros(raw.num_rows, dtype=np.int64)  # (n,) int64, 0 = good, else 1 + place in `reasons`

    def reject(self, bad: npt.NDArray[np.bool_], reason: str) -> None:
        """Marks the rows where `bad` (n,) bool and no earlier reason is given."""
        self.reasons.append(reason)
        self.code[bad & (self.code == 0)] = len(self.reasons)

    @property
    def good(self) -> npt.NDArray[np.bool_]:
        """(n,) bool."""
        good: npt.NDArray[np.bool_] = self.code == 0
        return good

    def report(self, rejects: Rejects) -> None:
        """Hands the marked rows over, in the order of the source; those that will only be counted are not looked at."""
        bad = [np.flatnonzero(self.code == code) for code in range(1, len(self.reasons) + 1)]
        shown = [rows[: rejects.room(reason)] for reason, rows in zip(self.reasons, bad, strict=True)]
        places = np.sort(np.concatenate([np.empty(0, np.int64), *shown]))
        for place, values in zip(places, self.raw.take(pa.array(places)).to_pylist(), strict=True):
            rejects.add(self.table, int(self.row[place]), self.reasons[self.code[place] - 1], values)
        for reason, rows, seen in zip(self.reasons, bad, shown, strict=True):
            if len(rows) > len(seen):
                rejects.counts[reason] += len(rows) - len(seen)


def _shorten(value: object) -> object:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if np.isfinite(value) else str(value)
    text = str(value).encode(errors="backslashreplace").decode()  # halves of characters have no UTF-8
    return text if len(text) <= MAX_VALUE_CHARACTERS else text[:MAX_VALUE_CHARACTERS] + "…"
