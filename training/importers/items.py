"""Raw item rows -> canonical items: text, categories, and every other column as an attribute."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from training.importers.columns import as_strings, find_column, need_column, reading
from training.importers.events import check_ids
from training.importers.notes import EXAMPLES
from training.importers.rejects import Marks, Rejects

NOT_KEPT = "attributes that cannot be kept"
COMMAS = "categories with commas, at which --category-separator ',' would split them"
SEPARATOR = "|"  # of categories in text, unless another is given
OWN_NAMES = ("item_id", "text", "categories", "popularity")  # of a bundle's items; attributes have others


@dataclass(frozen=True)
class ItemColumns:
    """The columns of one source that hold items; there may be none for text and categories. All others are attributes."""

    item_id: str
    text: str | None
    categories: str | None

    @property
    def names(self) -> list[str]:
        """Those that there are."""
        return [name for name in (self.item_id, self.text, self.categories) if name is not None]


def find_item_columns(columns: list[str], overrides: dict[str, str]) -> ItemColumns:
    """Raises DatasetError, which names the columns that there are, where there is none for the id.

    Where there is no text column the first of title, name and description serves as text, and stays an attribute.
    """
    text, categories = (find_column(name, columns, overrides) for name in ("text", "categories"))
    return ItemColumns(need_column("item_id", columns, overrides, aliases=("id",)), text, categories)


def clean_items(
    raw: pa.Table, row: npt.NDArray[np.int64], columns: ItemColumns, rejects: Rejects, *, separator: str = SEPARATOR
) -> pa.Table:
    """Canonical items of a raw table whose rows are numbered by `row` (n,) int64; the first of equal ids stands.

    Categories in text are split at `separator`; where none has one and some have commas, a note says so.
    A column that cannot be an attribute, for its type or its name, is left out with a note. Raises DatasetError where
    another one cannot be read.
    """
    marks = Marks("items", raw, row)
    ids = check_ids(raw, columns.item_id, "item_id", marks)
    marks.reject(_repeats(ids) & marks.good, "item_id repeated")
    marks.report(rejects)
    size = raw.num_rows
    text, categories = pa.array([""] * size), empty_categories(size)
    if columns.text is not None:
        with reading(columns.text, raw[columns.text]):
            text = _stripped(raw[columns.text])
    if columns.categories is not None:
        with reading(columns.categories, raw[columns.categories]):
            categories = split_categories(raw[columns.categories], separator)
        _note_commas(raw[columns.categories], separator, rejects)
    table = pa.table([ids, text, categories], names=["item_id", "text", "categories"])
    for name in raw.column_names:
        if name in (columns.item_id, columns.categories) or name == columns.text == "text":
            continue
        if name in OWN_NAMES:
            rejects.notes.add(NOT_KEPT, 1, [{"column": name, "reason": "a bundle has one of its own; rename it to keep it"}])
            continue
        try:
            table = table.append_column(name, attribute(raw[name]))
        except pa.ArrowException:
            rejects.notes.add(NOT_KEPT, 1, [{"column": name, "type": str(raw[name].type)}])
    return table.filter(pa.array(marks.good)).combine_chunks()


def items_of_events(ids: pa.Array) -> pa.Table:
    """The items that occur in events, given by their different ids, in order and without text: no catalogue has more."""
    ids = ids.take(pc.sort_indices(ids))
    return pa.table([ids, pa.array([""] * len(ids)), empty_categories(len(ids))], names=["item_id", "text", "categories"])


def empty_categories(size: int) -> pa.Array:
    """(size,) lists, each empty."""
    return pa.array([[]] * size, pa.list_(pa.string()))


def split_categories(column: pa.ChunkedArray, separator: str = SEPARATOR) -> pa.Array:
    """Lists of strings as they are, strings split at `separator`; empty values, repeats and nulls are left out."""
    array = column.combine_chunks()
    if not _is_list(array.type):
        array = pc.split_pattern(pc.fill_null(as_strings(array), ""), separator)
    lists = array.cast(pa.list_(pa.string()))
    values = pc.utf8_trim_whitespace(pc.fill_null(lists.flatten(), ""))
    owner = pc.list_parent_indices(lists).to_numpy()
    keep = pc.not_equal(values, "").to_numpy(zero_copy_only=False)
    names = values.dictionary_encode()
    key = owner.astype(np.int64) * (len(names.dictionary) + 1) + names.indices.to_numpy()
    first = np.zeros(len(key), dtype=np.bool_)
    first[np.unique(key, return_index=True)[1]] = True
    keep = keep & first
    counts = np.bincount(owner[keep], minlength=len(lists))
    offsets = pa.array(np.append(0, np.cumsum(counts)).astype(np.int32))
    return pa.ListArray.from_arrays(offsets, values.filter(pa.array(keep)))


def _note_commas(column: pa.ChunkedArray, separator: str, rejects: Rejects) -> None:
    if _is_list(column.type):
        return
    text = as_strings(column)
    whole = text.filter(pc.fill_null(pc.match_substring(text, ","), False))
    if not pc.any(pc.match_substring(text, separator)).as_py():
        rejects.notes.add(COMMAS, len(whole), [{"categories": value} for value in whole.slice(0, EXAMPLES).to_pylist()])


def attribute(column: pa.ChunkedArray) -> pa.Array:
    """The column in one of the types that an attribute may have: string, float64, int64, bool, timestamp, list<string>.

    Text columns (all that a CSV has) become numbers or flags where every value present is one.
    """
    array = column.combine_chunks()
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_binary(array.type):  # which some writers of parquet take for text
        array = array.cast(pa.string())
    kind = array.type
    if pa.types.is_boolean(kind) or pa.types.is_timestamp(kind):
        return array
    if pa.types.is_date(kind):
        return array.cast(pa.timestamp("us"))
    if _is_list(kind):
        return array.cast(pa.list_(pa.string()))
    if pa.types.is_integer(kind):
        return array.cast(pa.int64())
    if pa.types.is_float32(kind):  # by way of its digits: 19.99 stays 19.99, and is not 19.989999771118164
        return array.cast(pa.string()).cast(pa.float64())
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return array.cast(pa.float64())
    return _typed(as_strings(array)) if _is_text(kind) else as_strings(array)


def _stripped(column: pa.ChunkedArray) -> pa.Array:
    """(n,) strings without white space around them, so that a blank text is none."""
    return pc.utf8_trim_whitespace(pc.fill_null(as_strings(column), ""))


def _typed(text: pa.Array) -> pa.Array:
    blank = pc.equal(text, "")
    present = pc.if_else(blank, pa.scalar(None, pa.string()), text)
    if present.null_count == len(present):
        return text
    for pattern, kind in (
        (r"^-?(0|[1-9]\d{0,17})$", pa.int64()),
        (r"^-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d{1,2})?$", pa.float64()),
        (r"^([Tt]rue|[Ff]alse)$", pa.bool_()),
    ):
        if pc.all(pc.match_substring_regex(present, pattern)).as_py():
            return present.cast(kind)
    return text


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _repeats(ids: pa.Array) -> npt.NDArray[np.bool_]:
    """(n,) bool: an earlier row has the same id."""
    codes = pc.fill_null(ids.dictionary_encode().indices, -1).to_numpy(zero_copy_only=False)
    repeat = np.ones(len(codes), dtype=np.bool_)
    repeat[np.unique(codes, return_index=True)[1]] = False
    return repeat
