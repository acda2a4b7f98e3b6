"""Sequences in the form of S3-Rec's Amazon data: a line is a user and that user's items in time order.

There are no times, so an event's time is 2000-01-01 plus its place in the line in seconds, and dataset.json says
`"times": "ordinal"`: the towers are then trained without time features. Attribute ids become categories.
"""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa

from training.errors import DatasetError
from training.importers.events import DEFAULT_EVENT_TYPE, MAX_ID_BYTES, NUMBERED_SCHEMA
from training.importers.rejects import Rejects
from training.importers.tables import need_file

START_US = 946_684_800 * 10**6  # 2000-01-01 UTC


def import_amazon(sequences: Path, attributes: Path | None, rejects: Rejects) -> tuple[pa.Table, pa.Table]:
    """Reads SEQUENCES.txt and the JSON {item: [attribute, …]} -> numbered events and canonical items."""
    listed = {} if attributes is None else _read_attributes(attributes, rejects)
    users: list[str] = []
    items: list[str] = []
    ordinals: list[int] = []
    known: set[str] = set()
    for number, line in enumerate(_lines(sequences), start=1):
        user, *row = line.split() or [""]
        reason = _problem(user, row, known)
        if reason:
            rejects.add("events", number, reason, {"line": line.rstrip("\n")})
            continue
        known.add(user)
        users += [user] * len(row)
        items += row
        ordinals += range(len(row))
    times = START_US + np.array(ordinals, dtype=np.int64) * 10**6
    kinds = pa.array([DEFAULT_EVENT_TYPE] * len(users), pa.string())
    stamps = pa.array(times).cast(NUMBERED_SCHEMA.field("occurred_at").type)
    place = pa.array(np.arange(1, len(users) + 1))
    columns = [pa.array(users, pa.string()), pa.array(items, pa.string()), kinds, stamps, place]
    return pa.table(columns, schema=NUMBERED_SCHEMA), _item_table(set(items) | set(listed), listed)


def _item_table(ids: set[str], categories: dict[str, list[str]]) -> pa.Table:
    ordered = sorted(ids, key=lambda item: (len(item), item))  # numeric ids in their numeric order
    lists = pa.array([categories.get(item, []) for item in ordered], pa.list_(pa.string()))
    columns = [pa.array(ordered, pa.string()), pa.array([""] * len(ordered), pa.string()), lists]
    return pa.table(columns, names=["item_id", "text", "categories"])


def _lines(path: Path) -> list[str]:
    need_file(path, "give the sequences file (a line: user item item …)")
    return path.read_text(encoding="utf-8", errors="replace").splitlines()


def _problem(user: str, row: list[str], known: set[str]) -> str:
    if not user:
        return "empty line"
    if not row:
        return "user without items"
    if user in known:
        return "user_id repeated"
    if "\0" in user or any("\0" in item for item in row):
        return "id with a NUL character"
    if len(user.encode()) > MAX_ID_BYTES:
        return f"user_id over {MAX_ID_BYTES} bytes"
    if max(len(item.encode()) for item in row) > MAX_ID_BYTES:
        return f"item_id over {MAX_ID_BYTES} bytes"
    return ""


def _read_attributes(path: Path, rejects: Rejects) -> dict[str, list[str]]:
    """{item: category names}; an entry that is not a list of numbers or strings is rejected."""
    need_file(path, "give the JSON of attributes, or leave --attributes out")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DatasetError(f"{path}: not JSON ({error}); give an object {{item: [attribute, …]}}") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{path}: not a JSON object; give {{item: [attribute, …]}}")
    good: dict[str, list[str]] = {}
    for number, (item, values) in enumerate(content.items(), start=1):
        if not _is_utf8(item, values):
            rejects.add("items", number, "not UTF-8", {"item_id": item})
        elif not item or len(item.encode()) > MAX_ID_BYTES:
            rejects.add("items", number, "item_id missing or too long", {"item_id": item})
        elif not isinstance(values, list) or any(not isinstance(value, int | str) for value in values):
            rejects.add("items", number, "attributes are not a list of numbers or strings", {"item_id": item})
        else:
            good[item] = list(Counter(str(value) for value in values if value != ""))
    return good


def _is_utf8(*values: object) -> bool:
    """JSON can write halves of characters, such as half of an emoji, which no text can hold."""
    try:
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True
