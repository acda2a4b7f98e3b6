"""The files that hold events: one, several, a directory or a pattern; CSV or parquet; read as one table."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from training.data.dataset import parse_watermark
from training.errors import DatasetError
from training.importers.columns import need_column, of, reading
from training.importers.events import EventRules, clean_events, find_event_columns
from training.importers.rejects import Rejects
from training.importers.tables import COMMA, TableFile, open_table
from training.importers.times import UnixUnit

ENDINGS = {"csv": (".csv", ".csv.gz"), "parquet": (".parquet", ".pq")}


def find_files(paths: list[Path], kind: str) -> list[Path]:
    """Files as they are, of directories all files of the kind in the order of their names, patterns filled in.

    What begins with a dot or an underline is left out of directories, as those who write such exports mean it.
    Raises DatasetError where nothing is found.
    """
    found: list[Path] = []
    for path in paths:
        matched = [path] if path.exists() else _matched(path)
        for one in matched:
            files = _inside(one, kind) if one.is_dir() else [one]
            if one.is_dir() and not files and len(matched) == 1:
                raise DatasetError(f"{one}: has no file that ends in {' or '.join(ENDINGS[kind])}; check the path")
            found += files
    if not found:
        raise DatasetError(f"{paths[0]}: no folder there has a file that ends in {' or '.join(ENDINGS[kind])}; check the path")
    return list(dict.fromkeys(found))


def _matched(pattern: Path) -> list[Path]:
    try:
        found = sorted(Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor))))
    except ValueError as error:
        raise DatasetError(f"{pattern}: no such file, and no pattern ({error})") from error
    if not found:
        raise DatasetError(f"{pattern}: no such file; check the path")
    return found


def _inside(folder: Path, kind: str) -> list[Path]:
    return [file for file in sorted(folder.rglob("*")) if _belongs(file.relative_to(folder), kind) and file.is_file()]


def open_events(paths: list[Path], kind: str, delimiter: str = COMMA) -> list[TableFile]:
    """The files of `find_files`, each looked at."""
    return [open_table(path, kind, delimiter=delimiter) for path in find_files(paths, kind)]


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
    columns = []
    for file in files:
        with of(file.path):
            columns.append(find_event_columns(file.columns, overrides))
    rules = EventRules(unix_unit(files, overrides), item_ids, type_names or {})
    done = 0
    for file, chosen in zip(files, columns, strict=True):
        if len(files) > 1:
            rejects.places.begin("events", str(file.path), done)
        for raw, row in file.batches(chosen.names, table="events", rows_before=done, rejects=rejects):
            if len(row):
                done = int(row[-1])
                with of(file.path):
                    events = clean_events(raw, row, chosen, rules, rejects)
                yield events
    if not done and not rejects.counts:
        names = ", ".join(str(file.path) for file in files[:3])
        raise DatasetError(f"{names}: holds no rows; give a file that has some")


def unix_unit(files: list[TableFile], overrides: dict[str, str]) -> UnixUnit:
    """The unit of Unix times in all files together."""
    unit = UnixUnit()
    for file in files:
        with of(file.path):
            column = need_column("occurred_at", file.columns, overrides)
        for raw, _ in file.batches([column], table="events", rows_before=0, rejects=None):
            with of(file.path), reading(column, raw[column]):
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
