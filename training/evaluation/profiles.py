"""Profile attributes of the people in a data set: who belongs to which group."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from training.errors import DatasetError
from training.progress import Progress

UNKNOWN = "unknown"  # no profile, or an empty value
MOST_VALUES = 50


def read_profiles(path: Path, wanted: list[str] | None = None) -> pa.Table:
    """user_id and attributes, all as strings, of a CSV with a header line or a parquet file. Raises DatasetError."""
    if not path.is_file():
        raise DatasetError(f"{path}: no such file; give a CSV or parquet file with user_id and attributes")
    try:
        table = pq.read_table(path) if path.suffix == ".parquet" else _read_csv(path)
    except (pa.ArrowException, OSError, UnicodeError) as error:
        raise DatasetError(f"{path}: cannot be read ({str(error).splitlines()[0]}); give a CSV or parquet file") from error
    if len(set(table.column_names)) < len(table.column_names):
        raise DatasetError(f"{path}: two columns have one name; it has {', '.join(table.column_names)}")
    names = [name for name in table.column_names if name != "user_id"] if wanted is None else wanted
    for name in ["user_id", *names]:
        if name not in table.column_names:
            raise DatasetError(f"{path}: has no column {name}; it has {', '.join(table.column_names)}")
    try:
        table = pa.table({name: table[name].cast(pa.string()) for name in ["user_id", *names]})
    except pa.ArrowException as error:
        raise DatasetError(f"{path}: a column is not of plain values ({str(error).splitlines()[0]})") from error
    if len(pc.unique(table["user_id"])) < table.num_rows:
        raise DatasetError(f"{path}: a user_id is there twice; give one row for each user")
    for name in names:
        if len(pc.unique(table[name])) > MOST_VALUES:
            raise DatasetError(f"{path}: {name} has more than {MOST_VALUES} values; put them into ranges, or leave it out")
    return table


def warn_of_strangers(table: pa.Table, users: pa.Array, progress: Progress) -> None:
    """Says where no profile is of any of `users`: their ids are then written in another way."""
    if not pc.any(pc.is_in(users, value_set=table["user_id"].combine_chunks())).as_py():
        first = table["user_id"][0] if table.num_rows else "none"
        progress.say(
            f"warning: none of the {table.num_rows:,} profiles is of anyone who is asked, such as {users[0]}; "
            f"the first profile's user_id is {first}"
        )


def groups(table: pa.Table, attribute: str, users: pa.Array) -> np.ndarray[tuple[int], np.dtype[np.object_]]:
    """(U,) object: the group, a string, of each of `users`; "unknown" without a profile or with an empty value."""
    values = table[attribute].combine_chunks().take(pc.index_in(users, value_set=table["user_id"].combine_chunks()))
    filled = pc.fill_null(pc.replace_substring_regex(values, r"^\s*$", UNKNOWN), UNKNOWN)
    return filled.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def _read_csv(path: Path) -> pa.Table:
    with path.open(encoding="utf-8-sig") as file:
        names = pacsv.read_csv(pa.BufferReader(file.readline().encode())).column_names
    options = pacsv.ConvertOptions(column_types={name: pa.string() for name in names})  # 007 stays what it is
    return pacsv.read_csv(path, convert_options=options)
