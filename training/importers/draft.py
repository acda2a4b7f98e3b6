"""A data set in the making: a directory inside DATA that ends as the data set, or as nothing."""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from training.data.dataset import EVENT_SCHEMA, PARTS, publish_dataset
from training.errors import DatasetError
from training.importers.items import items_of_events
from training.importers.rejects import Rejects
from training.importers.sorting import DEFAULT_SORT_MIB, EventSorter, without_repeats
from training.importers.summary import summary
from training.importers.survey import Survey
from training.importers.tables import is_text
from training.progress import Progress


class Draft:
    """Collects events, sorts them and writes the data set. See `drafting`."""

    def __init__(self, out: Path, folder: Path, sort_mib: int) -> None:
        self._out, self._folder, self._began = out, folder, datetime.now(UTC)
        self._sorter = EventSorter(folder, sort_mib)
        self.rejects = Rejects(folder / "rejects.jsonl")

    def add(self, events: Iterable[pa.Table]) -> None:
        """Canonical events with their rows in the source (NUMBERED_SCHEMA), in any order."""
        with Progress().bar("read", None) as bar:
            for part in events:
                self._sorter.add(part)
                bar.update(part.num_rows)

    def finish(
        self, kind: str, source: str, items: pa.Table | None, *, ordinal: bool = False, watermark: dict[str, Any] | None = None
    ) -> str:
        """Writes the data set -> the printed summary. Without `items` those in the events are taken.

        `ordinal`: times are only an order. Raises DatasetError if no event is left.
        """
        if not self._sorter.rows:
            worst = ", ".join(f"{count} {reason}" for reason, count in self.rejects.counts.most_common(3))
            reason = worst or "the source is empty"
            raise DatasetError(f"{source}: no usable event is left ({reason}); correct the source or name its columns")
        survey = Survey(self.rejects, ordinal=ordinal, began=self._began)
        self._write_events(survey)
        catalogue = items_of_events(survey.item_ids) if items is None else items
        pq.write_table(catalogue, self._folder / "items.parquet")
        found = survey.finish(catalogue)
        info = {"kind": kind, "source": source, "times": "ordinal" if ordinal else "real", **found}
        info["rejected"] = dict(self.rejects.counts.most_common())
        if watermark is not None:
            info["watermark"] = watermark
        self.rejects.close()
        publish_dataset(self._out, self._folder, info)
        return summary(self._out, info, self.rejects)

    def close(self) -> None:
        """Lets go of all files."""
        self._sorter.close()
        self.rejects.close()

    def _write_events(self, survey: Survey) -> None:
        with (
            pq.ParquetWriter(self._folder / "events.parquet", EVENT_SCHEMA) as writer,
            Progress().bar("sort and write", self._sorter.rows) as bar,
        ):
            for part in without_repeats(self._sorter.batches(), self.rejects):
                survey.see(part)
                writer.write_table(part.select(EVENT_SCHEMA.names))
                bar.update(part.num_rows)


@contextmanager
def drafting(out: Path, sort_mib: int = DEFAULT_SORT_MIB) -> Iterator[Draft]:
    """A draft of the data set at `out`. What it needs on disk lies in `out` and is removed, however this ends.

    A data set that stands there stays whole until `Draft.finish` replaces it. Raises DatasetError if files of its names stand
    there that are no data set: they may be the source.
    """
    if not is_text(out):
        raise DatasetError(f"{str(out)!a}: the name is not UTF-8; choose another")
    if not (out / "dataset.json").exists():
        for name in PARTS:
            if (out / name).exists():
                raise DatasetError(f"{out}: its {name} is not of a data set and would be replaced; give another --out")
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    out.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".import-", dir=out) as folder:
            draft = Draft(out, Path(folder), sort_mib)
            try:
                yield draft
            finally:
                draft.close()
    finally:
        with suppress(OSError):  # a finished data set is in it
            for empty in made:
                empty.rmdir()
