"""Bad rows: counted by reason and kept for rejects.jsonl; one bad row never ends an import."""

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

MAX_VALUE_CHARACTERS = 300  # of one value in rejects.jsonl


class Rejects:
    """Collects bad rows of all tables of one import."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.counts: Counter[str] = Counter()

    def add(self, table: str, row: int, reason: str, values: dict[str, Any]) -> None:
        """One bad row; `row` as in `Marks`."""
        short = {name: _shorten(value) for name, value in values.items()}
        self.rows.append({"table": table, "row": row, "reason": reason, "values": short})
        self.counts[reason] += 1

    def example(self, reason: str) -> dict[str, Any]:
        """The first bad row with that reason."""
        return next(row for row in self.rows if row["reason"] == reason)


class Marks:
    """The reason against each row of one table; a row's first reason stands.

    `row` (n,) int64 numbers the rows as the user counts them: 1 = the first row after a CSV's header (of a parquet
    file, of a data set), and in Amazon sequences the line.
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
        """Hands the marked rows over, in the order of the source."""
        bad = np.flatnonzero(self.code)
        for place, values in zip(bad, self.raw.take(pa.array(bad)).to_pylist(), strict=True):
            rejects.add(self.table, int(self.row[place]), self.reasons[self.code[place] - 1], values)


def _shorten(value: object) -> object:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if np.isfinite(value) else str(value)
    text = str(value)
    return text if len(text) <= MAX_VALUE_CHARACTERS else text[:MAX_VALUE_CHARACTERS] + "…"
