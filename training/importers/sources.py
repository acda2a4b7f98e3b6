"""The files that hold events: one, several, a directory or a pattern; CSV or parquet; read as one table."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from training.dataset import parse_watermark
from training.errors import DatasetError
from training.importers.columns import find_column
from training.importers.events import EventRules, clean_events, find_event_columns
from training.importers.rejects import Rejects
from training.importers.tables import TableFile, open_table
from training.importers.times import UnixUnit

ENDINGS = {"csv": (".csv", ".csv.gz"), "parquet": (".parquet", ".pq")}


def find_files(paths: list[Path], kind: str) -> list[Path]:
    """Files as they are, of directories all files of the kind in the order of their names, patterns filled in.

    What begins with a dot or an underline is left out of directories, as those who write such exports mean it.
    Raises DatasetError where nothing is found.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            files = [file for file in sorted(path.rglob("*")) if _belongs(file.relative_to(path), kind) and file.is_file()]
            if not files:
                raise DatasetError(f"{path}: has no file that ends in {' or '.join(ENDINGS[kind])}; check the path")
        else:
            files = [path] if path.exists() else sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
            if not files:
                raise DatasetError(f"{path}: no such file; check the path")
        found += files
    return list(dict.fromkeys(found))


def open_events(paths: list[Path], kind: str) -> list[TableFile]:
    """The files of `find_files`, each looked at."""
    return [open_table(path, kind) for path in find_files(paths, kind)]


def read_events(
    files: list[TableFile],
    overrides: dict[str, str],
    rejects: Rejects,
    *,
    item_ids: pa.Array | None = None,
    type_names: dict[str, str] | None = None,
) -> Iterator[pa.Table]:
    """Canonical events of all files, a piece at a time, in the order of the source. Raises DatasetError.

    The files are read twice: first the times alone, since only all of them tell the unit.
    """
    columns = [find_event_columns(file.columns, overrides, source=str(file.path)) for file in files]
    rules = EventRules(unix_unit(files, overrides), item_ids, type_names or {})
    done = 0
    for file, chosen in zip(files, columns, strict=True):
        if len(files) > 1:
            rejects.places.begin("events", str(file.path), done)
        for raw, row in file.batches(chosen.names, table="events", rows_before=done, rejects=rejects):
            if len(row):
                done = int(row[-1])
                yield clean_events(raw, row, chosen, rules, rejects)
    if not done and not rejects.counts:
        names = ", ".join(str(file.path) for file in files[:3])
        raise DatasetError(f"{names}: holds no rows; give a file that has some")


def unix_unit(files: list[TableFile], overrides: dict[str, str]) -> UnixUnit:
    """The unit of Unix times in all files together."""
    unit = UnixUnit()
    for file in files:
        column = find_column("occurred_at", file.columns, overrides)
        for raw, _ in file.batches([column] if column else [], table="events", rows_before=0, rejects=None):
            unit.see(raw[column])
    return unit


def watermark_of(files: list[TableFile]) -> dict[str, Any] | None:
    """What the files of a server's export say in common; None for other files. Raises DatasetError if they differ."""
    found = [parse_watermark(file.metadata) for file in files]
    for file, mark in zip(files, found, strict=True):
        if mark != found[0]:
            raise DatasetError(
                f"{file.path} and {files[0].path} were not exported from one journal at one time "
                f"({_position(mark)} and {_position(found[0])}); export them together, or import them apart"
            )
    return found[0]


def _position(mark: dict[str, Any] | None) -> str:
    return "no watermark" if mark is None else f"watermark {mark['epoch']}:{mark['position']}"


def _belongs(path: Path, kind: str) -> bool:
    return path.name.lower().endswith(ENDINGS[kind]) and not any(part.startswith((".", "_")) for part in path.parts)
