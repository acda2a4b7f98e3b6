"""UCI's Online Retail: 541,909 lines of invoices of a British gift shop, with descriptions and the minute of each basket.

Kept are lines of a known customer that were not cancelled and are goods; each is a `purchase`. The lines of a basket share
their minute, and their order is the file's. Times are the shop's clock, taken as UTC.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from training.errors import DatasetError
from training.importers.columns import flags
from training.importers.events import NUMBERED_SCHEMA, check_ids
from training.importers.items import empty_categories
from training.importers.rejects import Marks, Rejects
from training.importers.tables import open_table, read_table
from training.importers.times import within_range

EVENT_TYPE = "purchase"
NAMES = {  # what this module calls a column, and what it is called in Online Retail and in Online Retail II
    "invoice": ("InvoiceNo", "Invoice"),
    "item": ("StockCode",),
    "text": ("Description",),
    "quantity": ("Quantity",),
    "time": ("InvoiceDate",),
    "price": ("UnitPrice", "Price"),
    "customer": ("CustomerID", "Customer ID"),
}
NO_GOODS = r"^(?i:POST|DOT|C2|M|D|S|B|BANK CHARGES|AMAZONFEE|CRUK|gift_0001_\d+|ADJUST\d*|TEST\d*)$"
FORMATS = (
    "ISO8601",
    *(
        f"{day} %H:%M{rest}"
        for day in ("%m/%d/%Y", "%m/%d/%y", "%d/%m/%Y", "%d/%m/%y", "%d-%m-%Y", "%d.%m.%Y")
        for rest in ("", ":%S")
    ),
)


def import_online_retail(path: Path, rejects: Rejects) -> tuple[pa.Table, pa.Table]:
    """Reads the CSV, plain or gzipped, in UTF-8 or Latin-1 -> numbered events and canonical items.

    An item's text is its most frequent description, its price the median one.
    """
    file = open_table(path, "csv", other_encoding="latin-1")
    column = {name: _find(name, file.columns, path) for name in NAMES}
    raw, row = read_table(file, table="events", rejects=rejects)
    marks = Marks("events", raw, row)
    customer = pc.replace_substring_regex(raw[column["customer"]], r"\.0$", "")
    users = check_ids(pa.table({"customer": customer}), "customer", "user_id", marks)
    cancelled = pc.match_substring_regex(raw[column["invoice"]], "^[Cc]")
    marks.reject(flags(cancelled), "cancelled invoice")
    quantity = pd.to_numeric(raw[column["quantity"]].to_pandas(), errors="coerce").to_numpy(dtype=np.float64)
    marks.reject(~(quantity > 0), "quantity unreadable or not above 0")
    items = check_ids(raw, column["item"], "item_id", marks)
    marks.reject(flags(pc.match_substring_regex(items, NO_GOODS)), "no goods but postage, fees, vouchers and the like")
    times, readable = _times(raw[column["time"]])
    marks.reject(~readable, "time unreadable or outside 1969-2100")
    marks.report(rejects)
    good = pa.array(marks.good)
    types = pa.array([EVENT_TYPE] * len(row), pa.string())
    stamps = pa.array(times).cast(NUMBERED_SCHEMA.field("occurred_at").type)
    events = pa.table([users, items, types, stamps, pa.array(row)], schema=NUMBERED_SCHEMA).filter(good)
    return events, _items(events["item_id"], raw[column["text"]].filter(good), raw[column["price"]].filter(good))


def _find(name: str, columns: list[str], path: Path) -> str:
    lowered = {column.strip().lower(): column for column in columns}
    for known in NAMES[name]:
        if known.lower() in lowered:
            return lowered[known.lower()]
    raise DatasetError(f"{path}: no column {' or '.join(NAMES[name])}; it has {', '.join(columns)}; is it Online Retail?")


def _times(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """((n,) int64 microseconds since 1970, (n,) bool readable), in the one form that reads most of the column.

    Spreadsheets write the stamps in the form of their country, or as days since 1899-12-30; where as many are read with
    the month first as with the day first, the month is.
    """
    codes, texts = pd.factorize(column.to_pandas().str.strip())
    weight = np.bincount(codes, minlength=len(texts))
    days = pd.to_numeric(pd.Series(texts), errors="coerce")
    read = [pd.to_datetime(pd.Series(texts), format=form, errors="coerce", utc=True) for form in FORMATS]
    read.append(pd.to_datetime(days, unit="D", origin="1899-12-30", errors="coerce", utc=True).dt.round("s"))
    best = max(read, key=lambda stamps: int(weight[stamps.notna().to_numpy()].sum()))
    micros = best.dt.tz_localize(None).to_numpy(dtype="datetime64[us]")
    times, readable = within_range(np.where(np.isnat(micros), np.nan, micros.astype(np.int64)))
    return times[codes], readable[codes]


def _items(ids: pa.ChunkedArray, text: pa.ChunkedArray, price: pa.ChunkedArray) -> pa.Table:
    frame = pd.DataFrame({"item": ids.to_pandas(), "text": text.to_pandas().str.strip()})
    frame["price"] = pd.to_numeric(price.to_pandas(), errors="coerce")
    described = frame[frame["text"] != ""].groupby(["item", "text"]).size().reset_index(name="lines")
    described = described.sort_values(["item", "lines", "text"], ascending=[True, False, True]).drop_duplicates("item")
    prices = frame.groupby("item")["price"].median()  # sorted by item
    texts = pa.array(described.set_index("item")["text"].reindex(prices.index).fillna(""), pa.string())
    return pa.table(
        {
            "item_id": pa.array(prices.index, pa.string()),
            "text": texts,
            "categories": empty_categories(len(prices)),
            "description": texts,
            "price": pa.array(prices, pa.float64(), from_pandas=True),
        }
    )
