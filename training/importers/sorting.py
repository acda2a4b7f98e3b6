"""Sorting more events than fit into memory: DuckDB sorts them, and what does not fit lies on disk meanwhile."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from training.errors import DatasetError
from training.importers.events import NUMBERED_SCHEMA
from training.importers.rejects import Marks, Rejects

DEFAULT_SORT_MIB, LEAST_SORT_MIB = 1024, 64
THREAD_MIB = 256  # every thread that merges holds a block of each sorted part, so that many with little memory fail
ROWS_AT_ONCE = 1 << 18
TIMES = NUMBERED_SCHEMA.field("occurred_at").type
STAGED_SCHEMA = NUMBERED_SCHEMA.set(3, pa.field("occurred_at", pa.int64()))  # DuckDB would bring time zones into it


class EventSorter:
    """Takes events in any order and gives them by (user_id, occurred_at, row in the source). User ids go by their bytes.

    `folder` is a directory of the import's own; `memory_mib` bounds what the sort itself holds; there is a
    limit to how much can be sorted with it, which grows faster than it.
    """

    def __init__(self, folder: Path, memory_mib: int) -> None:
        self._folder, self._memory_mib = folder, memory_mib
        self._staged = folder / "unsorted.parquet"
        self._writer = pq.ParquetWriter(self._staged, STAGED_SCHEMA, compression="lz4")
        self.rows = 0

    def add(self, events: pa.Table) -> None:
        """`events` of NUMBERED_SCHEMA."""
        if events.num_rows:
            self._writer.write_table(events.cast(STAGED_SCHEMA))
            self.rows += events.num_rows

    def close(self) -> None:
        """Nothing can be added any more."""
        self._writer.close()

    def batches(self) -> Iterator[pa.Table]:
        """All that was added, in order, as tables of NUMBERED_SCHEMA. Raises DatasetError where it cannot be sorted."""
        self.close()
        try:
            settings: dict[str, str | bool | int | float | list[str]] = {
                "memory_limit": f"{self._memory_mib}MiB",
                "temp_directory": str(self._folder / "spill"),
                "threads": max(1, min(self._memory_mib // THREAD_MIB, os.cpu_count() or 1)),
                "autoinstall_known_extensions": "false",
                "autoload_known_extensions": "false",
            }
            with duckdb.connect(config=settings) as database:
                database.execute("SET enable_progress_bar = false")
                staged = database.read_parquet(str(self._staged))
                for batch in staged.order("user_id, occurred_at, row").to_arrow_reader(ROWS_AT_ONCE):
                    yield pa.Table.from_batches([batch]).cast(NUMBERED_SCHEMA)
        except duckdb.Error as error:
            _refuse(error)
        except RuntimeError as error:
            if "interrupted" in str(error).lower():
                raise KeyboardInterrupt from error  # which DuckDB takes for itself while it works
            raise


def without_repeats(batches: Iterator[pa.Table], rejects: Rejects) -> Iterator[pa.Table]:
    """Sorted events without those that equal an earlier row in user, item, type and time; these are rejected."""
    held: pa.Table | None = None  # the last user's events of one instant, which may go on in the next batch
    for batch in batches:
        table = (batch if held is None else pa.concat_tables([held, batch])).combine_chunks()
        begins = np.flatnonzero(~same_instant(table))
        whole = int(begins[-1])
        if whole:
            yield _drop_repeats(table.slice(0, whole), rejects)
        held = table.slice(whole)
    if held is not None:
        yield _drop_repeats(held, rejects)


def same_instant(table: pa.Table) -> npt.NDArray[np.bool_]:
    """(n,) bool: the row before is the same user's and of the same time."""
    same = np.zeros(table.num_rows, dtype=np.bool_)
    if table.num_rows > 1:
        user, time = table["user_id"].combine_chunks(), table["occurred_at"].combine_chunks().cast(pa.int64()).to_numpy()
        same[1:] = pc.equal(user[1:], user[:-1]).to_numpy(zero_copy_only=False) & (time[1:] == time[:-1])
    return same


def _drop_repeats(table: pa.Table, rejects: Rejects) -> pa.Table:
    repeated = _repeats_earlier(table)
    if not repeated.any():
        return table
    marks = Marks("events", table.drop_columns("row"), table["row"].to_numpy())
    marks.reject(repeated, "duplicate of an earlier row")
    marks.report(rejects)
    return table.filter(pa.array(~repeated))


def _repeats_earlier(table: pa.Table) -> npt.NDArray[np.bool_]:
    """(n,) bool: an earlier row equals this one in all four columns. Only rows that share an instant are compared."""
    repeated = np.zeros(table.num_rows, dtype=np.bool_)
    same = same_instant(table)
    shared = np.flatnonzero(same | np.append(same[1:], False))
    if not len(shared):
        return repeated
    instant = np.cumsum(~same)[shared]
    some = table.take(pa.array(shared))
    item, kind = (some[name].combine_chunks().dictionary_encode().indices.to_numpy() for name in ("item_id", "event_type"))
    by_key = np.lexsort((kind, item, instant))  # stable: equal rows stay in their order
    equal = np.ones(len(shared) - 1, dtype=np.bool_)
    for part in (instant, item, kind):
        equal &= part[by_key][1:] == part[by_key][:-1]
    repeated[shared[by_key[1:][equal]]] = True
    return repeated


def _refuse(error: duckdb.Error) -> NoReturn:
    reason = str(error).splitlines()[0]
    raise DatasetError(f"the events cannot be sorted ({reason}); free space where DATA lies, or give --sort-memory more")
